"""What is sampled follows the law it is scored with: a filter or a forgotten temperature would show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from ppo_world import EOS, language_model, policy_of
from scipy import stats

from pipeline.models.generate.decode import GenerationSettings
from pipeline.models.generate.engines.batched import BatchedEngine
from pipeline.models.generate.engines.engine import Engine
from pipeline.models.generate.engines.generate import GenerateEngine
from pipeline.models.generate.sampling import Sampling, truncated
from pipeline.models.load.adapters import attach
from pipeline.rl.policy.build import build_policy
from pipeline.rl.policy.policy import Policy
from pipeline.rl.rollout.episodes import Episode, Prompt, pack
from pipeline.rl.rollout.rollouts import roll_out

DRAWS = 50_000


def _p_value(policy: Policy, engine: Engine, settings: GenerationSettings) -> float:
    """Compare frequencies of the second of two sampled tokens with the law that scoring has for them."""
    prompt = Prompt({}, (3, 4, 5))
    episodes = roll_out(
        policy.sampling(),
        engine,
        [(place, prompt) for place in range(DRAWS)],
        settings=settings,
        decode_text=lambda ids, prompt_ids: "",
    )
    first = torch.tensor([episode.response_ids[0] for episode in episodes]).mode().values.item()
    seen = torch.tensor([e.response_ids[1] for e in episodes if e.response_ids[0] == first])
    rows = [Episode(i, {}, prompt.ids, [int(first), i], False, "") for i in range(32)]
    with torch.no_grad():
        logp_N = policy.forward(pack(rows, policy.device), values=False).logp_N
    logp = logp_N.reshape(32, 2)[:, 1]
    assert float(logp.double().exp().sum()) == pytest.approx(1, abs=1e-5)
    law = truncated(logp[None], settings.sampling)[0].double().exp()
    counts, possible = torch.bincount(seen, minlength=32), law > 0
    assert int(counts[~possible].sum()) == 0
    return float(stats.chisquare(counts[possible].numpy(), (law / law.sum() * len(seen))[possible].numpy()).pvalue)


def _settings(**sampling: Any) -> GenerationSettings:
    return GenerationSettings(2, [], 0, Sampling(**sampling), seed=1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("engine", [BatchedEngine, GenerateEngine])
def test_frequencies_are_the_scored_probabilities(engine: type, temperature: float) -> None:
    torch.manual_seed(0)
    policy = policy_of(temperature=temperature)
    assert _p_value(policy, engine(), _settings(temperature=temperature)) > 1e-3


@pytest.mark.parametrize("engine", [BatchedEngine, GenerateEngine])
@pytest.mark.parametrize("kept", [{"top_k": 5}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.7}])
def test_frequencies_are_those_of_the_tokens_that_are_kept(engine: type, kept: dict[str, Any]) -> None:
    torch.manual_seed(0)
    assert _p_value(policy_of(temperature=0.7), engine(), _settings(temperature=0.7, **kept)) > 1e-3


def test_the_test_can_tell_another_temperature() -> None:
    assert _p_value(policy_of(temperature=0.9), BatchedEngine(), _settings(temperature=1.0)) < 1e-6


def test_a_folded_adapter_samples_from_the_law_it_is_scored_with() -> None:
    from ppo_world import lora

    model = attach(language_model(), lora(), "causal", seed=1)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    assert _p_value(build_policy(model), BatchedEngine(), _settings()) > 1e-3


def test_a_response_depends_on_its_seed_and_place_alone() -> None:
    policy, prompts = policy_of(), [(3, 4), (5,), (6, 7, 8)]
    engine, settings = BatchedEngine(), GenerationSettings(8, EOS, 0, seed=2)
    whole = engine(policy.model, prompts, settings, [0, 1, 2]).responses
    alone = [engine(policy.model, [prompt], settings, [i]).responses[0] for i, prompt in enumerate(prompts)]
    assert whole == alone
    assert engine(policy.model, prompts, replace(settings, seed=3), [0, 1, 2]).responses != whole
    same = engine(policy.model, [(3, 4)] * 2, settings, [0, 1]).responses
    assert same[0] != same[1]


@pytest.mark.parametrize("engine", [BatchedEngine, GenerateEngine])
def test_engines_keep_the_end_token_and_nothing_after_it(engine: type) -> None:
    stops = (EOS, 9, 17, 20)
    policy, prompts = policy_of(), [(3, 4), (5,), (6, 7, 8), (9, EOS)] * 16
    settings = GenerationSettings(12, stops, EOS)
    likeliest = replace(settings, sampling=Sampling(greedy=True))
    greedy = engine()(policy.model, prompts, likeliest, range(64))
    assert greedy == BatchedEngine()(policy.model, prompts, replace(likeliest, pad_id=0), range(64))
    sampled = engine()(policy.model, prompts, settings, range(64))
    for response in sampled.responses:
        assert not set(response[:-1]) & set(stops)
        assert len(response) == 12 or response[-1] in stops
    assert {response[-1] for response in sampled.responses} >= set(stops)
