"""Scaffolding of `trueup new`: writes a commented starter recipe, or copies an example with its data.

Owns the starters (`pipeline/cli/starters/`) and the location of examples: in a wheel `pipeline/_shipped/`, in a
checkout `recipes/` and `data/`. Knows nothing of the meaning of a recipe.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from filecmp import cmp
from itertools import compress
from pathlib import Path

from pipeline.errors import PipelineError, Problem, listed, nearest
from pipeline.machine.disk import writing

_PACKAGE = Path(__file__).resolve().parents[1]
_STARTERS = Path(__file__).resolve().with_name("starters")
_LEFT_OUT = ("__pycache__", ".DS_Store")


@dataclass(frozen=True)
class Written:
    """The files written by `trueup new`.

    Attributes:
        files: paths as the user would type them.
        recipe: the recipe among the files.
        next_steps: commands and remarks for the user, one line each.
    """

    files: tuple[Path, ...]
    recipe: Path
    next_steps: tuple[str, ...]


def starters() -> list[str]:
    """Return the kinds of starter recipes."""
    return sorted(path.stem for path in _STARTERS.glob("*.yaml"))


def examples() -> list[str]:
    """Return the names of the example recipes shipped with trueup."""
    return sorted(path.stem for path in (shipped() / "recipes").glob("*.yaml"))


def shipped() -> Path:
    """Return the folder that holds `recipes/` and `data/`: the installed copy, or the checkout."""
    installed = _PACKAGE / "_shipped"
    return installed if installed.is_dir() else _PACKAGE.parent


def write_starter(file: Path, kind: str, *, overwrite: bool = False) -> Written:
    """Write a starter recipe.

    Raises:
        PipelineError: no such kind, a file name without a YAML suffix, or the file exists.
    """
    if kind not in starters():
        raise PipelineError(Problem(f"no starter `{kind}`", f"one of {listed(starters())}", nearest(kind, starters())))
    if file.suffix not in (".yaml", ".yml"):
        raise PipelineError(Problem(f"`{file}` is not the name of a recipe", "a name that ends in .yaml"))
    _refuse_existing([file], overwrite=overwrite)
    file.parent.mkdir(parents=True, exist_ok=True)
    text = (_STARTERS / f"{kind}.yaml").read_text(encoding="utf-8")
    with writing(file):
        file.write_text(text.replace("THIS_FILE", str(file)), encoding="utf-8")
    steps = ("put your rows where `data:` says, or change the paths", f"trueup check {file}", f"trueup run {file}")
    return Written((file,), file, steps)


def write_example(name: str, folder: Path, *, overwrite: bool = False) -> Written:
    """Copy an example recipe, its data and the Python file of its functions into a folder, and those that it extends.

    What it extends may be there already, as shipped.

    Raises:
        PipelineError: no such example, or a file exists.
    """
    source = shipped()
    if name not in examples():
        raise PipelineError(Problem(f"no example `{name}`", f"one of {listed(examples())}", nearest(name, examples())))
    recipe = Path("recipes") / f"{name}.yaml"
    extended = [path for base in _extended_by(source, name) for path in _files_of(source, base)]
    is_new = [
        not (folder / path).is_file() or not cmp(folder / path, source / path, shallow=False) for path in extended
    ]
    copied = [*_files_of(source, name), *compress(extended, is_new)]
    _refuse_existing([folder / path for path in copied], overwrite=overwrite)
    for path in copied:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, folder / path)
    steps = (f"cd {folder}", f"trueup plan {recipe}", f"trueup run {recipe}")
    return Written(tuple(folder / path for path in copied), folder / recipe, steps)


def _files_of(source: Path, name: str) -> list[Path]:
    """Return the recipe of an example, its Python file and its data, relative to ``source``."""
    return [Path("recipes") / f"{name}.yaml", *_code_of(source, name), *_data_of(source, name)]


def _extended_by(source: Path, name: str) -> list[str]:
    """Return the names of the examples that an example extends, directly or through another."""
    text = (source / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    named = re.findall(r"^extends: (\S+)\.yaml$", text, re.MULTILINE)
    return [*named, *(further for base in named for further in _extended_by(source, base))]


def _code_of(source: Path, name: str) -> Iterable[Path]:
    """Return the Python file beside an example's recipe, relative to ``source``; empty without one."""
    code = Path("recipes") / f"{name.replace('-', '_')}.py"
    return [code] if (source / code).is_file() else []


def _data_of(source: Path, name: str) -> Iterable[Path]:
    """Yield the files of an example's data folder, relative to ``source``."""
    data = source / "data" / name
    for path in sorted(data.rglob("*")):
        if path.is_file() and not any(part in _LEFT_OUT for part in path.parts):
            yield path.relative_to(source)


def _refuse_existing(files: Iterable[Path], *, overwrite: bool) -> None:
    existing = [file for file in files if file.exists()]
    if existing and not overwrite:
        raise PipelineError(
            Problem(f"{listed([str(file) for file in existing], 3)} exists", "nothing there", "give --overwrite")
        )
