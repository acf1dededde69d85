"""The benchmark of the labelling app runs, in small, and loses no label in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_label_that_was_acknowledged_is_there_once() -> None:
    sizes = {"people": "4", "events": "400", "pairs": "2000", "seconds": "2", "requests": "1500", "database": "sqlite"}
    options = [word for name, value in sizes.items() for word in (f"--{name}", value)]
    line = [sys.executable, str(ROOT / "benchmarks" / "collect.py"), *options]
    ended = subprocess.run(
        line, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    figures = {told["figure"]: told for told in map(json.loads, ended.stdout.splitlines())}
    assert [figures[name]["value"] for name in ("lost", "doubled", "chain")] == [0, 0, 0]
    assert figures["lost"]["sent"] > 5
    assert figures["server_errors"]["value"] == 0 and figures["requests"]["value"] >= 1500
    assert set(figures) >= {"paced_p95_ms", "flat_out_per_s", "agreement_s", "export_s", "status_s"}
