"""A run saved in the middle and taken up in a new process does what the whole run does, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_world import first_is_x, largest_difference, policy_of, trainer_of, weights, without_seconds
from ranks import be_rank, run_ranks

from pipeline.rl.ppo.state import load_state, load_weights, newest_state, save_state, save_weights
from pipeline.rl.ppo.trainer import PPOTrainer

SETTINGS: dict[str, Any] = {
    "iterations": 4,
    "minibatches": 2,
    "lr_scheduler_type": "linear",
    "kl_target": 0.01,
    "kl_horizon": 50,
    "score_scaling": "running",
    "score_center": "reference",
    "target_kl": 1e-6,  # trips, so that the guards have something to remember
}


def _trainer(kind: str) -> PPOTrainer:
    return trainer_of(policy_of(kind), first_is_x, **SETTINGS)


def _run(trainer: PPOTrainer, iterations: int) -> list[dict[str, float]]:
    metrics = []
    for _ in range(iterations):
        metrics.append(without_seconds(trainer.iterate()))
        trainer.guards.look(metrics[-1], trainer.settings, trainer.iteration - 1)
    return metrics


def finish(kind: str, state: str) -> None:
    """Take up a saved run in a process of its own, finish it, and save beside it its end and what it found."""
    trainer, folder = _trainer(kind), Path(state)
    assert load_state(trainer, folder) == {"rows": [1, 2]}
    folder.with_name("found.json").write_text(json.dumps(_run(trainer, 2)))
    save_state(trainer, folder.with_name("end"), {})


def _moments(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    state = trainer.optimizer.state_dict()["state"]
    return {f"{i}.{name}": tensor for i, entry in state.items() for name, tensor in entry.items()}


@pytest.mark.parametrize("kind", ["full", "cut"])
def test_four_iterations_are_two_and_two_in_a_new_process(kind: str, tmp_path: Path) -> None:
    whole = _trainer(kind)
    expected = _run(whole, 4)
    assert whole.guards.wild_ratio > 0 or whole.guards.rate < 1

    first = _trainer(kind)
    assert _run(first, 2) == expected[:2]
    save_state(first, tmp_path / "state", {"rows": [1, 2]})
    run_ranks(__file__, kind, str(tmp_path / "state"), count=1)
    assert json.loads((tmp_path / "found.json").read_text()) == expected[2:]

    last = _trainer(kind)
    load_state(last, tmp_path / "end")
    assert largest_difference(weights(last.policy), weights(whole.policy)) == 0
    assert largest_difference(_moments(last), _moments(whole)) == 0
    for name in ("iteration", "steps", "kl", "scale", "guards"):
        assert getattr(last, name) == getattr(whole, name), name
    assert [g["lr"] for g in last.optimizer.param_groups] == [g["lr"] for g in whole.optimizer.param_groups]
    assert whole.kl.coef != 0.05


def test_a_kill_between_two_renames_leaves_the_state_before(tmp_path: Path) -> None:
    trainer, folder = _trainer("full"), tmp_path / "state"
    assert newest_state(folder) is None
    trainer.iteration = 1
    save_state(trainer, folder, {})
    trainer.iteration = 2
    save_state(trainer, folder, {})
    assert newest_state(folder) == folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]
    folder.rename(tmp_path / "state.old")  # killed here: the new one is still `state.part`
    (tmp_path / "state.part").mkdir()
    state_folder = newest_state(folder)
    assert state_folder == tmp_path / "state.old"
    load_state(trainer, state_folder)
    assert trainer.iteration == 2
    save_state(trainer, folder, {})
    assert newest_state(folder) == folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state"]


def test_weights_of_another_layout_are_refused(tmp_path: Path) -> None:
    save_weights(trainer_of(policy_of("lora")), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="checkpoint has other weights"):
        load_weights(trainer_of(policy_of("full")), tmp_path / "weights.safetensors")


if __name__ == "__main__":
    be_rank(finish)
