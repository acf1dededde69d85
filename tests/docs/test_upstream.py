"""`docs/upstream.md` names every reliance on a library's internals, with tests that exist and the locked versions."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from upstream_scan import own_names, reliances, scan

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "upstream.md").read_text(encoding="utf-8")
UNLOCKED = {"vllm", "Python"}
"""Sections without a locked version: an extra that is not in the lock, and the language."""

USES = scan(ROOT / "pipeline")


def _rows() -> list[list[str]]:
    """Return the cells of every row of the page's tables, without the heads."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0] != "where"]


@pytest.mark.parametrize("file", USES)
def test_every_file_that_relies_on_internals_is_named(file: str) -> None:
    uses = "\n".join(f"  line {use.line}: {use.code}" for use in USES[file])
    assert f"`{file}`" in PAGE, f"{file} relies on a library's internals; name it in docs/upstream.md:\n{uses}"


def test_every_private_name_is_on_the_page() -> None:
    """A file that is named for one reliance does not hide another one."""
    names = {name for uses in USES.values() for use in uses for name in re.findall(r"(?<!\w)_[a-z]\w*", use.code)}
    own = own_names([ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "pipeline").rglob("*.py")])
    assert sorted(name for name in names - own if not re.search(rf"(?<!\w){name}(?!\w)", PAGE)) == []


def test_every_file_on_the_page_exists() -> None:
    files = set(re.findall(r"`(pipeline/[\w/]+\.py)`", PAGE))
    assert len(files) > 20
    assert sorted(file for file in files if not (ROOT / file).is_file()) == []


def test_every_function_on_the_page_is_in_its_file() -> None:
    missing = []
    for file, named in re.findall(r"`(pipeline/[\w/]+\.py)`: ((?:`\w+`(?:, )?)+)", PAGE):
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        defined |= {
            node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        missing += [f"{file}: {name}" for name in re.findall(r"\w+", named) if name not in defined]
    assert missing == []


def test_every_row_names_a_test_that_exists() -> None:
    rows = _rows()
    assert all(len(row) == 5 for row in rows)
    assert [row[0] for row in rows if not re.fullmatch(r"`tests/[\w/]+\.py::test_\w+`", row[3])] == []
    missing = []
    for file, name in set(re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE)):
        text = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).is_file() else ""
        missing += [] if f"def {name}(" in text else [f"{file}::{name}"]
    assert missing == []


def test_the_versions_are_those_of_the_lock() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = dict(line.split("==") for line in lines if "==" in line)
    heads = [head.split(" ") for head in re.findall(r"^## ([\w-]+(?: [\d.]+)?)$", PAGE, re.MULTILINE)]
    assert len(heads) > 8
    assert {head[0] for head in heads if len(head) == 1} <= UNLOCKED
    assert {
        name: version for name, version in (head for head in heads if len(head) == 2) if locked[name] != version
    } == {}


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("from torch._subclasses import FakeTensorMode", ["from torch._subclasses import FakeTensorMode"]),
        ("import torch._dynamo", ["import torch._dynamo"]),
        ("from torch import nn", []),
        ("from pipeline.stage import _own", []),
        ("import torch\ntorch._C.f()", ["torch._C"]),
        ("import torch\ntorch.load = None", ["torch.load = …"]),
        ("from trl import Trainer\nsetattr(Trainer, 'x', 1)", ["setattr(Trainer, 'x', 1)"]),
        ("from trl import REGISTRY\nREGISTRY['a'] = 1\ndel REGISTRY['a']", ["REGISTRY['a'] = …", "del REGISTRY['a']"]),
        ("from trl import T\nclass A(T):\n    def _f(self): ...", ["class A: def _f"]),
        ("class A:\n    def f(self): super()._f()", ["super()._f"]),
        ("class A:\n    def __init__(self): self._x = 1\ndef f(a): return a._x", []),
        ("def f(model): return model._hidden", ["model._hidden"]),
        ("def f(model): return getattr(model, '_hidden', None)", ["getattr(model, '_hidden', None)"]),
        ("import os\nos.environ['A'] = 'b'\nos._exit(1)", []),
    ],
)
def test_what_counts_as_a_reliance(text: str, codes: list[str]) -> None:
    tree = ast.parse(text)
    assert sorted(use.code for use in reliances(tree, own_names([tree]))) == sorted(codes)
