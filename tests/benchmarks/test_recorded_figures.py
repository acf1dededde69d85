"""The quickstart's figures are the same wherever they are told: all come from `docs/figures.json`."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def figures() -> Any:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["README.md", "data/quickstart/README.md", "docs/log.md"])
def test_a_document_says_what_the_file_of_figures_says(figures: Any, name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "<!-- figures:" in text and (ROOT / name) in figures.DOCUMENTS
    assert figures.filled(text) == text, "python benchmarks/figures.py fill"


def test_the_picture_shows_the_same_run(figures: Any) -> None:
    shown = re.sub(r"<[^>]*>|&#160;|\u00a0", " ", figures.PICTURE.read_text(encoding="utf-8"))
    run = json.loads(figures.FILE.read_text(encoding="utf-8"))["seeds"]["17"]
    for name in ("dpo", "ppo"):
        facts = run["models"][name]
        (row,) = re.findall(rf"^ *{name}  .*\[.*$", shown, re.MULTILINE)
        wins = figures._win(facts).partition(" at ")[0]
        assert re.fullmatch(r"\d\d\.\d % \[\d\d\.\d, \d\d\.\d\]", wins)
        assert wins in row
        assert figures._percent(facts["correct"]) in row


def test_figures_go_into_their_places_and_nowhere_else(figures: Any) -> None:
    text = "before <!-- figures:seconds -->old<!-- /figures --> after 1 min 26 s"
    seconds = figures.duration(json.loads(figures.FILE.read_text(encoding="utf-8"))["seconds"])
    assert figures.filled(text) == f"before <!-- figures:seconds -->{seconds}<!-- /figures --> after 1 min 26 s"


@pytest.mark.parametrize("name", ["Makefile", "recipes/quickstart.yaml"])
def test_other_files_name_no_time_of_their_own(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"minutes? (and a half )?on two cores|two CPU cores, in about", text)
