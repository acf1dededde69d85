"""The average of a policy: what it is by hand, and that it is what is evaluated and kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ppo_world import PROMPTS, largest_difference, policy_of, trainer_of, weights

from pipeline.rl.ppo.state import load_state, newest_state, save_state
from pipeline.rl.rollout.episodes import Prompt


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_average_is_the_recursion_by_hand(kind: str) -> None:
    trainer = trainer_of(policy_of(kind), ema_decay=0.75, epochs=1, minibatches=2, learning_rate=1e-2)
    expected = {name: t for name, t in weights(trainer.policy).items() if name.startswith("policy.")}
    step = trainer.train_engine.step

    def remember(*arguments: object, **named: object) -> None:
        step(*arguments, **named)
        now = weights(trainer.policy)
        for name in expected:
            expected[name] = 0.75 * expected[name] + 0.25 * now[name]

    trainer.train_engine.step = remember  # type: ignore[method-assign]
    trainer.iterate()
    assert trainer.average is not None
    assert largest_difference(expected, trainer.average.weights) < 1e-6
    assert largest_difference(expected, {name: weights(trainer.policy)[name] for name in expected}) > 1e-4


def test_what_is_evaluated_is_the_average_and_the_policy_comes_back() -> None:
    held_out = [Prompt({"prompt": []}, prompt) for prompt in PROMPTS]
    trainer = trainer_of(ema_decay=0.999999, learning_rate=1e-2, held_out=held_out, iterations=2)
    before, _ = trainer.evaluate()
    for _ in trainer.iterations():
        pass
    moved, own = weights(trainer.policy), trainer.evaluate()[0]
    with trainer.saved_policy():
        averaged, _ = trainer.evaluate()
    assert averaged == pytest.approx(before, abs=1e-3)
    assert own["eval_kl"] > 10 * abs(averaged["eval_kl"])
    assert largest_difference(moved, weights(trainer.policy)) == 0


def test_the_average_goes_on_after_a_resume(tmp_path: Path) -> None:
    whole, half = (trainer_of(ema_decay=0.5, iterations=2) for _ in range(2))
    for _ in whole.iterations():
        pass
    half.iterate()
    save_state(half, tmp_path / "state", {})
    again = trainer_of(ema_decay=0.5, iterations=2)
    state_folder = newest_state(tmp_path / "state")
    assert state_folder is not None
    load_state(again, state_folder)
    again.iterate()
    assert whole.average is not None and again.average is not None
    assert largest_difference(whole.average.weights, again.average.weights) == 0
    assert all(torch.isfinite(tensor).all() for tensor in again.average.weights.values())
