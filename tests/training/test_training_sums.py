"""Running sums when the number of processes changed between two sessions."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.training.checkpoint.running_metrics import restore_metrics


def test_sums_of_two_processes_become_their_mean_in_one(tmp_path: Path) -> None:
    for rank, loss in enumerate((1.0, 4.0)):
        sums: dict[str, Any] = {
            "loss": loss,
            "logged_loss": 0.5,
            "last_logged": 3,
            "metrics": {"a": [0.25]},
            "tokens": 7,
        }
        (tmp_path / f"running_sums-{rank}.json").write_text(json.dumps(sums))
    trainer = SimpleNamespace(_tr_loss=torch.tensor(0.0), _metrics={"train": {}}, _total_train_tokens=0)
    restore_metrics(trainer, tmp_path)
    assert float(trainer._tr_loss) == pytest.approx(2.5)
    assert (trainer._total_loss_scalar, trainer._globalstep_last_logged, trainer._total_train_tokens) == (0.5, 3, 7)
    assert trainer._metrics["train"] == {"a": [0.25]}
