"""Saves and loads the state of a PPO run: weights, optimizer, adaptive quantities, and progress.

No random state is saved, because every random number is a function of the seed, the iteration and an index in the
rollout. A new state is written next to the old one and then renamed, so a kill leaves a complete one. The state does
not depend on the train engine or on the number of ranks: a run can resume with others.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.plain_data import JsonObject
from pipeline.rl.ppo.control import KLController, ScoreScale
from pipeline.rl.ppo.guards import Guards
from pipeline.rl.ppo.trainer import PPOTrainer

WEIGHTS, OPTIMIZER, AVERAGE, NUMBERS = (
    "weights.safetensors",
    "optimizer.safetensors",
    "average.safetensors",
    "state.json",
)


def save_weights(trainer: PPOTrainer, file: Path) -> None:
    """Write the full trained weights atomically; every rank must call it, and the first writes before any returns."""
    tensors = trainer.train_engine.weights()
    if trainer.ranks.is_first:
        _write(tensors, file)
    trainer.ranks.barrier()  # else another rank could load the weights that the file had before


def load_weights(trainer: PPOTrainer, file: Path) -> None:
    """Load the weights that `save_weights` wrote."""
    trainer.train_engine.load_weights(load_file(file))


def _write(tensors: dict[str, Tensor], file: Path) -> None:
    part = file.with_suffix(".part")
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, part)
    part.replace(file)


def save_state(trainer: PPOTrainer, folder: Path, extra: JsonObject) -> None:
    """Write the state of a run between two iterations; every rank must call it, and the first writes.

    Args:
        trainer: trainer to save.
        folder: folder of the state, which is replaced.
        extra: further state of the caller, as plain data for JSON.
    """
    files = {WEIGHTS: trainer.train_engine.weights(), OPTIMIZER: trainer.train_engine.moments()}
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
            "loss_scale": trainer.train_engine.scaler.state_dict(),
            "extra": extra,
        }
        _replace(folder, files, numbers)
    trainer.ranks.barrier()


def _replace(folder: Path, files: dict[str, dict[str, Tensor]], numbers: JsonObject) -> None:
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
    """Return the folder of the newest complete state; a kill between the two renames leaves it as `….old`."""
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / NUMBERS).is_file():
            return candidate
    return None


def load_state(trainer: PPOTrainer, folder: Path) -> JsonObject:
    """Load a saved state into a trainer; return the caller's ``extra``."""
    numbers = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
    load_weights(trainer, folder / WEIGHTS)
    trainer.train_engine.load_moments(load_file(folder / OPTIMIZER))
    if trainer.average is not None:
        trainer.average.weights = load_file(folder / AVERAGE)
    for group, rate in zip(trainer.optimizer.param_groups, numbers["rates"], strict=True):
        group["lr"] = rate
    trainer.iteration, trainer.steps = numbers["iteration"], numbers["steps"]
    trainer.kl, trainer.scale = KLController(**numbers["kl"]), ScoreScale(**numbers["scale"])
    trainer.guards = Guards(**numbers["guards"])
    if numbers.get("loss_scale"):
        trainer.train_engine.scaler.load_state_dict(numbers["loss_scale"])
    extra: JsonObject = numbers["extra"]
    return extra
