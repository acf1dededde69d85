"""Where a path in a recipe points: environment variables, lookup folders, globs.

Owns turning the text of a path into files. Knows nothing of what the files hold.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.errors import PipelineError, Problem, nearest

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
_VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}")


def expand(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Replace ``${NAME}`` and ``${NAME:-default}``, and a leading ``~``.

    Raises:
        PipelineError: a variable without a default is not set; one problem for each.
    """
    environ = os.environ if environ is None else environ
    unset: list[str] = []

    def value(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if environ.get(name):
            return environ[name]
        if default is None:
            unset.append(name)
            return ""
        return str(default)

    expanded = _VARIABLE.sub(value, text)
    if unset:
        raise PipelineError(
            *(
                Problem(
                    f"the environment variable {name} in `{text}` is not set",
                    remedy=f"set it, or write ${{{name}:-a default}}",
                )
                for name in dict.fromkeys(unset)
            )
        )
    return str(Path(expanded).expanduser()) if expanded.startswith("~") else expanded


def lookup_folders(*files: Path) -> tuple[Path, ...]:
    """Return the folders a relative path is looked up in: each file's, its parent, then the current one."""
    folders: list[Path] = []
    for file in files:
        folder = file.resolve().parent
        folders += [folder, folder.parent]
    return tuple(dict.fromkeys([*folders, Path.cwd()]))


def find(path: str, folders: Iterable[Path]) -> Path | None:
    """Return the first existing ``folder/path``, absolute, or None; an absolute path needs no folders."""
    for folder in [*folders, Path.cwd()]:
        candidate = folder / path
        if os.path.exists(candidate):  # noqa: PTH110 -- Path.exists raises for a name that is too long
            return Path(os.path.normpath(candidate))
    return None


def find_files(pattern: str, folders: Iterable[Path]) -> tuple[Path, ...]:
    """Return the files a path, a folder or a glob names; the first lookup folder with any wins.

    Raises:
        PipelineError: there are none.
    """
    folders = tuple(folders)
    for folder in folders:
        exact = folder / pattern
        if exact.is_file():
            return (Path(os.path.normpath(exact)),)
        if exact.is_dir():
            hits = [p for p in exact.iterdir() if p.is_file() and is_data_file(p)]
            if not hits:
                raise PipelineError(Problem(f"folder `{pattern}` holds no data files", f"{', '.join(DATA_SUFFIXES)}"))
        elif glob.has_magic(pattern):
            hits = [Path(p) for p in glob.glob(str(exact), recursive=True) if Path(p).is_file()]  # noqa: PTH207
        else:
            hits = []
        if hits:
            return tuple(sorted(Path(os.path.normpath(p)) for p in hits))
    found = f"no file matches `{pattern}`" if glob.has_magic(pattern) else f"`{pattern}` does not exist"
    looked = " or ".join(str(f) for f in folders[:1]) if Path(pattern).is_absolute() is False else ""
    raise PipelineError(
        Problem(
            found, f"a file below {looked}, its parent or the current folder" if looked else "", _near(pattern, folders)
        )
    )


def is_data_file(path: Path) -> bool:
    """Say whether a file's name is one of a format rows are read from, compressed or not."""
    return path.name.removesuffix(".gz").endswith(DATA_SUFFIXES) and not path.name.startswith(".")


def _near(pattern: str, folders: tuple[Path, ...]) -> str:
    """Suggest a sibling with a similar name."""
    for folder in folders:
        parent = (folder / pattern).parent
        if parent.is_dir():
            hint = nearest(Path(pattern).name, [p.name for p in parent.iterdir()])
            if hint:
                return hint
    return ""
