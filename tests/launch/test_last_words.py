"""Node 0 ends between two looks of another machine: what it said last is heard."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.plan import Plan
from pipeline.run.coordinator import Coordinator
from pipeline.run.runner import StopRequest
from pipeline.run.worker_node import _WorkerNode


class EndsBetweenLooks(Coordinator):
    """Node 0's last words are written after the first look, and before its lock is looked at."""

    words: tuple[dict[str, Any], ...] = ()

    def has_host(self) -> bool:
        for line in self.words:
            self._write(**line)
        self.words = ()
        return False


def follow(folder: Path, *words: dict[str, Any]) -> Coordinator:
    """Follow node 0 to its end; return what its words are read from."""
    coordinator = EndsBetweenLooks(folder, "recipe", "127.0.0.1:1", 1)
    coordinator.folder.mkdir(parents=True)
    coordinator.words = words
    empty = {field.name: () for field in dataclasses.fields(Plan)}
    view: Any = None
    store: Any = None
    _WorkerNode(Plan(**empty), store, view, 1, coordinator, StopRequest()).follow()
    return coordinator


def test_an_end_in_good_order_is_one(tmp_path: Path) -> None:
    assert follow(tmp_path, {"what": "end", "problems": ()}).next_command() is None  # all its words are read


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (({"what": "end", "problems": ("out of luck",)},), "node 0: out of luck"),
        ((), "node 0 ended without a word"),
    ],
    ids=["with a problem", "without a word"],
)
def test_an_end_that_is_none_is_told(words: tuple[dict[str, Any], ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=said):
        follow(tmp_path, *words)
