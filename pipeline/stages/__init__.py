"""One package per kind of stage: `config.py` registers the kind, `train.py` or `run.py` runs it.

A new kind is one new package here and its test; nothing existing changes.
"""

from __future__ import annotations

import importlib
import pkgutil


def load_all() -> None:
    """Import the `config` module of every package in this one, which registers its kind; imports no torch."""
    for package in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{package.name}.config")
