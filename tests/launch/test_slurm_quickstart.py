"""The quickstart's own recipe as jobs of a real Slurm (conftest.py), cancelled in its middle, run again: a local run's.

All of it takes minutes, so the suite runs the same file with fewer steps; `make slurm-quickstart` runs it as it is.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from pipeline.artifacts import Artifact, Store

pytestmark = [pytest.mark.xdist_group("slurm"), pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "quickstart.yaml"
ONE_THREAD = ("--set", "compute.threads=1")
"""On both sides: sums in another number of threads round otherwise."""
FEWER = {
    "data.asks.limit": 40,
    "stages.base.train.max_steps": 150,
    "stages.base.train.lr_scheduler_kwargs.num_decay_steps": 50,
    "stages.sft.train.max_steps": 20,
    "stages.candidates.limit": 40,
    "stages.dpo.train.max_steps": 20,
    "stages.ppo.train.iterations": 12,
    "stages.ppo.train.eval_every": 4,
}
STAGES = ("tokenizer", "base", "sft", "candidates", "people", "dpo", "rm", "ppo", "report")


def _artifacts(store: Path) -> dict[str, Artifact]:
    return {artifact.manifest.name: artifact for artifact in Store(store).artifacts()}


def _past(store: Path, stage: str, share: float) -> Callable[[], bool]:
    """Return whether a stage's job is past that share of its steps."""

    def is_past() -> bool:
        for file in store.glob(f".runs/*/{stage}/progress.json"):
            at = json.loads(file.read_bytes())
            if share * at["total"] < at["step"] < at["total"]:
                return True
        return False

    return is_past


def _cancel_in(stage: str, line: tuple[Any, ...], store: Path, cluster: Any, minutes: int) -> None:
    """Run the chain until a stage is in its middle, cancel every job, and see that nothing is left running."""
    process = cluster.start("run", *line, cwd=ROOT)
    try:
        until(_past(store, stage, 0.3), f"the middle of {stage}", 60 * minutes)
        code, said = cluster.trueup("cancel", *line, cwd=ROOT)
        out, _ = process.communicate(timeout=800)
    except BaseException:
        process.send_signal(signal.SIGKILL)
        print(process.communicate()[0])
        raise
    assert code == 0 and f"cancelled {stage} (job " in said and "cancelled report" in said, said
    assert process.returncode == 1 and f"stage {stage}: job " in out and "was cancelled. Run again" in out, out
    assert "Traceback" not in out
    until(lambda: not cluster.active("quickstart-"), "an empty queue")
    made = _artifacts(store)
    assert set(made) <= set(STAGES[: STAGES.index(stage)]), made


@pytest.mark.parametrize(
    ("smaller", "cancelled", "minutes"),
    [
        pytest.param(FEWER, ("ppo",), 10, id="fewer-steps"),
        pytest.param({}, ("base", "ppo"), 40, id="whole", marks=pytest.mark.whole),
    ],
)
def test_the_quickstart_cancelled_in_its_middle_and_run_again_is_the_local_one(
    smaller: dict[str, Any], cancelled: tuple[str, ...], minutes: int, tmp_path: Path, command: Any, cluster: Any
) -> None:
    settings = [part for key, value in smaller.items() for part in ("--set", f"{key}={value}")]
    here = ("run", RECIPE, "--store", tmp_path / "local", *settings, *ONE_THREAD)
    ended = command(*here, cwd=ROOT, timeout_s=60 * minutes)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    local = _artifacts(tmp_path / "local")
    assert set(local) == set(STAGES)

    store = tmp_path / "store"
    slurm = ("--set", "compute.launcher=slurm", "--set", "compute.slurm.time=60")
    line = (RECIPE, "--store", store, *settings, *ONE_THREAD, *slurm)
    for stage in cancelled:
        _cancel_in(stage, line, store, cluster, minutes)
    code, out = cluster.trueup("run", *line, cwd=ROOT, timeout_s=60 * minutes)
    assert code == 0, out
    assert f"{cancelled[-1]}: resumes at " in out, out

    made = _artifacts(store)
    assert set(made) == set(STAGES)
    for name, artifact in made.items():
        mine, its = local[name].manifest, artifact.manifest
        assert its.runtime["threads"] == mine.runtime["threads"] == 1
        assert {path: record.sha256 for path, record in its.files.items()} == {
            path: record.sha256 for path, record in mine.files.items()
        }, name
        assert its.metrics == mine.metrics, name
        weights = "model.safetensors"
        assert (artifact.path / weights).exists() == (local[name].path / weights).exists()
    assert sum((artifact.path / "model.safetensors").exists() for artifact in made.values()) == 5
