"""One file per kind of stage. A new kind is one new file here and its test; nothing existing changes."""

from __future__ import annotations

import importlib
import pkgutil


def load_all() -> None:
    """Import every module of this package, which registers its kinds; imports no torch."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
