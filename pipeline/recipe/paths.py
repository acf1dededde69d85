"""Resolves paths of a recipe to files: environment variables, lookup folders, globs.

Knows nothing of what the files hold.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import PipelineError, Problem, nearest

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
FILE_TYPES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
"""Suffixes of data files, in any case and also with a compression suffix; used for folders, globs and readers."""

_VARIABLE = re.compile(
    r"(?P<escape>\$)?\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>(?:(?!\$\{)[^}])*))?\})?"
)
"""A variable; with neither an escape nor a name, a ``${`` that begins none."""


class Variable(NamedTuple):
    """An environment variable that a recipe names, and what stands in its place.

    Attributes:
        name: name of the variable.
        value: its value, or the default that the recipe gives.
        is_set: whether the value is the variable's own.
    """

    name: str
    value: str
    is_set: bool


def expand(text: str, environ: Mapping[str, str] | None = None, *, variables: list[Variable] | None = None) -> str:
    """Replace ``${NAME}`` and ``${NAME:-default}``, and a leading ``~``; ``$${`` stands for ``${`` itself.

    As in a shell, a variable that is empty is taken for one that is not set.

    Args:
        text: path, id or other text of a recipe.
        environ: the environment; that of this process by default.
        variables: the variables in ``text`` are appended to it.

    Raises:
        PipelineError: a variable without a default is not set, or a ``${`` begins no variable; there is one problem
            for each.
    """
    environ = os.environ if environ is None else environ
    problems: list[Problem] = []

    def value(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if match["escape"]:
            return match[0][1:]
        if name is None:
            expected = "${NAME} or ${NAME:-default}, where the default has no `}` and no variable"
            problems.append(
                Problem(f"a `${{` in `{text}` begins no variable", expected, "write $${ for the characters")
            )
            return ""
        given = environ.get(name)
        if not given and default is None:
            statement = f"the environment variable {name} in `{text}` is {'not set' if given is None else 'empty'}"
            problems.append(Problem(statement, remedy=f"set it, or write ${{{name}:-a default}}"))
        if variables is not None:
            variables.append(Variable(name, given or default or "", bool(given)))
        return given or default or ""

    expanded = _VARIABLE.sub(value, text)
    if problems:
        raise PipelineError(*dict.fromkeys(problems))
    return os.path.expanduser(expanded)  # noqa: PTH111 -- `Path.expanduser` raises where there is no such user


def lookup_folders(*files: Path) -> tuple[Path, ...]:
    """Return the lookup folders of relative paths: each file's folder and its parent, then the current folder."""
    folders: list[Path] = []
    for file in files:
        folder = file.resolve().parent
        folders += [folder, folder.parent]
    return tuple(dict.fromkeys([*folders, Path.cwd()]))


def find(path: str, folders: Iterable[Path]) -> Path | None:
    """Return the absolute path of the first existing ``folder/path``, or None; an absolute path ignores the folders."""
    for folder in [*folders, Path.cwd()]:
        candidate = folder / path
        if os.path.exists(candidate):  # noqa: PTH110 -- Path.exists raises for a name that is too long
            return Path(os.path.normpath(candidate))
    return None


def find_files(pattern: str, folders: Iterable[Path]) -> tuple[Path, ...]:
    """Return the files of a path, folder or glob in the first lookup folder that has any.

    Raises:
        PipelineError: there are no such files.
    """
    folders = tuple(folders)
    for folder in folders:
        exact = folder / pattern
        if exact.is_file():
            return (Path(os.path.normpath(exact)),)
        if exact.is_dir():
            hits = [p for p in exact.iterdir() if p.is_file() and is_data_file(p)]
            if not hits:
                expected = f"{', '.join(FILE_TYPES)}, also with {', '.join(COMPRESSIONS)}"
                below = any(is_data_file(p) for p in exact.rglob("*"))
                remedy = f"name those in its folders: `{pattern.rstrip('/')}/**/*`" if below else ""
                raise PipelineError(Problem(f"folder `{pattern}` holds no data files", expected, remedy))
        elif glob.has_magic(pattern):
            hits = [Path(p) for p in glob.glob(str(exact), recursive=True) if Path(p).is_file()]  # noqa: PTH207
        else:
            hits = []
        if hits:
            return tuple(sorted(Path(os.path.normpath(p)) for p in hits))
    statement = f"no file matches `{pattern}`" if glob.has_magic(pattern) else f"`{pattern}` does not exist"
    looked = " or ".join(str(f) for f in folders[:1]) if Path(pattern).is_absolute() is False else ""
    raise PipelineError(
        Problem(
            statement,
            f"a file below {looked}, its parent or the current folder" if looked else "",
            _near(pattern, folders),
        )
    )


def is_data_file(path: Path) -> bool:
    """Return whether a file's name has the suffix of a data file and is not hidden."""
    return suffix_of(path.name) in FILE_TYPES and not path.name.startswith(".")


def suffix_of(name: str) -> str:
    """Return the suffix that names the type of a file, in lower case and without compression suffixes."""
    name = name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return Path(name).suffix


def distinct(files: Iterable[Path]) -> tuple[tuple[Path, ...], tuple[tuple[Path, Path], ...]]:
    """Return files without duplicates by inode, and each duplicate with the path it repeats.

    Of a symbolic link and its target, the link is the duplicate.
    """
    by_identity: dict[tuple[int, int], Path] = {}
    for file in files:
        one = by_identity.setdefault(_identity(file), file)
        if one.is_symlink() and not file.is_symlink():
            by_identity[_identity(file)] = file
    again = (
        (file, by_identity[_identity(file)]) for file in dict.fromkeys(files) if by_identity[_identity(file)] != file
    )
    first = dict.fromkeys(by_identity[_identity(file)] for file in files)
    return tuple(first), tuple(again)


def _identity(file: Path) -> tuple[int, int]:
    """Return device and inode of a file, which are the same for all of its names."""
    status = file.stat()
    return status.st_dev, status.st_ino


def unread_files(pattern: str, folders: Iterable[Path]) -> tuple[str, ...]:
    """Return the names in a folder of `path` that are not data files, sorted; names of folders end with ``/``."""
    for folder in folders:
        exact = folder / pattern
        if exact.is_dir():
            unread = [p for p in exact.iterdir() if not (p.is_file() and is_data_file(p))]
            return tuple(sorted(f"{p.name}/" if p.is_dir() else p.name for p in unread))
        if exact.exists():
            break
    return ()


def _near(pattern: str, folders: tuple[Path, ...]) -> str:
    """Return a suggestion of an existing path with a similar name; empty if there is none."""
    for folder in folders:
        parent = (folder / pattern).parent
        if parent.is_dir():
            hint = nearest(Path(pattern).name, [p.name for p in parent.iterdir()])
            if hint:
                return hint
    return ""
