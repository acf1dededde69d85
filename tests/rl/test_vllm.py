"""vLLM as the engine of rollouts, on whatever it is built for; `make test-vllm` runs this on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ppo_world import EOS, PROMPTS, language_model, lora
from scipy import stats

from pipeline.models.generate.decode import GenerationSettings
from pipeline.models.generate.engines.vllm import VLLMEngine, why_no_vllm
from pipeline.models.generate.sampling import Sampling
from pipeline.models.load.adapters import attach
from pipeline.rl.policy.build import build_policy
from pipeline.rl.policy.policy import Policy
from pipeline.rl.rollout.episodes import Episode, Prompt, pack
from pipeline.rl.rollout.rollouts import roll_out

pytest.importorskip("vllm", reason="vLLM is not installed")

DRAWS = 4_000
HIDDEN = 128
"""Of four heads: vLLM's kernels for a CPU want 32 dimensions in each."""


@pytest.fixture(scope="module")
def policy() -> Policy:
    """A policy with an adapter that says something."""
    model = attach(language_model(hidden=HIDDEN), lora(), "causal", seed=1)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return build_policy(model)


@pytest.fixture(scope="module")
def engine(policy: Policy, tmp_path_factory: pytest.TempPathFactory) -> VLLMEngine:
    """vLLM, started with weights the policy no longer has."""
    if missing := why_no_vllm(policy.device.type):
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("model")
    language_model(seed=9, hidden=HIDDEN).save_pretrained(folder)
    policy.model.get_base_model().name_or_path = str(folder)
    return VLLMEngine.of_policy(policy.model.get_base_model(), 10)


def _sampled(policy: Policy, engine: VLLMEngine, prompts: list[tuple[int, ...]], **sampling: Any) -> Any:
    with policy.sampling() as model:
        settings = GenerationSettings(2, EOS, 0, Sampling(**sampling), seed=1)
        return engine(model, prompts, settings, range(len(prompts)))


def _law(policy: Policy, prompt: tuple[int, ...], first: int) -> torch.Tensor:
    rows = [Episode(i, {}, prompt, [first, i], False, "") for i in range(32)]
    with torch.no_grad():
        logp_N = policy.forward(pack(rows, policy.device), values=False).logp_N
    return logp_N.reshape(32, 2)[:, 1].double().exp()


def test_it_samples_from_the_law_of_the_weights_it_was_given(policy: Policy, engine: VLLMEngine) -> None:
    prompt = (3, 4, 5)
    sampled = _sampled(policy, engine, [prompt] * DRAWS)
    firsts = torch.tensor([row[0] for row in sampled.responses])
    first = int(firsts[firsts != EOS].mode().values)
    seen = torch.tensor([row[1] for row in sampled.responses if row[0] == first])
    law = _law(policy, prompt, first)
    expected = (law / law.sum() * len(seen)).numpy()
    assert float(stats.chisquare(torch.bincount(seen, minlength=32).numpy(), expected).pvalue) > 1e-3
    flat = torch.full((32,), len(seen) / 32).double().numpy()
    assert float(stats.chisquare(torch.bincount(seen, minlength=32).numpy(), flat).pvalue) < 1e-6  # the test can fail


def test_its_log_probabilities_are_the_scored_ones(policy: Policy, engine: VLLMEngine) -> None:
    prompts = [(place, Prompt({}, ids)) for place, ids in enumerate(PROMPTS)]
    settings = GenerationSettings(2, EOS, 0, seed=3)
    episodes = roll_out(policy.sampling(), engine, prompts, settings=settings, decode_text=lambda ids, prompt_ids: "")
    with torch.no_grad():
        scored_N = policy.forward(pack(episodes, policy.device), values=False).logp_N
    own_N = torch.cat([episode.sampled_T for episode in episodes])
    assert own_N.tolist() == pytest.approx(scored_N.tolist(), abs=1e-4)


def test_new_weights_are_sampled_from_at_once_and_the_trained_ones_stay_as_they_were(
    policy: Policy, engine: VLLMEngine
) -> None:
    kept = [parameter.detach().clone() for parameter in policy.model.parameters()]
    before = _sampled(policy, engine, list(PROMPTS), greedy=True).responses
    assert all(torch.equal(a, b) for a, b in zip(kept, policy.model.parameters(), strict=True))
    head = policy.model.get_base_model().lm_head.weight
    with torch.no_grad():
        head.copy_(head[torch.arange(32).flip(0)])  # what was token 31 is now token 0
    after = _sampled(policy, engine, list(PROMPTS), greedy=True).responses
    with torch.no_grad():
        head.copy_(head[torch.arange(32).flip(0)])
    assert [row[0] for row in after] == [31 - row[0] for row in before]


def test_rows_have_random_numbers_of_their_own_and_end_with_the_end_token(policy: Policy, engine: VLLMEngine) -> None:
    rows = _sampled(policy, engine, [(3, 4, 5)] * 64).responses
    assert len({tuple(row) for row in rows}) > 16
    assert rows == _sampled(policy, engine, [(3, 4, 5)] * 64).responses
    assert all(EOS not in row[:-1] and (len(row) == 2 or row[-1] == EOS) for row in rows)
    assert any(row == [EOS] for row in rows)
