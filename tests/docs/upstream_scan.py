"""Finds where the package relies on names that a library keeps to itself: private names, and values it puts there."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PUBLIC = {"_asdict", "_exit", "_fields", "_make", "_replace"}
"""Documented in spite of their underscore: named tuples', and `os._exit`."""


TRAINERS = {"accelerate", "transformers", "trl"}
"""Libraries whose private methods a subclass of the package may override."""


class Reliance(NamedTuple):
    """A use of a library's internals: the line it stands in, and the code."""

    line: int
    code: str


def is_private(name: str) -> bool:
    """Whether a name begins with one underscore."""
    return name.startswith("_") and not name.startswith("__")


def own_names(trees: list[ast.Module]) -> set[str]:
    """Return the private names that the package defines itself, of functions, methods, classes and attributes."""
    names = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
                names.add(node.attr)
    return {name for name in names if is_private(name)}


def reliances(tree: ast.Module, own: set[str]) -> Iterator[Reliance]:
    """Yield the uses of libraries' internals in a file.

    Args:
        tree: the file.
        own: private names of the package, which are no library's.
    """
    imported = _imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _is_library(node.module or ""):
            for alias in node.names:
                if any(map(is_private, [*(node.module or "").split("."), alias.name])):
                    yield Reliance(node.lineno, f"from {node.module} import {alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _is_library(alias.name) and any(map(is_private, alias.name.split("."))):
                    yield Reliance(node.lineno, f"import {alias.name}")
        elif isinstance(node, ast.ClassDef) and any(imported.get(_root(base)) in TRAINERS for base in node.bases):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and is_private(method.name):
                    yield Reliance(method.lineno, f"class {node.name}: def {method.name}")
        elif isinstance(node, ast.Attribute):
            yield from _of_attribute(node, imported, own)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and _root(node) in imported:
            yield Reliance(node.lineno, f"{ast.unparse(node)} = …")
        elif isinstance(node, ast.Delete):
            for target in node.targets:
                if isinstance(target, ast.Subscript) and _root(target) in imported:
                    yield Reliance(node.lineno, f"del {ast.unparse(target)}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "getattr", "hasattr", "delattr"):
            named = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else ""
            changes = ast.unparse(node.func) in ("setattr", "delattr") and _root(node.args[0]) in imported
            if changes or (is_private(str(named)) and str(named) not in own | PUBLIC):
                yield Reliance(node.lineno, ast.unparse(node))


def _of_attribute(node: ast.Attribute, imported: dict[str, str], own: set[str]) -> Iterator[Reliance]:
    """Yield a value put on an imported object, or a private attribute that is not the package's own."""
    is_super = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super"
    if isinstance(node.ctx, ast.Store) and _root(node) in imported:
        yield Reliance(node.lineno, f"{ast.unparse(node)} = …")
    elif is_private(node.attr) and (is_super or node.attr not in own | PUBLIC):
        yield Reliance(node.lineno, ast.unparse(node))


def _imported(tree: ast.Module) -> dict[str, str]:
    """Return the names that a file binds to libraries and their objects, each with its library."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                library = alias.name.partition(".")[0]
                names |= {alias.asname or library: library} if _is_library(library) else {}
        elif isinstance(node, ast.ImportFrom) and _is_library(node.module or ""):
            names |= {alias.asname or alias.name: (node.module or "").partition(".")[0] for alias in node.names}
    return names


def _is_library(module: str) -> bool:
    return module.partition(".")[0] not in {"pipeline", *sys.stdlib_module_names}


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def _root(node: ast.expr) -> str:
    """Return the name an expression of attributes and indices begins with; empty for any other expression."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def scan(package: Path) -> dict[str, list[Reliance]]:
    """Return the uses of libraries' internals by file, relative to the package's parent."""
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(package.rglob("*.py"))}
    own = own_names(list(trees.values()))
    by_file = {file.relative_to(package.parent).as_posix(): list(reliances(tree, own)) for file, tree in trees.items()}
    return {file: uses for file, uses in by_file.items() if uses}
