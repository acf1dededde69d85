"""The rules of the house, held by a machine: who may import whom, what stays light, how long code is, what is unsafe.

An exception is one line in an allow-list here, with its reason.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pipeline"

ROWS: tuple[frozenset[str], ...] = tuple(
    frozenset(row.split())
    for row in (
        "cli preflight",
        "run",
        "launch",
        "stages",
        "rl",
        "training",
        "plan",
        "preferences",
        "evaluation",
        "endpoints",
        "records",
        "models",
        "recipe trainer_fields",
        "artifacts",
        "stage",
        "parallel",
        "estimate kind",
        "machine",
        "errors labels plain_data",
    )
)
"""Top to bottom; a module imports only from its own row and from rows below."""

LEAVES = frozenset({"errors", "labels", "plain_data"})
"""Import nothing of the package."""

LIGHT = (
    "pipeline.plan",
    "pipeline.recipe",
    "pipeline.artifacts",
    "pipeline.records",
    "pipeline.stages",
    "pipeline.cli.app",
)
HEAVY = ("torch", "transformers", "datasets", "numpy", "scipy", "trl", "peft", "accelerate", "matplotlib", "pandas")

ALLOWED_IMPORTS: dict[tuple[str, str], str] = {}
"""(module, what it imports): why a row may be jumped."""

ALLOWED_CYCLES: dict[frozenset[str], str] = {}
"""Modules that import one another: why."""

MOST_DEFERRED_IMPORTS = 48
"""Imports inside functions of the package; each has its reason as a comment on its line or above it."""

LONGEST_FILE, LONGEST_FUNCTION = 400, 60

MOST_PARAMETERS = 7
"""Parameters of a function, with `self`. `*args` and `**kwargs` are one each, also if they are a record's fields."""

ALLOWED_PARAMETERS: dict[str, str] = {}
"""Functions with more parameters: why. The verbs of `cli/verbs/` are free: their parameters are their options."""

MOST_ANY = 0.025
"""Share of arguments annotated `Any`: 2.1 %, most of them `*args` and `**kwargs` passed on to a library."""

MOST_SPELLED_OUT = 2
"""`dict[str, Any]` and `Mapping[str, Any]` in signatures and fields: what a method of transformers' Trainer takes."""

_LEDGER = "the ledger needs sqlalchemy, of the extra `collect`"
ALLOWED_LATE_IMPORTS: dict[str, str] = {
    "pipeline.stages.collect.run": f"{_LEDGER}, and the stage says how to install it",
}
"""Modules of stages that import inside a function: why."""

LONGEST_REPEAT = 5
"""Lines in a row that two kinds of stages may have in common."""

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


def _kind_of(module: str) -> str:
    """Return ``sft`` of ``pipeline.stages.sft.train``."""
    return module.split(".")[2] if module.startswith("pipeline.stages.") else ""


def test_every_kind_is_a_package_with_a_configuration_and_a_run() -> None:
    kinds = {_kind_of(name) for name in MODULES} - {""}
    assert len(kinds) >= 12
    for kind in kinds:
        parts = {name.rpartition(".")[2] for name in MODULES if _kind_of(name) == kind}
        assert {"config", kind} <= parts and len({"train", "run"} & parts) == 1, kind


def test_stages_never_import_one_another() -> None:
    stages = [name for name in MODULES if _kind_of(name)]
    imports = [
        f"{name}:{line} imports {target}"
        for name in stages
        for target, line in IMPORTS[name]
        if target == "pipeline.stages" or _kind_of(target) not in {"", _kind_of(name)}
    ]
    assert imports == []


