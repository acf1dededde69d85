"""The number format of a CPU: measured, remembered, and left alone for narrow models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.models import precision
from pipeline.models.precision import SMALLEST_WIDTH, fastest_precision, speedup


def test_it_measures_once_and_remembers(tmp_path: Path) -> None:
    cache = tmp_path / "home" / "precision.json"
    picked = fastest_precision(SMALLEST_WIDTH, cache)
    [(key, ratio)] = json.loads(cache.read_text()).items()
    assert f"width {SMALLEST_WIDTH}" in key
    assert picked == ("bf16" if ratio >= precision.WORTH else "fp32")
    for said, expected in ((0.5, "fp32"), (2.0, "bf16")):  # what is remembered is what counts
        cache.write_text(json.dumps({key: said}))
        assert fastest_precision(SMALLEST_WIDTH, cache) == expected


def test_a_narrow_model_is_not_measured(tmp_path: Path) -> None:
    cache = tmp_path / "precision.json"
    assert fastest_precision(SMALLEST_WIDTH - 1, cache) == "fp32"
    assert not cache.exists()


@pytest.mark.parametrize("text", ["", "[1]", "no json"])
def test_a_damaged_memory_is_measured_again(tmp_path: Path, text: str) -> None:
    cache = tmp_path / "precision.json"
    cache.write_text(text)
    assert fastest_precision(SMALLEST_WIDTH, cache) in ("fp32", "bf16")
    assert len(json.loads(cache.read_text())) == 1


def test_both_formats_are_timed() -> None:
    assert 0.01 < speedup(64) < 100
