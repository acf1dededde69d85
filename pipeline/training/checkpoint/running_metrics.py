"""Saves a trainer's running sums between two log entries in its checkpoints.

transformers' Trainer adds up losses, and trl's trainers collect metrics, until the next log entry; neither saves them
in a checkpoint. Without them a resumed run would log other numbers than an uninterrupted one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.parallel.ranks import Ranks
from pipeline.plain_data import JsonObject

if TYPE_CHECKING:
    from transformers import Trainer

SUMS_FILE = "running_sums-{rank}.json"
"""File of each process in a checkpoint."""


def save_metrics(trainer: Trainer, folder: Path) -> None:
    """Write this process's running sums into a checkpoint's folder."""
    file = folder / SUMS_FILE.format(rank=Ranks.current().index)
    file.write_text(json.dumps(metrics_of(trainer)), encoding="utf-8")


def metrics_of(trainer: Trainer) -> JsonObject:
    """Return the trainer's running sums since its last log entry; floats survive JSON bit for bit."""
    return {
        "loss": trainer._tr_loss.item(),
        "logged_loss": trainer._total_loss_scalar,
        "last_logged": trainer._globalstep_last_logged,
        "metrics": {name: list(values) for name, values in _metrics(trainer).items()},
        "tokens": getattr(trainer, "_total_train_tokens", 0),
    }


def restore_metrics(trainer: Trainer, checkpoint: Path | None) -> None:
    """Restore a checkpoint's running sums in a trainer that has just reset its state; does nothing without one.

    With the same number of processes each one gets its own sums. Otherwise all get the mean loss, which is what would
    be logged, and the first process's metrics.
    """
    if checkpoint is None:
        return
    saved = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted(checkpoint.glob(SUMS_FILE.format(rank="*")))
    ]
    ranks = Ranks.current()
    own = saved[ranks.index] if len(saved) == ranks.count else saved[0]
    same = len(saved) == ranks.count
    trainer._tr_loss += own["loss"] if same else sum(one["loss"] for one in saved) / len(saved)
    trainer._total_loss_scalar = own["logged_loss"]
    trainer._globalstep_last_logged = own["last_logged"]
    for name, values in own["metrics"].items():
        _metrics(trainer)[name] = list(values)
    if hasattr(trainer, "_total_train_tokens"):
        trainer._total_train_tokens = own["tokens"]


def _metrics(trainer: Trainer) -> dict[str, list[float]]:
    """Return the metrics that a trl trainer collects while training; empty for a transformers Trainer."""
    collected: dict[str, list[float]] = getattr(trainer, "_metrics", {}).get("train", {})
    return collected
