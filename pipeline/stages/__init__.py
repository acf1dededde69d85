"""One package per kind of stage: `config.py` registers the kind, `train.py` or `run.py` runs it.

A new kind is one new package here and its test, or a package of its own that names its `config` module under the entry
points `trueup.kinds`; nothing existing changes.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import EntryPoint, entry_points

from pipeline.errors import PipelineError, Problem
from pipeline.stage import KINDS

INSTALLED = "trueup.kinds"
"""Group of the entry points under which installed packages name the modules that register their kinds."""


def load_all() -> None:
    """Import the `config` module of every kind, here and in installed packages, which registers it; imports no torch.

    Raises:
        PipelineError: a module of an installed package cannot be imported, or registers a name that is taken.
    """
    for package in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{package.name}.config")
    for entry in entry_points(group=INSTALLED):
        _load(entry)


def _load(entry: EntryPoint) -> None:
    """Import the module of an installed package.

    Raises:
        PipelineError: it cannot be imported, or registers a name that is taken.
    """
    whose = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "a package"
    before = dict(KINDS)
    try:
        entry.load()
    except PipelineError:
        raise
    except Exception as error:  # the module of another package may raise anything
        statement = f"kind `{entry.name}` of {whose} cannot be loaded: {type(error).__name__}: {_first_line(error)}"
        remedy = f"correct {entry.value}, or uninstall {whose.partition(' ')[0]}"
        raise PipelineError(Problem(statement, "a module that registers its kinds", remedy)) from error
    taken = next((name for name, kind in before.items() if KINDS[name] is not kind), None)
    if taken is not None:
        KINDS.update(before)
        statement = f"{whose} registers a kind `{taken}`, which exists already"
        raise PipelineError(Problem(statement, "a name of its own", f"rename it in {entry.value}"))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
