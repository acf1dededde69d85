"""What `pip install trueup` gives: the wheel carries recipes and the quickstart world, and the command runs there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the project's wheel, without its dependencies, into a folder of its own; return the folder."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(folder), str(ROOT)], check=True, cwd=folder)
    wheel = next(folder.glob("trueup-*.whl"))
    target = folder / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, cwd=folder)
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]
    return target


def _trueup(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )


def test_the_example_is_written_out_and_plans(installed: Path, tmp_path: Path) -> None:
    made = _trueup(installed, tmp_path, "new", "--example", "quickstart", "demo")
    assert made.returncode == 0, made.stderr
    world = tmp_path / "demo" / "data" / "quickstart"
    for file in (ROOT / "data" / "quickstart").glob("*.jsonl"):
        assert (world / file.name).read_bytes() == file.read_bytes()
    plan = _trueup(installed, tmp_path / "demo", "plan", "recipes/quickstart.yaml", "--json")
    assert plan.returncode == 0, plan.stderr
    assert [stage["status"] for stage in json.loads(plan.stdout)["stages"]].count("pending") >= 6


def test_the_first_stage_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    assert _trueup(installed, tmp_path, "new", "--example", "quickstart", "demo").returncode == 0
    run = _trueup(installed, tmp_path / "demo", "run", "recipes/quickstart.yaml", "--until", "tokenizer")
    assert run.returncode == 0, run.stderr
    assert list((tmp_path / "demo" / "store" / "tokenizer").glob("*/tokenizer.json"))
