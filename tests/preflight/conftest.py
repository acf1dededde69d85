"""The recipe whose memory `make bench-memory` measures: here it is only planned."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

WORLD = Path(__file__).resolve().parents[2] / "benchmarks" / "memory_world.py"


@pytest.fixture(scope="session")
def memory_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a recipe of stages that differ in what they hold, with its data and a tokenizer of 50,000 words."""
    spec = importlib.util.spec_from_file_location("memory_world", WORLD)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Path = module.write_recipe(tmp_path_factory.mktemp("memory"))
    return made