def test_stages_import_at_the_top() -> None:
    late = {
        name
        for name in MODULES
        if _kind_of(name)
        for function in ast.walk(TREES[name])
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert late == set(ALLOWED_LATE_IMPORTS), "give a reason for an import inside a function, and drop what is not"


def _code_lines(name: str) -> list[tuple[int, str]]:
    """Return the lines of a module with their numbers, without blank lines and imports, spaces joined."""
    imports = {
        line
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Import | ast.ImportFrom)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = MODULES[name].read_text(encoding="utf-8").splitlines()
    return [(i, " ".join(line.split())) for i, line in enumerate(lines, 1) if line.strip() and i not in imports]


def _repeats(modules: dict[str, list[tuple[int, str]]], length: int) -> list[str]:
    """Return each run of ``length`` equal lines that stands in modules of two kinds."""
    places: dict[tuple[str, ...], dict[str, str]] = {}
    for name, lines in modules.items():
        for i in range(len(lines) - length + 1):
            run = tuple(text for _, text in lines[i : i + length])
            places.setdefault(run, {}).setdefault(_kind_of(name), f"{name}:{lines[i][0]}")
    return [" repeats ".join(sorted(where.values())) for where in places.values() if len(where) > 1]


def test_stages_do_not_repeat_one_another() -> None:
    modules = {name: _code_lines(name) for name in MODULES if _kind_of(name)}
    assert _repeats(modules, LONGEST_REPEAT + 1) == []


def test_what_counts_as_a_repeat() -> None:
    six = [(i, f"line {i}") for i in range(1, 7)]
    other = [(9, "before"), *((i + 20, text) for i, text in six)]
    one, two, same = "pipeline.stages.one.train", "pipeline.stages.two.train", "pipeline.stages.one.rows"
    assert _repeats({one: six, two: other}, 6) == [f"{one}:1 repeats {two}:21"]
    assert _repeats({one: six, same: other}, 6) == []  # of one kind
    assert _repeats({one: six, two: other[:-1]}, 6) == []  # five lines


KIND_NAMES = frozenset(folder.name for folder in (PACKAGE / "stages").iterdir() if (folder / "config.py").is_file())


def _texts_in(node: ast.AST) -> set[str]:
    """Return the texts a literal holds, the node's own or those of its items and keys."""
    items = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else getattr(node, "keys", [node])
    return {item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)}


def _knows_a_kind(node: ast.AST) -> bool:
    """Return whether an expression compares a kind with the name of one, or lists several names of kinds."""
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        is_of_kind = any(ast.unparse(side).split(".")[-1] == "kind" for side in sides)
        return is_of_kind and any(_texts_in(side) & KIND_NAMES for side in sides)
    return isinstance(node, ast.Tuple | ast.List | ast.Set | ast.Dict) and len(_texts_in(node) & KIND_NAMES) > 1


def test_no_module_outside_stages_knows_a_kind_by_its_name() -> None:
    assert len(KIND_NAMES) >= 12
    places = [
        f"{MODULES[name].relative_to(ROOT)}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if _part(name) != "stages" and isinstance(node, ast.expr) and _knows_a_kind(node)
    ]
    assert places == [], "what differs between kinds is a field of `Traits`"


@pytest.mark.parametrize(
    ("text", "knows"),
    [
        ("stage.spec.kind == 'ppo'", True),
        ("kind in ('grpo', 'rloo')", True),
        ("{'sft': 1, 'dpo': 2}", True),
        ("event.kind == 'note'", False),
        ("loss in ('sft', 'sigmoid')", False),
        ("kind.makes == 'reward'", False),
    ],
)
def test_what_counts_as_knowing_a_kind(text: str, knows: bool) -> None:
    assert any(map(_knows_a_kind, ast.walk(ast.parse(text)))) is knows


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


def _deferred(tree: ast.AST, *, in_function: bool = False) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports inside functions, without those that only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        if in_function and isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _deferred(node, in_function=in_function or is_function)


def _has_reason(node: ast.stmt, lines: list[str]) -> bool:
    """Return whether a comment stands on the first or last line of a statement, or on the line above it."""
    assert node.end_lineno is not None
    beside = [lines[number - 1].partition("#")[2] for number in (node.lineno, node.end_lineno)]
    above = lines[node.lineno - 2].strip()
    reasons = [above.removeprefix("#") if above.startswith("#") else "", *beside]
    markers = re.compile(r"\s*(?:noqa|type:)[^#]*#?")  # they are addressed to a tool
    return any(markers.sub("", reason, count=1).strip() for reason in reasons)


