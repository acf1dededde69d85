"""The mark of rows of plain text, which a base model without a chat template continues.

Rows that a stage writes are turns, whatever they were read from. The mark says that their turns were plain text, so
that they are continued again where they are read.
"""

from __future__ import annotations

from pipeline.plain_data import JsonObject, Row

MARK = "plain_text"
"""Key of a row whose sides were plain text."""


def mark_of(row: Row) -> JsonObject:
    """Return the mark of a row as columns to write: none if the row is a conversation."""
    return {MARK: True} if row.get(MARK) is True else {}
