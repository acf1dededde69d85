"""The estimate of memory against the peak of resident memory of real stages on a CPU, each in its own process.

Measured is what a stage needs beyond the same stage on a minute model: the libraries a process has loaded (485 MiB
here) are left out on both sides, for they would hide an error. The same stage's peak differs from run to run with the
holes in glibc's heap: by 3 % mostly, beneath adapters by 15 %, so those run three times.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from pipeline.artifacts import Store
from pipeline.forecast import forecasts
from pipeline.plan import make_plan
from pipeline.recipe import load
from pipeline.stages import load_all

pytestmark = pytest.mark.xdist_group("measured memory")  # one worker: every stage is measured once
FITTED = {"base": "small", "wide": "small", "long": "small", "qwen": "small", "lora": "small-lora", "dpo": "small-dpo"}
"""What `pipeline.estimate.memory.SLACK` was chosen on, and the minute stage of the same kind."""
REPEATED = {"lora": ("lora", "lora-again", "lora-thrice")}
HELD_OUT = {
    "neox": "small",
    "gpt2": "small",
    "checkpointed": "small",
    "sft": "small-lora",
    "rm": "small-rm",
    "ppo": "small-rm",
    "separate": "small-rm",
}
"""Architectures, kinds and settings that no constant has seen."""


@pytest.fixture(scope="module")
def measured(
    memory_recipe: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the estimated and the measured peak in bytes, by stage."""
    load_all()
    folder = tmp_path_factory.mktemp("store")
    needs, unknown = forecasts(make_plan(load(memory_recipe), Store(folder)), Store(folder))
    assert unknown == []
    estimated = {need.stage.spec.name: need.memory.peak for need in needs}
    line = [sys.executable, "-m", "pipeline.cli", "run", str(memory_recipe), "--store", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=memory_recipe.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    manifests = [json.loads(file.read_text()) for file in folder.glob("*/*/manifest.json")]
    return estimated, {m["name"]: m["peak_memory_mib"] * 2**20 for m in manifests}


@pytest.mark.parametrize(("name", "small"), (FITTED | HELD_OUT).items())
def test_the_estimate_is_within_15_percent_of_the_measured_peak(
    measured: tuple[dict[str, float], dict[str, float]], name: str, small: str
) -> None:
    estimated, peaks = measured
    needed = median(peaks[run] for run in REPEATED.get(name, (name,))) - peaks[small]
    assert needed > 250 * 2**20
    assert estimated[name] - estimated[small] == pytest.approx(needed, rel=0.15)
