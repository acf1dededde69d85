"""A kind of another package is known to every verb: the one of docs/python.md, found on the path of a real command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
RECIPE = """\
extends: tiny.yaml
stages:
  base: {train: {max_steps: 6}}
  focal: {kind: focal, data: demos, model: base, train: {gamma: 1.5, max_steps: 4, batch_size: 8, learning_rate: 0.01}}
  rm: null
  dpo: null
  report: null
"""
UNUSED = ("--store", "unused")
"""A store in which nothing has run, whatever other tests ran."""


def _write_package(folder: Path, *, config: str = "") -> Path:
    """Write the package of the page into a folder as pip would install it; ``config`` replaces its `config.py`."""
    (folder / "focal").mkdir(parents=True)
    (folder / "focal" / "__init__.py").write_text("")
    for name, text in re.findall(r"^```python\n# (focal/\w+\.py)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        (folder / name).write_text(text, encoding="utf-8")
    if config:
        (folder / "focal" / "config.py").write_text(config, encoding="utf-8")
    [project] = [tomllib.loads(text)["project"] for text in re.findall(r"^```toml\n(.*?)^```", PAGE, re.S | re.M)]
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [line for group, entries in groups for line in (f"[{group}]", *(f"{k} = {v}" for k, v in entries.items()))]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


class World(NamedTuple):
    """A folder with the tiny world, a recipe with a stage of the new kind, and the package on the path."""

    folder: Path
    package: Path

    def __call__(self, *args: str, code: int = 0) -> str:
        """Run `trueup`; return its standard output, or its standard error if it fails as expected."""
        path = os.pathsep.join([str(self.package), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "200"}
        line = [sys.executable, "-m", "pipeline.cli", *args]
        ended = subprocess.run(line, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == code, ended.stdout + ended.stderr
        return ended.stderr if code else ended.stdout

    def stage(self, verb: str, key: str, *args: str) -> dict[str, Any]:
        """Return what a verb's `--json` says under ``key`` of the stage of the new kind."""
        rows = json.loads(self(verb, "new.yaml", "--json", *args))[key]
        [row] = [row for row in rows if row.get("stage", row.get("name")) == "focal"]
        return dict(row)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, make_tiny_world: Callable[[Path], Path]) -> World:
    """The recipe with its pending stage, planned; nothing has run."""
    folder = make_tiny_world(tmp_path_factory.mktemp("kind")).parent
    (folder / "new.yaml").write_text(RECIPE)
    return World(folder, _write_package(folder / "installed"))


@pytest.fixture(scope="module")
def ran(world: World) -> dict[str, Any]:
    """The stage of the new kind as `trueup run --json` reports it, on a model of the same run."""
    return world.stage("run", "stages", "--until", "focal")


def test_the_schema_describes_it(world: World) -> None:
    definitions = json.loads(world("schema"))["$defs"]
    assert definitions["focal.stage"]["properties"]["kind"]["description"].startswith("Instruction tuning with the")
    assert "gamma" in json.dumps(definitions["focal.Train"]) and "sft.stage" in definitions


def test_the_plan_forecasts_its_memory(world: World) -> None:
    need = world.stage("plan", "needs", *UNUSED)
    assert need["trained"] == need["parameters"] > 0
    assert need["memory_bytes"]["peak"] > 4 * 4 * need["parameters"]  # weights, gradients and AdamW's two moments
    # A plain kind holds the logits of all tokens; sft, which is alike but for its loss, makes them in tiles.
    sft = world.stage(
        "plan", "needs", *UNUSED, "--set", "stages.focal.kind=sft", "--set", "stages.focal.train.gamma=null"
    )
    assert need["memory_bytes"]["logits"] != sft["memory_bytes"]["logits"]
    assert need["memory_bytes"]["weights"] == sft["memory_bytes"]["weights"]


def test_its_rows_must_fill_a_batch(world: World) -> None:
    text = world("check", "new.yaml", "--set", "stages.focal.train.batch_size=4096", code=2)
    assert "stage focal: there are 2" in text and "expected at least one batch of 4096" in text


def test_what_it_does_not_support_is_refused_by_name(world: World) -> None:
    text = world("check", "new.yaml", "--set", "stages.focal.compute={processes: 2, tensor_parallel: 2}", code=2)
    assert "compute.tensor_parallel is 2 for a focal stage" in text
    assert "only dpo, kto, pretrain, reward, sft can" in text


def test_it_trains(world: World, ran: dict[str, Any]) -> None:
    assert ran["status"] == "done"
    assert "focal loss" in world("show", "focal")
    shown = json.loads(world("show", "focal", "--json"))
    manifest = shown.get("manifest", shown)
    assert (manifest["kind"], manifest["kind_version"], manifest["makes"]) == ("focal", 1, "model")
    # (1 - p)^1.5 is below 1, so the loss is below the cross-entropy of a uniform guess among 360 entries, ln 360.
    assert 0 < manifest["metrics"]["loss"] < 5.89


def test_its_tokens_are_counted_once_its_tokenizer_exists(world: World, ran: dict[str, Any]) -> None:
    forced = world.stage("check", "tokens", "--set", "stages.focal.train.gamma=1.0")
    assert forced["tokenizer"] == "base" and forced["max_length"] == 64 and forced["rows"] == 240


def test_its_name_alone_is_unknown_without_the_package(world: World, tmp_path: Path) -> None:
    text = World(world.folder, tmp_path)("check", "new.yaml", code=2)
    assert "unknown kind `focal`" in text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            "import nowhere\n",
            "kind `focal` of focal 1.0 cannot be loaded: ModuleNotFoundError: No module named 'nowhere'",
        ),
        (
            "from pipeline.stage import StageConfig, register_kind\n"
            "register_kind('sft', version=1, config=StageConfig, run='focal:run', makes='model')\n",
            "focal 1.0 registers a kind `sft`, which exists already",
        ),
    ],
)
def test_a_package_that_cannot_be_loaded_is_named(world: World, tmp_path: Path, config: str, message: str) -> None:
    text = World(world.folder, _write_package(tmp_path / "broken", config=config))("plan", "new.yaml", code=2)
    assert message in text and "Traceback" not in text and len(text.splitlines()) == 1
