"""The running sums of a trainer between two log entries, kept in its checkpoints.

transformers' Trainer adds up losses, and trl's trainers collect metrics, until the next log entry; neither writes them
into a checkpoint. Without them a resumed run would log other numbers than one that was never cut off.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.parallel.ranks import Ranks
from pipeline.training.best import best_checkpoint
from pipeline.training.checkpoints import mark_whole

SUMS_FILE = "running_sums-{rank}.json"
"""One for each process."""


class RunningMetrics:
    """Mixin for a trainer: its running sums go into every checkpoint, which is then declared whole."""

    args: Any
    state: Any

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / SUMS_FILE.format(rank=Ranks.current().index)
        file.write_text(json.dumps(metrics_of(self)), encoding="utf-8")
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        mark_whole(folder, keep=best_checkpoint(self))


def metrics_of(trainer: Any) -> dict[str, Any]:
    """Return what the trainer has added up since its last log entry; floats survive JSON bit for bit."""
    return {
        "loss": trainer._tr_loss.item(),
        "logged_loss": trainer._total_loss_scalar,
        "last_logged": trainer._globalstep_last_logged,
        "metrics": {name: list(values) for name, values in _metrics(trainer).items()},
        "tokens": getattr(trainer, "_total_train_tokens", 0),
        "watch": trainer.watch.plain() if hasattr(trainer, "watch") else {},
    }


def restore_metrics(trainer: Any, checkpoint: Path | None) -> None:
    """Give a trainer that has just reset itself the sums of a checkpoint; nothing without one.

    A process gets its own sums, one of a run with another number of processes their mean: that is what is logged.
    """
    if checkpoint is None:
        return
    kept = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted(checkpoint.glob(SUMS_FILE.format(rank="*")))
    ]
    ranks = Ranks.current()
    own = kept[ranks.index] if len(kept) == ranks.count else kept[0]
    same = len(kept) == ranks.count
    trainer._tr_loss += own["loss"] if same else sum(one["loss"] for one in kept) / len(kept)
    trainer._total_loss_scalar = own["logged_loss"]
    trainer._globalstep_last_logged = own["last_logged"]
    for name, values in own["metrics"].items():
        _metrics(trainer)[name] = list(values)
    if hasattr(trainer, "_total_train_tokens"):
        trainer._total_train_tokens = own["tokens"]
    if hasattr(trainer, "watch"):
        trainer.watch = type(trainer.watch)(**own.get("watch", {}))


def _metrics(trainer: Any) -> dict[str, list[float]]:
    """Return what a trainer of trl collects while training; empty for one of transformers."""
    collected: dict[str, list[float]] = getattr(trainer, "_metrics", {}).get("train", {})
    return collected
