"""The running sums of a trainer between two log entries, kept in its checkpoints.

transformers' Trainer adds up losses, and trl's trainers collect metrics, until the next log entry; neither writes them
into a checkpoint. Without them a resumed run would log other numbers than one that was never cut off.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SUMS_FILE = "running_sums.json"


class KeepsSums:
    """Mixin for a trainer: its running sums go into every checkpoint, before the file that makes it whole."""

    args: Any
    state: Any

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SUMS_FILE).write_text(json.dumps(sums_of(self)), encoding="utf-8")
        super()._save_checkpoint(model, trial)  # type: ignore[misc]


def sums_of(trainer: Any) -> dict[str, Any]:
    """Return what the trainer has added up since its last log entry; floats survive JSON bit for bit."""
    return {
        "loss": trainer._tr_loss.item(),
        "logged_loss": trainer._total_loss_scalar,
        "last_logged": trainer._globalstep_last_logged,
        "metrics": {name: list(values) for name, values in _metrics(trainer).items()},
        "tokens": getattr(trainer, "_total_train_tokens", 0),
    }


def restore_sums(trainer: Any, checkpoint: Path | None) -> None:
    """Give a trainer that has just reset itself the sums of a checkpoint; nothing without one."""
    if checkpoint is None:
        return
    kept = json.loads((checkpoint / SUMS_FILE).read_text(encoding="utf-8"))
    trainer._tr_loss += kept["loss"]
    trainer._total_loss_scalar = kept["logged_loss"]
    trainer._globalstep_last_logged = kept["last_logged"]
    for name, values in kept["metrics"].items():
        _metrics(trainer)[name] = list(values)
    if hasattr(trainer, "_total_train_tokens"):
        trainer._total_train_tokens = kept["tokens"]


def _metrics(trainer: Any) -> dict[str, list[float]]:
    """Return what a trainer of trl collects while training; empty for one of transformers."""
    collected: dict[str, list[float]] = getattr(trainer, "_metrics", {}).get("train", {})
    return collected
