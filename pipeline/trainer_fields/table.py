"""Reads `table.json`, the fields of the installed trainers' configurations with their types."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_suffix(".json")


@functools.cache
def table() -> dict[str, dict[str, dict[str, Any]]]:
    """Return ``{class: {field: {"type": …, "optional": …}}}``, with ``values`` for enumerations."""
    data: dict[str, dict[str, dict[str, Any]]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return data