def test_imports_inside_functions_are_few_and_each_has_a_reason() -> None:
    deferred = {name: list(_deferred(tree)) for name, tree in TREES.items()}
    lines = {name: MODULES[name].read_text(encoding="utf-8").splitlines() for name in deferred}
    without = [
        f"{MODULES[name].relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"
        for name, nodes in deferred.items()
        for node in nodes
        if not _has_reason(node, lines[name])
    ]
    assert without == [], "import at the top, or say in a comment why not"
    assert sum(map(len, deferred.values())) <= MOST_DEFERRED_IMPORTS


@pytest.mark.parametrize(
    ("code", "reasons"),
    [
        ("import a\nif TYPE_CHECKING:\n    import b", []),
        ("def f():\n    import a", [False]),
        ("def f():\n    if x:\n        import a  # slow", [True]),
        ("def f():\n    # slow\n    from a import b\n    from a import c", [True, False]),
        ("async def f():\n    import a  # noqa: F401", [False]),
        ("def f():\n    import a  # noqa: F401  # slow", [True]),
        ("def f():\n    from a import (  # slow\n        b,\n    )", [True]),
        ("def f():\n    def g():\n        import a\n    return g", [False]),
    ],
)
def test_what_counts_as_an_import_with_a_reason(code: str, reasons: list[bool]) -> None:
    assert [_has_reason(node, code.splitlines()) for node in _deferred(ast.parse(code))] == reasons


@pytest.mark.parametrize("module", LIGHT)
def test_what_plans_and_prints_reaches_nothing_heavy(module: str) -> None:
    code = f"import json, sys, {module}\n"
    if module == "pipeline.stages":
        code += "pipeline.stages.load_all()\n"
    if module == "pipeline.cli.app":  # every verb
        code += "import importlib, pipeline.cli.command_table as table\n"
        code += "for one in table.VERBS.values(): importlib.import_module(f'pipeline.cli.verbs.{one.module}')\n"
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


def test_files_and_functions_are_short() -> None:
    assert sorted(_too_long()) == []


def _crowded(tree: ast.AST) -> Iterator[str]:
    """Yield the name of each function with more than `MOST_PARAMETERS` parameters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own = node.args
            named = [*own.posonlyargs, *own.args, *own.kwonlyargs]
            if len(named) + (own.vararg is not None) + (own.kwarg is not None) > MOST_PARAMETERS:
                yield node.name


def test_functions_have_few_parameters() -> None:
    crowded = {f"{name}:{function}" for name, tree in TREES.items() for function in _crowded(tree)}
    crowded = {function for function in crowded if not function.startswith("pipeline.cli.verbs.")}
    advice = "find the record that some of the parameters are: a frozen dataclass with a docstring, which callers build"
    assert crowded == set(ALLOWED_PARAMETERS), advice


@pytest.mark.parametrize(
    ("parameters", "crowded"),
    [
        ("a, b, c, d, e, f, g", []),
        ("a, b, c, d, e, f, g, h", ["f"]),
        ("self, a, b, /, c, *, d, e, f", []),
        ("self, a, b, /, c, *, d, e, f, g", ["f"]),
        ("a, b, c, d, e, f, *args", []),
        ("a, b, c, d, e, f, *args, **kwargs", ["f"]),
    ],
)
def test_what_counts_as_too_many_parameters(parameters: str, crowded: list[str]) -> None:
    assert list(_crowded(ast.parse(f"def f({parameters}): ..."))) == crowded


def _arguments(tree: ast.AST) -> Iterator[str]:
    """Yield the annotation of each argument of each function, but for those of `self` and `cls`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own = node.args
            for one in (*own.posonlyargs, *own.args, *own.kwonlyargs, own.vararg, own.kwarg):
                if one is not None and one.arg not in ("self", "cls"):
                    yield ast.unparse(one.annotation) if one.annotation else "Any"


