"""User functions named in a recipe: ``module:name`` or ``path/to/file.py:name``.

Owns finding such a function without importing it, hashing its source, and importing it. Knows nothing of what a
function is for.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from pipeline.errors import PipelineError, Problem, listed, nearest
from pipeline.recipe.paths import find


@dataclass(frozen=True)
class CodeSource:
    """The source of a function.

    Attributes:
        function: name of the function.
        file: the file that defines it.
        sha256: hash of that file and of the files in its folder that it imports.
    """

    function: str
    file: Path
    sha256: str

    @property
    def fingerprint(self) -> str:
        """The text that enters a stage's fingerprint."""
        return f"{self.function}@{self.sha256}"


def find_code(spec: str, search_dirs: Sequence[Path]) -> CodeSource:
    """Find a function without importing anything.

    Raises:
        PipelineError: the text has the wrong form, there is no such file or module, or it does not define the function.
    """
    target, function = _split(spec)
    file = _file_of(target, search_dirs)
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise PipelineError(Problem(f"{file.name} line {line} is not valid Python: {error}")) from None
    defined = list(_defined(tree))
    if function not in defined:
        remedy = nearest(function, defined) or (f"it defines {listed(defined)}" if defined else "")
        for statement in tree.body:
            if isinstance(statement, ast.ImportFrom) and function in {a.asname or a.name for a in statement.names}:
                remedy = f"it only imports it from `{statement.module or '.'}`: name the file that defines it"
        raise PipelineError(Problem(f"{file.name} does not define `{function}`", remedy=remedy))
    return CodeSource(function, file, _source_digest(file))


def load_function(spec: str, search_dirs: Sequence[Path]) -> Callable[..., Any]:
    """Import a function, with its folder on `sys.path` as if the file were run.

    Raises:
        PipelineError: the function does not exist, or is not callable.
    """
    source = find_code(spec, search_dirs)
    target, function = _split(spec)
    module = _module_from(source.file) if _is_file(target) else _named_module(target, source.file)
    loaded: Any = getattr(module, function)
    if not callable(loaded):
        raise PipelineError(Problem(f"`{spec}` is {type(loaded).__name__}", "a function"))
    function_of_spec: Callable[..., Any] = loaded
    return function_of_spec


def _split(spec: str) -> tuple[str, str]:
    target, colon, function = spec.rpartition(":")
    if not colon or not target or not function.isidentifier():
        raise PipelineError(Problem(f"`{spec}` names no function", "`module:name` or `path/to/file.py:name`"))
    return target, function


def _is_file(target: str) -> bool:
    return target.endswith(".py")


def _file_of(target: str, search_dirs: Sequence[Path]) -> Path:
    """Return the source file of a path or of a dotted module name."""
    if _is_file(target):
        file = find(target, search_dirs)
        if file is None:
            raise PipelineError(
                Problem(f"`{target}` does not exist", f"a file below {search_dirs[0]}" if search_dirs else "")
            )
        return file
    parts = target.split(".")
    places: list[str] | None = [str(folder) for folder in search_dirs] + sys.path
    spec = None
    for index in range(len(parts)):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[: index + 1]), places)
        if spec is None and index == 0:
            spec = importlib.util.find_spec(parts[0])
        if spec is None:
            raise PipelineError(Problem(f"there is no module `{target}`", "a module that can be imported from here"))
        places = list(spec.submodule_search_locations or [])
    origin = spec.origin if spec is not None else None
    if origin is None or not origin.endswith(".py"):
        raise PipelineError(Problem(f"module `{target}` has no Python source", "a module written in Python"))
    return Path(origin)


def _defined(tree: ast.Module) -> Iterator[str]:
    """Yield the names a module defines at its top level."""
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield statement.name
        elif isinstance(statement, ast.Assign):
            yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            yield statement.target.id


def _source_digest(file: Path) -> str:
    """Hash a file together with the files in its folder that it imports, directly or indirectly."""
    seen = _source_digests(file)
    if len(seen) == 1:
        return seen[file]
    return hashlib.sha256("\n".join([seen.pop(file), *sorted(seen.values())]).encode()).hexdigest()


def _source_digests(file: Path) -> dict[Path, str]:
    """Hash a file, and each file in its folder that it imports, directly or indirectly."""
    seen: dict[Path, str] = {}
    waiting = [file]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        content = current.read_bytes()
        seen[current] = hashlib.sha256(content).hexdigest()
        waiting += _imported_beside(current, content)
    return seen


def _imported_beside(file: Path, content: bytes) -> list[Path]:
    """Return the modules in the same folder that a file imports."""
    names: list[str] = []
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level <= 1:
            names += [node.module] if node.module else [alias.name for alias in node.names]
    beside = [file.parent / f"{name.partition('.')[0]}.py" for name in names]
    return [path for path in beside if path.is_file()]


class _FromSource(importlib.machinery.SourceFileLoader):
    """Compiles a file anew each time.

    Python takes a compiled file for current when the source has the same size and was changed in the same second.
    What runs must be what the fingerprint was made of.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Compile the source as it is now."""
        return self.source_to_code(self.get_data(self.path), self.path)


def _module_from(file: Path) -> ModuleType:
    """Import a file under a name of its own, as it and the files beside it are now."""
    identity = f"{file}\n{_source_digest(file)}"
    name = f"trueup_user_{file.stem}_{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file, loader=_FromSource(name, str(file)))
    if spec is None or spec.loader is None:
        raise PipelineError(Problem(f"{file} cannot be imported"))
    module = importlib.util.module_from_spec(spec)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    sys.modules[name] = module
    try:
        with _imported_anew([beside for beside in _source_digests(file) if beside != file]):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class _Beside(importlib.abc.MetaPathFinder):
    """Finds the modules of some files, and compiles them anew."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = {file.stem: file for file in files}

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return where a module comes from; none when it is of no such file."""
        file = self.files.get(fullname)
        if file is None:
            return None
        return importlib.util.spec_from_file_location(fullname, file, loader=_FromSource(fullname, str(file)))


@contextmanager
def _imported_anew(files: Sequence[Path]) -> Iterator[None]:
    """Import what these files hold now, whatever an earlier import left in memory or compiled."""
    for file in files:
        known = sys.modules.get(file.stem)
        # Of another folder too: two functions may each have a helper of one name.
        if isinstance(getattr(known, "__loader__", None), _FromSource) or getattr(known, "__file__", None) == str(file):
            del sys.modules[file.stem]
    beside = _Beside(files)
    sys.meta_path.insert(0, beside)
    try:
        yield
    finally:
        sys.meta_path.remove(beside)


def _named_module(target: str, file: Path) -> ModuleType:
    """Import a dotted name, with the folder of its package on `sys.path`."""
    depth = target.count(".") + (2 if file.name == "__init__.py" else 1)
    root = str(file.parents[depth - 1])
    if root not in sys.path:
        sys.path.append(root)
    module = importlib.import_module(target)
    if module.__file__ is None or Path(module.__file__).resolve() != file.resolve():
        raise PipelineError(
            Problem(
                f"module `{target}` is {module.__file__}", f"{file}", "name the function by its file: `path.py:name`"
            )
        )
    return module
