"""Names for mappings whose keys only a user, a file or a library knows.

A mapping with known keys is a record: a frozen dataclass, or a `TypedDict` if it is written to JSON as it is. A field
that pydantic validates has one of these names instead: pydantic takes no `typing.TypedDict` on Python 3.11. Imports
nothing of the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
"""A row of a user's data: the columns of its format or shape, and any others that the user gave it."""

ShapedRow = dict[str, Any]
"""A `Row` in one of the shapes that stages take (`records/shapes/conversion.py`); other columns stay in it."""

JsonObject = dict[str, Any]
"""An object of a JSON document of unknown shape: a library's file, a user's block, a recorded environment."""

JsonView = Mapping[str, Any]
"""A `JsonObject` that is only read."""

KeywordArguments = dict[str, Any]
"""Keyword arguments of a library's function, by name."""
