"""Writes small data files and names them as a recipe would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import DataSource


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write rows (or lines of text as they are) to a JSON Lines file and return its path."""

    def write(*rows: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def source() -> Callable[..., DataSource]:
    """Return a recipe's data source for files."""

    def make(*paths: Path, **fields: Any) -> DataSource:
        return DataSource(path=[str(path) for path in paths], **fields)

    return make
