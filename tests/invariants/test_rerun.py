"""A rerun of a finished recipe runs nothing; the same recipe in another place makes the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROBE = """
import json, os, sys
import psutil
from pipeline.cli import main
try:
    main()
except SystemExit as ended:
    code = ended.code
heavy = [name for name in ("torch", "transformers", "datasets", "trl", "numpy", "scipy") if name in sys.modules]
found = {"code": code, "heavy": heavy, "children": len(psutil.Process().children())}
print(json.dumps(found), file=sys.stderr)
"""


def test_a_rerun_starts_no_process_and_imports_no_torch(
    chain: Any, tmp_path: Path, journal: Callable[[Path], list[dict[str, Any]]]
) -> None:
    store = tmp_path / "store"
    shutil.copytree(chain.store.root, store, ignore=shutil.ignore_patterns(".runs"))
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", PROBE, "run", str(chain.recipe), "--store", str(store)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    report = json.loads(ended.stderr.splitlines()[-1])
    assert (report["code"], report["heavy"], report["children"]) == (0, [], 0)
    events = journal(store)
    assert [(event["event"], event.get("stage")) for event in events] == [
        ("run_started", None),
        *[("stage_cached", name) for name in ("tokenizer", "base", "sft", "rm", "dpo", "report")],
        ("run_ended", None),
    ]
    assert "nothing to run" in ended.stdout
    assert {artifact.manifest.version for artifact in chain.store.artifacts()} == {1}


def test_the_same_recipe_in_another_place_makes_the_same_bytes(
    chain: Any, tmp_path: Path, make_tiny_world: Callable[[Path], Path], call: Any
) -> None:
    """Other folders, another store, other processes, another name of the data's folder: every payload is equal."""
    from pipeline.artifacts import Store

    recipe = make_tiny_world(tmp_path / "elsewhere" / "deeper")
    ended = call("run", recipe, "--store", tmp_path / "other", cwd=tmp_path / "elsewhere")
    assert ended.returncode == 0, ended.stderr
    made = {artifact.manifest.name: artifact.manifest for artifact in Store(tmp_path / "other").artifacts()}
    for name, manifest in made.items():
        assert manifest.files == chain[name].manifest.files, name
    assert {name: manifest.digest for name, manifest in made.items()} == chain.digests
    assert len(made) == 6
    assert {name: manifest.metrics for name, manifest in made.items()} == {
        name: chain[name].manifest.metrics for name in made
    }


def test_another_seed_makes_other_weights(chain: Any, as_input: Any, run_stage: Callable[..., Any]) -> None:
    """The counterpart: without it, equal bytes could mean that nothing was learnt or drawn."""
    train = {"max_steps": 2, "batch_size": 16}
    data = {"data": chain.recipe.parent / "demos.jsonl"}
    inputs = {"model": as_input(chain["base"])}
    weights = [
        (run_stage("sft", {"train": train}, data=data, inputs=inputs, seed=seed).out / "model.safetensors").read_bytes()
        for seed in (1, 1, 2)
    ]
    assert weights[0] == weights[1] != weights[2]


def test_a_bad_row_is_reported_with_file_and_line_before_anything_runs(
    tmp_path: Path, tiny_recipe: Path, call: Any
) -> None:
    pairs = tiny_recipe.parent / "pairs.jsonl"
    lines = pairs.read_text().splitlines()
    lines[9] = json.dumps({"prompt": "which ?", "chosen": "it is red ."})
    pairs.write_text("\n".join(lines) + "\n")
    ended = call("run", tiny_recipe, "--store", tmp_path / "store", cwd=tmp_path)
    assert ended.returncode == 2
    assert "pairs.jsonl:10" in ended.stderr
    assert "rejected" in ended.stderr
    assert not list((tmp_path / "store").glob("*/*/manifest.json"))
