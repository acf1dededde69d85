"""The benchmark of the stages measures training steps, not what else tells of its progress."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "stage_speed.py"


@pytest.fixture(scope="module")
def stage_speed() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("stage_speed", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_tokens_between_two_training_steps_are_timed(stage_speed: Any) -> None:
    figures = stage_speed.ours("pretrain", steps=2, seed=0)
    assert figures["steps"] == 2
    assert figures["tokens_per_s"] > 0 and figures["tokens_per_cpu_s"] > 0
    rows = stage_speed.pretrain_rows(2, 0)
    per_row = len(rows[0]["text"].split()) + 1
    assert stage_speed._tokens([per_row] * len(rows), 0, 2, 4) == 2 * stage_speed.BATCH * per_row
