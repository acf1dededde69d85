"""The whole state of a PPO run on disk: what is trained, the optimizer, what adapts, and how far it is.

Nothing random needs keeping: every random number is a function of the seed, the iteration and a place in the rollout.
A state is written beside the old one and renamed, so a kill leaves a whole one.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.ppo.control import KLController, ScoreScale
from pipeline.ppo.guards import Guards
from pipeline.ppo.policy import Policy
from pipeline.ppo.trainer import PPOTrainer

WEIGHTS, OPTIMIZER, NUMBERS = "weights.safetensors", "optimizer.pt", "state.json"


def save_weights(policy: Policy, file: Path) -> None:
    """Write what is trained; whole or not at all."""
    part = file.with_suffix(".part")
    save_file({name: tensor.cpu().contiguous() for name, tensor in policy.trained_tensors().items()}, part)
    part.replace(file)


def load_weights(policy: Policy, file: Path) -> None:
    """Read what `save_weights` wrote."""
    policy.load_tensors(load_file(file))


def save_state(trainer: PPOTrainer, folder: Path, extra: dict[str, Any]) -> None:
    """Write the state of a run between two iterations.

    Args:
        trainer: whose.
        folder: replaced as a whole.
        extra: what its caller wants to know again after a resume, as JSON.
    """
    part, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_weights(trainer.policy, part / WEIGHTS)
    torch.save(trainer.optimizer.state_dict(), part / OPTIMIZER)
    numbers = {
        "iteration": trainer.iteration,
        "steps": trainer.steps,
        "kl": asdict(trainer.kl),
        "scale": asdict(trainer.scale),
        "guards": trainer.guards.plain(),
        "extra": extra,
    }
    (part / NUMBERS).write_text(json.dumps(numbers), encoding="utf-8")
    for name in (WEIGHTS, OPTIMIZER, NUMBERS):
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
    load_weights(trainer.policy, folder / WEIGHTS)
    trainer.optimizer.load_state_dict(torch.load(folder / OPTIMIZER, weights_only=True))
    trainer.iteration, trainer.steps = numbers["iteration"], numbers["steps"]
    trainer.kl, trainer.scale = KLController(**numbers["kl"]), ScoreScale(**numbers["scale"])
    trainer.guards = Guards(**numbers["guards"])
    extra: dict[str, Any] = numbers["extra"]
    return extra
