"""PPO in bf16 over fp32 weights: sampling, scoring and the cached lower half compute in one number format."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ppo_world import EOS, PROMPTS, language_model, policy_of, trainer_of

from pipeline.errors import PipelineError
from pipeline.ppo.build import build_policy, check_policy
from pipeline.ppo.episodes import Prompt
from pipeline.ppo.rollout import BatchedEngine, Sampled

ENGINE = BatchedEngine(6, (EOS,), 0)
ASKED = [Prompt({}, tuple(prompt)) for prompt in PROMPTS]


@pytest.mark.parametrize("kind", ["full", "lora", "cut"])
def test_what_is_sampled_is_what_scoring_finds_likeliest(kind: str) -> None:
    policy = policy_of(kind, spread=0.5, precision=torch.bfloat16)
    assert check_policy(policy, ENGINE, ASKED, (EOS,)) == ""  # the cached lower half is kept too


def test_sampling_and_scoring_may_be_a_few_roundings_apart() -> None:
    def in_fp32(model: Any, prompts: Any, **options: Any) -> Sampled:
        with torch.autocast("cpu", enabled=False):
            return BatchedEngine(20, (), 0)(model, prompts, **options)

    # Of 2,000 logits the best two are often closer than bf16 tells apart: here by up to 0.25.
    policy = build_policy(language_model(spread=0.5, vocabulary=2000), precision=torch.bfloat16)
    assert check_policy(policy, in_fp32, ASKED, ()) == ""


def test_an_engine_that_samples_something_else_is_still_found() -> None:
    def wrong(model: Any, prompts: Any, **options: Any) -> Sampled:
        return Sampled([[2, 3, 4] for _ in prompts])

    with pytest.raises(PipelineError, match="a greedy response is not what a forward pass finds likeliest"):
        check_policy(policy_of("full", spread=0.5, precision=torch.bfloat16), wrong, ASKED, (EOS,))


def test_responses_are_sampled_in_the_precision_they_are_scored_in() -> None:
    policy = policy_of("full", precision=torch.bfloat16)
    seen = []

    def engine(model: Any, prompts: Any, **options: Any) -> Sampled:
        seen.append(torch.is_autocast_enabled("cpu"))
        return ENGINE(model, prompts, **options)

    trainer = trainer_of(policy)
    trainer.engine = engine
    metrics = trainer.iterate()
    assert seen == [True]
    assert metrics["kl"] == 0.0  # policy and reference are the same weights in the same precision
    assert all(parameter.dtype == torch.float32 for parameter in policy.policy_parameters)
