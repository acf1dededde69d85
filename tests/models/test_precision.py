"""The number format of a CPU: measured, remembered, and left alone for narrow models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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


def test_a_user_without_a_name_and_a_home_has_a_place_too(tmp_path: Path) -> None:
    code = (
        "import os; from pipeline.models import precision; os.environ.pop('HOME', None); os.setuid(4242);"
        "print(precision._cache_file())"
    )
    if os.geteuid() != 0:
        pytest.skip("only root can become a user without a name")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": ""}
    line = [sys.executable, "-c", code]
    ended = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    assert Path(ended.stdout.strip()).name == "precision.json"
    assert "~" not in ended.stdout


@pytest.mark.parametrize("text", ["", "[1]", "no json"])
def test_a_damaged_memory_is_measured_again(tmp_path: Path, text: str) -> None:
    cache = tmp_path / "precision.json"
    cache.write_text(text)
    assert fastest_precision(SMALLEST_WIDTH, cache) in ("fp32", "bf16")
    assert len(json.loads(cache.read_text())) == 1


def test_both_formats_are_timed() -> None:
    assert 0.01 < speedup(64) < 100
