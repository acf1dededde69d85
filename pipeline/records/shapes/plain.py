"""Writes rows of plain text as they were read, so that a base model without a chat template continues them again.

Owns nothing of formats: `pipeline.records.shapes.formats` reads such rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.plain_data import Row


def as_written(sides: Mapping[str, Sequence[Any]], row: Row) -> dict[str, Any]:
    """Return the sides of a row as texts if the row that they come from was plain text, else as the turns they are.

    Args:
        sides: turns by column, such as `prompt` and `chosen`.
        row: the row with the prompt, as a source of data gives it.
    """
    if not row.get("plain_text"):
        return dict(sides)
    return {name: "".join(str(turn["content"]) for turn in turns) for name, turns in sides.items()}
