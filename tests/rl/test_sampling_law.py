"""What is sampled follows the law it is scored with: a filter or a forgotten temperature would show."""

from __future__ import annotations

import pytest
import torch
from ppo_world import EOS, language_model, policy_of
from scipy import stats

from pipeline.models.load.adapters import attach
from pipeline.rl.policy.build import build_policy
from pipeline.rl.policy.policy import Policy
from pipeline.rl.rollout.engines import BatchedEngine, Engine, GenerateEngine, roll_out
from pipeline.rl.rollout.episodes import Episode, Prompt, pack

DRAWS = 50_000


def _p_value(policy: Policy, engine: Engine, temperature: float) -> float:
    """Compare frequencies of the second of two sampled tokens with the law that scoring has for them."""
    prompt = Prompt({}, (3, 4, 5))
    episodes = roll_out(
        policy.sampling(),
        engine,
        [(place, prompt) for place in range(DRAWS)],
        seed=1,
        eos_ids=(),
        decode_text=lambda ids: "",
    )
    first = torch.tensor([episode.response_ids[0] for episode in episodes]).mode().values.item()
    seen = torch.tensor([e.response_ids[1] for e in episodes if e.response_ids[0] == first])
    rows = [Episode(i, {}, prompt.ids, [int(first), i], False, "") for i in range(32)]
    with torch.no_grad():
        logp_N = policy.forward(pack(rows, policy.device), values=False).logp_N
    law = logp_N.reshape(32, 2)[:, 1].double().exp()
    assert float(law.sum()) == pytest.approx(1, abs=1e-5)
    return float(
        stats.chisquare(torch.bincount(seen, minlength=32).numpy(), (law / law.sum() * len(seen)).numpy()).pvalue
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("engine", [BatchedEngine, GenerateEngine])
def test_frequencies_are_the_scored_probabilities(engine: type, temperature: float) -> None:
    torch.manual_seed(0)
    policy = policy_of(temperature=temperature)
    made = engine(2, (), 0, temperature=temperature)
    assert _p_value(policy, made, temperature) > 1e-3


def test_the_test_can_tell_another_temperature() -> None:
    assert _p_value(policy_of(temperature=0.9), BatchedEngine(2, (), 0, temperature=1.0), 0.9) < 1e-6


def test_a_folded_adapter_samples_from_the_law_it_is_scored_with() -> None:
    from ppo_world import lora

    model = attach(language_model(), lora(), "causal", seed=1)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    assert _p_value(build_policy(model), BatchedEngine(2, (), 0), 1.0) > 1e-3


def test_a_response_depends_on_its_seed_and_place_alone() -> None:
    policy, prompts = policy_of(), [(3, 4), (5,), (6, 7, 8)]
    engine = BatchedEngine(8, (EOS,), 0)
    whole = engine(policy.model, prompts, seed=2, places=[0, 1, 2]).responses
    alone = [engine(policy.model, [prompt], seed=2, places=[i]).responses[0] for i, prompt in enumerate(prompts)]
    assert whole == alone
    assert engine(policy.model, prompts, seed=3, places=[0, 1, 2]).responses != whole
    same = engine(policy.model, [(3, 4)] * 2, seed=2, places=[0, 1]).responses
    assert same[0] != same[1]


@pytest.mark.parametrize("engine", [BatchedEngine, GenerateEngine])
def test_engines_keep_the_end_token_and_nothing_after_it(engine: type) -> None:
    stops = (EOS, 9, 17, 20)
    policy, prompts = policy_of(), [(3, 4), (5,), (6, 7, 8), (9, EOS)] * 16
    greedy = engine(12, stops, EOS)(policy.model, prompts, seed=0, places=range(64), greedy=True)
    assert greedy == BatchedEngine(12, stops, 0)(policy.model, prompts, seed=0, places=range(64), greedy=True)
    sampled = engine(12, stops, EOS)(policy.model, prompts, seed=0, places=range(64))
    for response in sampled.responses:
        assert not set(response[:-1]) & set(stops)
        assert len(response) == 12 or response[-1] in stops
    assert {response[-1] for response in sampled.responses} >= set(stops)
