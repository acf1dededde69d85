"""A configuration checks its blocks; a kind names its function, which is imported when a stage runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import BaseModel

from pipeline.errors import PipelineError, Problem
from pipeline.stage import KINDS, Kind, StageConfig


@pytest.fixture
def kind_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Kind]:
    """Return a kind with this `run`; `good_stage` and `stage_without_library` are modules it may name."""
    (tmp_path / "good_stage.py").write_text("def run(ctx, config): ...\n")
    (tmp_path / "stage_without_library.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    return lambda run: Kind("it", 1, StageConfig, run, "model", "")


def test_the_function_that_a_kind_names_is_loaded(kind_with: Callable[[str], Kind]) -> None:
    assert kind_with("good_stage:run").load_run().__name__ == "run"


@pytest.mark.parametrize("run", ["no_such_stage:run", "good_stage.inside:run", "good_stage:walk", "good_stage"])
def test_a_function_that_does_not_exist_is_one_line(run: str, kind_with: Callable[[str], Kind]) -> None:
    with pytest.raises(PipelineError, match=rf"`run` of kind `it` is `{run}`, which does not exist"):
        kind_with(run).load_run()


def test_a_missing_library_is_not_mistaken_for_a_missing_function(kind_with: Callable[[str], Kind]) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        kind_with("stage_without_library:run").load_run()


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_kind_names_a_function_that_exists(name: str) -> None:
    assert callable(KINDS[name].load_run())
    assert KINDS[name].doc.endswith(".")


class Block(BaseModel):
    """A block that can check itself."""

    size: int = 1

    def check(self) -> list[Problem]:
        return [Problem(f"size is {self.size}", "at least 1")] if self.size < 1 else []


class BlocksConfig(StageConfig):
    """A configuration with blocks and a field without a check."""

    first: Block = Block()
    second: Block | None = None
    name: str = ""


@pytest.mark.parametrize(
    ("given", "messages"),
    [
        ({}, []),
        ({"first": {"size": 0}}, ["size is 0"]),
        ({"first": {"size": -1}, "second": {"size": -2}}, ["size is -1", "size is -2"]),
    ],
)
def test_a_configuration_checks_its_blocks(given: dict[str, dict[str, int]], messages: list[str]) -> None:
    assert [problem.found for problem in BlocksConfig.model_validate(given).check()] == messages
