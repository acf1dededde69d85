"""PPO in bf16 and fp16 over fp32 weights: sampling, scoring and the cached lower half compute in one number format.

In fp16 the loss is scaled, for small gradients would be zeros.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_world import EOS, PROMPTS, language_model, policy_of, trainer_of

from pipeline.errors import PipelineError
from pipeline.models.generate.decode import GenerationSettings
from pipeline.models.generate.engines.batched import BatchedEngine
from pipeline.models.generate.engines.engine import Sampled
from pipeline.rl.policy.build import build_policy, check_policy
from pipeline.rl.ppo.state import load_state, save_state
from pipeline.rl.rollout.episodes import Prompt

ENGINE, SETTINGS = BatchedEngine(), GenerationSettings(6, EOS, 0)
ASKED = [Prompt({}, tuple(prompt)) for prompt in PROMPTS]


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["full", "lora", "cut"])
def test_what_is_sampled_is_what_scoring_finds_likeliest(kind: str, precision: torch.dtype) -> None:
    policy = policy_of(kind, spread=0.5, precision=precision)
    assert check_policy(policy, ENGINE, ASKED, SETTINGS) == ""  # the cached lower half is kept too


def test_sampling_and_scoring_may_be_a_few_roundings_apart() -> None:
    def in_fp32(model: Any, prompts: Any, *how: Any) -> Sampled:
        with torch.autocast("cpu", enabled=False):
            return ENGINE(model, prompts, *how)

    # Of 2,000 logits the best two are often closer than bf16 tells apart: here by up to 0.25.
    policy = build_policy(language_model(spread=0.5, vocabulary=2000), precision=torch.bfloat16)
    assert check_policy(policy, in_fp32, ASKED, GenerationSettings(20, [], 0)) == ""


def test_an_engine_that_samples_something_else_is_still_found() -> None:
    def wrong(model: Any, prompts: Any, *how: Any) -> Sampled:
        return Sampled([[2, 3, 4] for _ in prompts])

    with pytest.raises(PipelineError, match="a greedy response is not what a forward pass finds likeliest"):
        check_policy(policy_of("full", spread=0.5, precision=torch.bfloat16), wrong, ASKED, SETTINGS)


def test_responses_are_sampled_in_the_precision_they_are_scored_in() -> None:
    policy = policy_of("full", precision=torch.bfloat16)
    seen = []

    def engine(model: Any, prompts: Any, *how: Any) -> Sampled:
        seen.append(torch.is_autocast_enabled("cpu"))
        return ENGINE(model, prompts, *how)

    trainer = trainer_of(policy)
    trainer.engine = engine
    metrics = trainer.iterate()
    assert seen == [True]
    assert metrics["kl"] == 0.0  # policy and reference are the same weights in the same precision
    assert all(parameter.dtype == torch.float32 for parameter in policy.policy_parameters)


def test_steps_in_fp16_are_those_of_fp32_but_for_rounding() -> None:
    moved, sampled = [], []

    def engine(model: Any, prompts: Any, *how: Any) -> Sampled:
        # Both learn from the same responses: rounding may turn a sampled token, on one processor and not on another.
        if not sampled:
            sampled.append(ENGINE(model, prompts, *how))
        return sampled[0]

    for precision in (None, torch.float16):
        policy = policy_of("full", precision=precision)
        start = {name: tensor.detach().clone() for name, tensor in policy.trained().items()}
        trainer = trainer_of(policy, epochs=1, learning_rate=1e-4, adam_epsilon=1e-3)
        trainer.engine = engine
        metrics = trainer.iterate()
        assert (metrics["skipped"], metrics["steps"]) == (0, 1)
        assert metrics.get("loss_scale") == (2.0**16 if precision else None)
        moved.append(torch.cat([(t.detach() - start[name]).flatten() for name, t in policy.trained().items()]))
    plain, half = moved
    assert 0 < float((half - plain).norm() / plain.norm()) < 2e-2


def test_without_a_scale_small_gradients_are_lost_in_fp16() -> None:
    trainers = [trainer_of(policy_of("full", precision=torch.float16), epochs=1) for _ in range(2)]
    trainers[1].train_engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-20)
    scaled, lost = (trainer.iterate()["grad_norm"] for trainer in trainers)
    assert scaled > 0 and lost < 0.5 * scaled


def test_a_scale_that_is_too_large_is_halved_until_it_fits_and_nothing_counts_as_skipped() -> None:
    trainer = trainer_of(policy_of("full", precision=torch.float16), iterations=4, max_skipped=1)
    trainer.train_engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    before = {name: tensor.detach().clone() for name, tensor in trainer.policy.trained().items()}
    first = trainer.iterate()
    assert (first["skipped"], first["steps"], first["loss_scale"]) == (0, 0, 2.0**18)
    for name, tensor in trainer.policy.trained().items():
        assert torch.equal(tensor, before[name])
    rest = [trainer.iterate() for _ in range(3)]
    assert rest[-1]["steps"] == 2 and rest[-1]["skipped"] == 0
    assert rest[-1]["loss_scale"] == rest[-2]["loss_scale"] < 2.0**18


def test_a_loss_that_is_no_number_is_skipped_and_counted_whatever_the_scale() -> None:
    trainer = trainer_of(policy_of("full", precision=torch.float16), max_skipped=2)
    with torch.no_grad():
        trainer.policy.value_parameters[0].fill_(float("nan"))
    with pytest.raises(PipelineError, match="2 optimizer steps in a row had a gradient that is not finite"):
        trainer.iterate()


def test_the_scale_is_kept_over_a_resume(tmp_path: Path) -> None:
    def made() -> Any:
        trainer = trainer_of(policy_of("full", precision=torch.float16), iterations=4)
        trainer.train_engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
        return trainer

    whole, stopped, resumed = made(), made(), trainer_of(policy_of("full", precision=torch.float16), iterations=4)
    rows = [whole.iterate() for _ in range(4)]
    for _ in range(2):
        stopped.iterate()
    save_state(stopped, tmp_path / "state", {})
    load_state(resumed, tmp_path / "state")
    assert resumed.train_engine.scaler.get_scale() == stopped.train_engine.scaler.get_scale() < 2.0**20
    again = [resumed.iterate() for _ in range(2)]
    assert [row["loss_scale"] for row in again] == [row["loss_scale"] for row in rows[2:]]
    for name, tensor in resumed.policy.trained().items():
        assert torch.equal(tensor, whole.policy.trained()[name])
