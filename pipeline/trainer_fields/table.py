"""Reads `table.json`, the fields of the installed trainers' configurations with their types."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

GivenFields = Mapping[str, Any]
"""Fields of a trainer that a recipe gives, by name; the values are checked against the trainer's `FieldInfo`."""


class FieldInfo(TypedDict):
    """A field of a trainer's configuration.

    Attributes:
        type: ``int``, ``float``, ``bool``, ``str``, or ``any``.
        optional: whether it takes null.
        values: the words of an enumeration.
    """

    type: str
    optional: bool
    values: NotRequired[list[str]]


Table = dict[str, dict[str, FieldInfo]]
"""The fields of each trainer's configuration, by class and field."""

TABLE = Path(__file__).with_suffix(".json")


@functools.cache
def table() -> Table:
    """Return the fields of the trainers that the table was built from."""
    data: Table = json.loads(TABLE.read_text(encoding="utf-8"))
    return data
