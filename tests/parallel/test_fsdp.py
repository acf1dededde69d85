"""On a CPU accelerate takes FSDP2 for plain data parallelism without a word: a stage refuses, and leaves nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.artifacts import Store

pytestmark = pytest.mark.xdist_group("sharded")


def test_a_fallback_of_accelerate_is_refused(tiny_recipe: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    recipe = yaml.safe_load(tiny_recipe.read_text())
    recipe["stages"] = {name: recipe["stages"][name] for name in ("tokenizer", "base")}
    recipe["stages"]["base"]["compute"] = {"processes": 2, "fsdp": True, "device": "cpu"}
    tiny_recipe.write_text(yaml.safe_dump(recipe))
    ended = command("run", tiny_recipe, "--store", tmp_path / "store", cwd=tmp_path)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 2, said
    assert "FSDP2" in said and "compute.zero: 3" in said and "Traceback" not in said
    assert not Store(tmp_path / "store").artifacts("base")