def _any_share(trees: Iterable[ast.AST]) -> float:
    """Return the share of arguments about which their annotation says nothing."""
    annotations = [annotation for tree in trees for annotation in _arguments(tree)]
    return sum(annotation in ("Any", "Any | None") for annotation in annotations) / len(annotations)


def test_arguments_have_types() -> None:
    advice = "annotate what the function really takes: a class, a protocol, or `object`"
    assert _any_share(TREES.values()) <= MOST_ANY, advice


@pytest.mark.parametrize(
    ("arguments", "share"),
    [
        ("a: int, b: str", 0.0),
        ("self, a: Any", 1.0),
        ("cls, a: Any | None = None, *, b: bool", 0.5),
        ("a: dict[str, Any], b: object, c: list[Any], d", 0.25),
        ("a: int, /, *args: Any, **kwargs: Any", 2 / 3),
    ],
)
def test_what_counts_as_an_argument_without_a_type(arguments: str, share: float) -> None:
    assert _any_share([ast.parse(f"def f({arguments}): ...")]) == share


def _annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the annotations of arguments, results and fields, as they stand in signatures and in bodies of classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own = node.args
            arguments = (*own.posonlyargs, *own.args, *own.kwonlyargs, own.vararg, own.kwarg)
            yield from (one.annotation for one in arguments if one is not None and one.annotation is not None)
            if node.returns is not None:
                yield node.returns
        elif isinstance(node, ast.ClassDef):
            yield from (field.annotation for field in node.body if isinstance(field, ast.AnnAssign))


def _spelled_out(tree: ast.AST) -> int:
    """Count the mappings in annotations of which only the type of the keys is told."""
    nameless = {f"{kind}[str, Any]" for kind in ("dict", "Mapping", "MutableMapping")}
    nodes = (node for annotation in _annotations(tree) for node in ast.walk(annotation))
    return sum(isinstance(node, ast.Subscript) and ast.unparse(node) in nameless for node in nodes)


def test_a_mapping_in_a_signature_has_a_name() -> None:
    advice = (
        "known keys make a record, or a `TypedDict` if it becomes JSON; for others `pipeline/plain_data.py` has names"
    )
    assert sum(map(_spelled_out, TREES.values())) <= MOST_SPELLED_OUT, advice


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("def f(a: dict[str, Any], *b: Mapping[str, Any]) -> list[dict[str, Any]]: ...", 3),
        ("async def f(**a: dict[str, dict[str, Any]]) -> None: ...", 1),
        ("class A:\n    a: dict[str, Any] = {}\n    b: Row\n    c: dict[str, int]", 1),
        ("def f(a: Row) -> JsonObject:\n    b: dict[str, Any] = {}", 0),
        ("Row = Mapping[str, Any]", 0),
    ],
)
def test_what_counts_as_a_mapping_without_a_name(code: str, count: int) -> None:
    assert _spelled_out(ast.parse(code)) == count


def test_only_a_manifest_reads_what_a_stage_reports() -> None:
    """What a function learns about a run it returns: no other function may depend on the order of the calls."""
    owners = {"pipeline.stage", "pipeline.launch.job", "pipeline.run.manifests"}
    readers = {
        f"{name}:{function.name}"
        for name in TREES.keys() - owners
        for function in ast.walk(TREES[name])
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and node.attr == "runtime_report"
    }
    assert readers == set()


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
    hits = [f"{path}: {hit.group()}" for path, text in _texts() if (hit := place.search(text))]
    assert hits == []


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
    calls = [
        f"{MODULES[name].relative_to(ROOT)}:{node.lineno} {why}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if (why := _unsafe(node)) and isinstance(node, ast.stmt | ast.expr)
    ]
    assert calls == []


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


def test_four_files_explain_the_product() -> None:
    """The README names them; together they are short enough to be read at once."""
    named = re.search(r"To read the product in four files: (.+?)\.\n? ?\[", (ROOT / "README.md").read_text(), re.S)
    assert named is not None
    files = re.findall(r"`([^`]+)`", named.group(1))
    assert len(files) == 4
    assert sum(len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in files) <= 600
