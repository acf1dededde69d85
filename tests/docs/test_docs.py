"""The pages say what is true: trueup takes every example, every link leads somewhere, every message exists."""

from __future__ import annotations

import ast
import functools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ruamel.yaml import YAML

from pipeline.artifacts import Store
from pipeline.plan import survey
from pipeline.recipe import inspect
from pipeline.recipe.reading import RECIPE_KEYS
from pipeline.stage import KINDS, Data
from pipeline.stages import load_all

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
GUIDES = tuple(page for page in PAGES if page not in {"docs/cli.md", "docs/log.md", "docs/design-changes.md"})
WITHOUT_EXAMPLE = {"docs/ppo-invariants.md", "docs/upstream.md"}
README_LINES = 110
ROWS: dict[str, dict[str, Any]] = {
    "text": {"text": "Once upon a time."},
    "messages": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
    "preference": {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"},
    "prompt": {"prompt": "Hi"},
    "candidates": {"prompt": "Hi", "candidates": [{"text": "Hello!"}, {"text": "What?"}]},
}
"""A row of each shape, for the files that an example names and only its reader has."""


class Example(NamedTuple):
    """A block of a page; the first line of a block that is a file names it: `# first.yaml`."""

    page: str
    number: int
    text: str

    @property
    def file(self) -> str | None:
        named = re.match(r"# (\S+\.(?:yaml|py))\n", self.text)
        return named[1] if named else None


def _blocks(language: str) -> list[Example]:
    examples = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        blocks = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        examples += [Example(page, number, block) for number, block in enumerate(blocks, start=1)]
    return examples


def _id(example: Any) -> str:
    return f"{example.page}-{example.number}" if isinstance(example, Example) else str(example)


YAML_BLOCKS, PYTHON_BLOCKS = _blocks("yaml"), _blocks("python")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the quickstart's data and every file that the pages show, as a reader would have it."""
    load_all()
    made = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "data", made / "data")
    for example in (*YAML_BLOCKS, *PYTHON_BLOCKS):
        if example.file:
            (made / example.file).parent.mkdir(parents=True, exist_ok=True)
            (made / example.file).write_text(example.text, encoding="utf-8")
    return made


def _completed(text: str) -> str:
    """Return a block as a recipe: a fragment begins with spaces or has none of the keys `stages` and `extends`."""
    if re.match(r"(#.*\n)*  ", text):
        text = f"stages:\n{text}"
    plain = YAML(typ="safe").load(text)
    assert set(plain) <= set(RECIPE_KEYS), "a fragment is a part of a recipe, from its top level or below `stages:`"
    if "extends" not in plain:
        known = {"corpus", "pairs", "practice"} | set(plain.get("data", ()))
        if "data" not in plain:
            text += "data: {corpus: corpus.txt, pairs: pairs.jsonl, practice: prompts.jsonl, demos: demos.jsonl}\n"
        if "stages" not in plain:
            text += f"stages: {{any: {{kind: tokenizer, data: {min(known)}}}}}\n"
    return text


def _stand_ins(folder: Path, text: str) -> None:
    """Write a file for each one that a recipe names and the reader has to bring."""
    plain = YAML(typ="safe").load(text)
    shapes = {
        stage["data"]: marker.shape
        for stage in plain.get("stages", {}).values()
        if "kind" in stage
        for name, marker in KINDS[stage["kind"]].config.markers(Data).items()
        if name == "data" and "data" in stage
    }
    for name, source in plain.get("data", {}).items():
        path = source if isinstance(source, str) else source.get("path", "")
        file = folder / path.replace("*", "1").removesuffix(".gz")
        shape = shapes.get(name, "text")
        row = ROWS[shape if isinstance(shape, str) else shape[0]]
        if path and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = ({key: f"{i} {v}" if isinstance(v, str) else v for key, v in row.items()} for i in range(64))
            file.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
        if path.endswith(".gz"):
            (folder / path.replace("*", "1")).write_bytes(b"")


@pytest.mark.parametrize("example", YAML_BLOCKS, ids=_id)
def test_a_recipe_is_read_and_planned(example: Example, folder: Path) -> None:
    text = _completed(example.text)
    if example.file != "broken.yaml":
        _stand_ins(folder, text)
    file = folder / (example.file or "example.yaml")
    file.write_text(text, encoding="utf-8")
    recipe, problems = inspect(file)
    if example.file == "broken.yaml":
        text = (ROOT / example.page).read_text(encoding="utf-8")
        shown = [line for line in text.splitlines() if line.startswith("broken.yaml:")]
        assert [_told(str(problem)) for problem in problems] == [_told(line) for line in shown]
        return
    assert [str(problem) for problem in problems] == []
    is_whole = example.file is not None
    if is_whole:
        _, problems = survey(recipe, Store(folder / "store"))
        assert [str(problem) for problem in problems] == []


def _told(line: str) -> str:
    """Return a message without the folders it names."""
    return re.sub(r"expected a file below .*?, its parent", "", line.partition("broken.yaml:")[2])


@pytest.mark.parametrize("example", PYTHON_BLOCKS, ids=_id)
def test_python_imports_what_there_is(example: Example) -> None:
    for node in ast.walk(ast.parse(example.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline"):
            assert {alias.name for alias in node.names} <= _names_of(str(node.module))


def _names_of(module: str) -> set[str]:
    """Return what a module defines or imports at its top, without importing it."""
    path = ROOT / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return names


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert page == "README.md" or file.parent == ROOT / "docs", f"{target} is not part of the site"
        assert not anchor or anchor in _anchors(file), target


def _anchors(file: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", head).strip().lower().replace(" ", "-") for head in heads}


def test_the_site_has_every_page_once() -> None:
    site = YAML(typ="safe").load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = list(_leaves(site["nav"]))
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    assert site["strict"] is True
    assert site["theme"]["font"] is False, "the site asks no other server for anything"


def _leaves(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _leaves(child)


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    pages = {page for page in PAGES if page.startswith("docs/")} - {"docs/index.md"}
    assert {page for page in pages if f"({page})" not in text} == set()


@pytest.mark.parametrize("page", [page for page in GUIDES if page not in WITHOUT_EXAMPLE])
def test_a_page_begins_with_an_example(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    first, second = (text.find(mark) for mark in ("\n```", "\n## "))
    assert first != -1
    if page not in ("README.md", "docs/index.md"):
        assert first < second or second == -1


@functools.cache
def _texts_of_the_package() -> frozenset[str]:
    nodes = (ast.walk(ast.parse(file.read_text(encoding="utf-8"))) for file in (ROOT / "pipeline").rglob("*.py"))
    constants = (node.value for each in nodes for node in each if isinstance(node, ast.Constant))
    return frozenset(value for value in constants if isinstance(value, str))


def _messages() -> list[str]:
    """Return the messages in the tables of the page on troubleshooting, from its headings `message`."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| message \|.*\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    cells = [row[: row.index(" | ")] for table in tables for row in table.splitlines()]
    return [message for cell in cells for message in re.findall(r"`(.+?)`", cell)]


@pytest.mark.parametrize("message", _messages())
def test_a_message_is_one_that_the_package_has(message: str) -> None:
    for piece in (piece.strip(" ,") for piece in message.removeprefix("expected ").split("…")):
        assert any(piece in text for text in _texts_of_the_package()), piece
