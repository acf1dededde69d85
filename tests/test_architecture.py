"""The rules of the house, held by a machine: who may import whom, what stays light, how long code is, what is unsafe.

An exception is one line in an allow-list here, with its reason.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pipeline"

ROWS: tuple[frozenset[str], ...] = tuple(
    frozenset(row.split())
    for row in (
        "cli display terminal scaffold doctor chatting reports preflight forecast",
        "runner worker_node cluster journal",
        "launch",
        "stages",
        "training",
        "plan",
        "ppo",
        "evaluation",
        "preferences",
        "records",
        "models parallel",
        "recipe trainer_fields",
        "artifacts",
        "stage",
        "estimate",
        "disk",
        "errors environment limits",
    )
)
"""Top to bottom; a module imports only from its own row and from rows below."""

LEAVES = frozenset({"errors", "environment", "limits"})
"""Import nothing of the package."""

LIGHT = (
    "pipeline.plan",
    "pipeline.recipe",
    "pipeline.artifacts",
    "pipeline.records",
    "pipeline.stages",
    "pipeline.cli.verbs",
)
HEAVY = ("torch", "transformers", "datasets", "numpy", "scipy", "trl", "peft", "accelerate", "matplotlib", "pandas")

ALLOWED_IMPORTS: dict[tuple[str, str], str] = {}
"""(module, what it imports): why a row may be jumped."""

_WRITES = "a record's `write` loads the renderer that draws it, only when there is something to write"
ALLOWED_CYCLES: dict[frozenset[str], str] = {
    frozenset({"pipeline.evaluation.reward_card", "pipeline.evaluation.reward_render"}): _WRITES,
}
"""Modules that import one another: why."""

LONGEST_FILE, LONGEST_FUNCTION = 400, 60

ALLOWED_LENGTH: dict[str, str] = {
    "pipeline/models/decode.py:decode": "eleven options, each explained; the body is a dozen lines",
    "pipeline/stages/pretrain.py:run": "an algorithm's control flow stands whole in its own file",
    "pipeline/stages/sft.py:run": "an algorithm's control flow stands whole in its own file",
    "pipeline/stages/reward.py:run": "an algorithm's control flow stands whole in its own file",
    "pipeline/stages/dpo.py:run": "an algorithm's control flow stands whole in its own file",
    "pipeline/stages/kto.py:run": "an algorithm's control flow stands whole in its own file",
}

MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(file.read_text(encoding="utf-8"), str(file)) for name, file in MODULES.items()}


def _part(module: str) -> str:
    """Return ``plan`` of ``pipeline.plan.graph``."""
    return module.split(".")[1] if "." in module else ""


def _imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield every module of the package a file imports, wherever the statement stands, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            base = node.module or ""
            names = [f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names]
        else:
            continue
        for name in names:
            if name == "pipeline" or name.startswith("pipeline."):
                yield name, node.lineno


IMPORTS = {name: list(_imported(tree)) for name, tree in TREES.items()}


def _row(part: str) -> int:
    return next(i for i, row in enumerate(ROWS) if part in row)


def test_every_part_of_the_package_has_a_row() -> None:
    known = set().union(*ROWS)
    assert {_part(name) for name in MODULES if _part(name)} <= known


def test_a_module_imports_only_from_rows_below_its_own() -> None:
    jumps = []
    for module, imports in IMPORTS.items():
        own = _part(module)
        for target, line in imports:
            other = _part(target)
            if not own or not other or own == other or (module, target) in ALLOWED_IMPORTS:
                continue
            if own in LEAVES or _row(own) > _row(other):
                jumps.append(f"{MODULES[module].relative_to(ROOT)}:{line} imports {target}")
    assert jumps == []


def test_stages_never_import_one_another() -> None:
    stages = {name for name in MODULES if name.startswith("pipeline.stages.")}
    assert len(stages) >= 6
    found = [f"{name}:{line} imports {target}" for name in stages for target, line in IMPORTS[name] if target in stages]
    assert found == []
    assert not [target for name in stages for target, _ in IMPORTS[name] if target == "pipeline.stages"]


def test_no_module_imports_itself_through_others() -> None:
    graph = {name: sorted({t for t, _ in imports if t in MODULES and t != name}) for name, imports in IMPORTS.items()}
    cycles: list[list[str]] = []
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            cycle = path[path.index(name) :]
            if frozenset(cycle) not in ALLOWED_CYCLES:
                cycles.append([*cycle, name])
            return
        if name in done:
            return
        for target in graph[name]:
            visit(target, [*path, name])
        done.add(name)

    for name in graph:
        visit(name, [])
    assert cycles == []


@pytest.mark.parametrize("module", LIGHT)
def test_what_plans_and_prints_reaches_nothing_heavy(module: str) -> None:
    code = f"import json, sys, {module}\n"
    if module == "pipeline.stages":
        code += "pipeline.stages.load_all()\n"
    code += "print(json.dumps(sorted(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(ended.stdout))
    assert module in loaded
    assert loaded.isdisjoint(HEAVY)


def _too_long() -> Iterator[str]:
    for name, tree in TREES.items():
        file = MODULES[name]
        path = file.relative_to(ROOT).as_posix()
        if len(file.read_text(encoding="utf-8").splitlines()) > LONGEST_FILE:
            yield path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
                    yield f"{path}:{node.name}"


def test_files_and_functions_are_short_or_have_a_reason() -> None:
    assert set(_too_long()) == set(ALLOWED_LENGTH), "give a reason for what is too long, and drop what is not"
    assert len(ALLOWED_LENGTH) <= 6


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "manager", "base", "misc", "common"}
    assert not [name for name in MODULES if drawers & set(name.split("."))]


def _texts() -> Iterator[tuple[str, str]]:
    """Yield the text files people read or run, by path."""
    skipped = {"__pycache__", "node_modules", "build", "dist", "store"}
    suffixes = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".cfg", ".sh", ".css", ".html", ""}
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if any(part in skipped or (part.startswith(".") and part not in {".ci", ".github"}) for part in parts):
            continue
        if path.is_file() and path.suffix in suffixes and path.stat().st_size < 2_000_000:
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8", errors="replace")


def test_the_tree_names_no_place_of_the_machine_it_was_written_on() -> None:
    # At the start of a path: `.work/` is a folder of every store.
    place = re.compile(r"(?<![\w.*}/-])/(?:work|root|tmp/dev)/")
    found = [f"{path}: {hit.group()}" for path, text in _texts() if (hit := place.search(text))]
    assert found == []


def _is_call(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == name


def _unsafe(node: ast.AST) -> str:
    """Return what is unsafe about a node, or an empty string."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
        bad = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"} & {
            n.split(".")[0] for n in names
        }
        return f"imports {', '.join(sorted(bad))}" if bad else ""
    if not isinstance(node, ast.Call):
        return ""
    keywords = {item.arg: item.value for item in node.keywords}
    given = {name: value.value for name, value in keywords.items() if isinstance(value, ast.Constant)}
    if given.get("shell") is True:
        return "runs a shell"
    if _is_call(node, "torch.load") and given.get("weights_only") is not True:
        return "torch.load without weights_only=True"
    for name in ("os.system", "os.popen", "subprocess.getoutput", "yaml.load", "yaml.unsafe_load", "eval", "exec"):
        if _is_call(node, name):
            return f"calls {name}"
    return ""


def test_nothing_unsafe_is_called() -> None:
    found = [
        f"{MODULES[name].relative_to(ROOT)}:{node.lineno} {why}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if (why := _unsafe(node)) and isinstance(node, ast.stmt | ast.expr)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("import pickle", "imports pickle"),
        ("from joblib import load", "imports joblib"),
        ("torch.load(file)", "torch.load without weights_only=True"),
        ("torch.load(file, weights_only=False)", "torch.load without weights_only=True"),
        ("torch.load(file, weights_only=True)", ""),
        ("subprocess.run(line, shell=True)", "runs a shell"),
        ("os.system(line)", "calls os.system"),
        ("yaml.load(text)", "calls yaml.load"),
        ("eval(text)", "calls eval"),
        ("model.eval()", ""),
    ],
)
def test_what_counts_as_unsafe(line: str, why: str) -> None:
    assert next(filter(None, map(_unsafe, ast.walk(ast.parse(line)))), "") == why
