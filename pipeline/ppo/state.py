"""The whole state of a PPO run on disk: what is trained, the optimizer, what adapts, and how far it is.

Nothing random needs keeping: every random number is a function of the seed, the iteration and a place in the rollout.
A state is written beside the old one and renamed, so a kill leaves a whole one. It does not depend on what held the
weights or on the number of processes: a run may go on with others.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.ppo.control import KLController, ScoreScale
from pipeline.ppo.guards import Guards
from pipeline.ppo.trainer import PPOTrainer

WEIGHTS, OPTIMIZER, AVERAGE, NUMBERS = (
    "weights.safetensors",
    "optimizer.safetensors",
    "average.safetensors",
    "state.json",
)


def save_weights(trainer: PPOTrainer, file: Path) -> None:
    """Write what is trained, whole or not at all; every process calls it, the first writes."""
    tensors = trainer.steps_with.weights()
    if trainer.ranks.is_first:
        _write(tensors, file)


def load_weights(trainer: PPOTrainer, file: Path) -> None:
    """Read what `save_weights` wrote."""
    trainer.steps_with.load_weights(load_file(file))


def _write(tensors: dict[str, Tensor], file: Path) -> None:
    part = file.with_suffix(".part")
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, part)
    part.replace(file)


def save_state(trainer: PPOTrainer, folder: Path, extra: dict[str, Any]) -> None:
    """Write the state of a run between two iterations; every process calls it, the first writes.

    Args:
        trainer: whose.
        folder: replaced as a whole.
        extra: what its caller wants to know again after a resume, as JSON.
    """
    files = {WEIGHTS: trainer.steps_with.weights(), OPTIMIZER: trainer.steps_with.moments()}
    if trainer.average is not None:
        files[AVERAGE] = trainer.average.weights
    if trainer.ranks.is_first:
        numbers = {
            "iteration": trainer.iteration,
            "steps": trainer.steps,
            "rates": [group["lr"] for group in trainer.optimizer.param_groups],
            "kl": asdict(trainer.kl),
            "scale": asdict(trainer.scale),
            "guards": trainer.guards.plain(),
            "loss_scale": trainer.steps_with.scaler.state_dict(),
            "extra": extra,
        }
        _replace(folder, files, numbers)
    trainer.ranks.wait()


def _replace(folder: Path, files: dict[str, dict[str, Tensor]], numbers: dict[str, Any]) -> None:
    part, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, tensors in files.items():
        _write(tensors, part / name)
    (part / NUMBERS).write_text(json.dumps(numbers), encoding="utf-8")
    for name in (*files, NUMBERS):
        with (part / name).open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def newest_state(folder: Path) -> Path | None:
    """Return the folder of the newest whole state: a kill between two renames leaves it under its old name."""
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / NUMBERS).is_file():
            return candidate
    return None


def load_state(trainer: PPOTrainer, folder: Path) -> dict[str, Any]:
    """Put a trainer where a saved one was; return the caller's extra."""
    numbers = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
    load_weights(trainer, folder / WEIGHTS)
    trainer.steps_with.load_moments(load_file(folder / OPTIMIZER))
    if trainer.average is not None:
        trainer.average.weights = load_file(folder / AVERAGE)
    for group, rate in zip(trainer.optimizer.param_groups, numbers["rates"], strict=True):
        group["lr"] = rate
    trainer.iteration, trainer.steps = numbers["iteration"], numbers["steps"]
    trainer.kl, trainer.scale = KLController(**numbers["kl"]), ScoreScale(**numbers["scale"])
    trainer.guards = Guards(**numbers["guards"])
    if numbers.get("loss_scale"):
        trainer.steps_with.scaler.load_state_dict(numbers["loss_scale"])
    extra: dict[str, Any] = numbers["extra"]
    return extra
