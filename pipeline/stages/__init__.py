"""One package per kind of stage. A new kind is one new package here and its test; nothing existing changes."""

from __future__ import annotations

import importlib
import pkgutil


def load_all() -> None:
    """Import every module of the packages in this one, which registers their kinds; imports no torch."""
    for module in pkgutil.walk_packages(__path__, f"{__name__}."):
        importlib.import_module(module.name)
