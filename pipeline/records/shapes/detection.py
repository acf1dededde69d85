"""Detects the format of rows from all columns of all rows, and from what the columns hold.

Incomplete rows (a pair with one answer) count only if no row is complete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import NamedTuple

from pipeline.errors import agreeing, counted
from pipeline.plain_data import Row
from pipeline.records.shapes.comparisons import is_comparison, read_by
from pipeline.records.shapes.formats import OPENAI_PAIR, holds_candidates
from pipeline.records.shapes.turns import TRANSCRIPT_TURN
from pipeline.stage import Shape

IDENTIFYING_COLUMNS: dict[str, frozenset[str]] = {
    "messages": frozenset({"messages"}),
    "sharegpt": frozenset({"conversations"}),
    "prompt_completion": frozenset({"prompt", "completion"}),
    "alpaca": frozenset({"instruction", "output"}),
    "prompt": frozenset({"prompt"}),
    "text": frozenset({"text"}),
}
"""Columns that identify a format; richer formats come first, as data sets repeat one content in several formats."""


class Detected(NamedTuple):
    """The format of rows, and the reason as text that follows ``format NAME:``."""

    format: str
    why: str


class _RowFormat(NamedTuple):
    format: str
    columns: tuple[str, ...]
    is_whole: bool = True


def detected_format(rows: Iterable[Row], shapes: Collection[Shape]) -> Detected | None:
    """Return the format that most rows have and the reason; None if no row has a known format.

    Args:
        rows: all readable rows, renamed as the recipe asks.
        shapes: shapes the stage takes.
    """
    votes = Counter(_format_of(row, shapes) for row in rows)
    count = sum(votes.values())
    votes.pop(None, None)
    counts: Counter[str] = Counter()
    for is_whole in (True, False):
        for vote, number in votes.items():
            if vote is not None and vote.is_whole == is_whole:
                counts[vote.format] += number
        if counts:
            break
    if not counts:
        return None
    row_format, number = counts.most_common(1)[0]
    columns = next(
        vote.columns
        for vote, _ in votes.most_common()
        if vote is not None and vote.format == row_format and vote.is_whole == is_whole
    )
    others = ", ".join(f"{more} of format {name}" for name, more in counts.items() if name != row_format)
    have = agreeing(number, "has", "have")
    why = f"{number:,} of {counted(count, 'row')} {have} {' and '.join(f'`{one}`' for one in columns)}"
    return Detected(row_format, f"{why}; {others}" if others else why)


def _format_of(row: Row, shapes: Collection[Shape]) -> _RowFormat | None:
    """Return the format of one row by its columns; None if it has none."""
    has = {name for name, value in row.items() if value is not None and value != "" and value != []}
    if "text" in shapes and isinstance(row.get("text"), str):
        return _RowFormat("text", ("text",))
    is_sampled = "prompt" in has and isinstance(row.get("pairs"), list) and holds_candidates(row.get("candidates"))
    if "candidates" in shapes and is_sampled:  # of a `sample` stage, whatever else the rows of its prompts had
        return _RowFormat("candidates", ("prompt", "candidates"))
    if {"chosen", "rejected"} <= has:
        return _RowFormat("hh" if _holds_transcripts(row) else "preference", ("chosen", "rejected"))
    if has.issuperset(OPENAI_PAIR):
        return _RowFormat("preference", OPENAI_PAIR)
    if is_comparison(row) and ("preference" in shapes or "candidates" not in shapes):
        return _RowFormat("comparison", read_by(row))
    if "candidates" in shapes and "prompt" in has and holds_candidates(row.get("candidates")):
        return _RowFormat("candidates", ("prompt", "candidates"))
    if "preference" in shapes and {"chosen", "rejected"} & has:  # half a pair is a bad pair, not a prompt
        pair_format = "hh" if _holds_transcripts(row) else "preference"
        return _RowFormat(pair_format, tuple(sorted({"chosen", "rejected"} & has)), is_whole=False)
    row_format = next((name for name, columns in IDENTIFYING_COLUMNS.items() if columns <= has), None)
    if row_format in (None, "prompt") and "messages" in shapes and "prompt" not in shapes:  # half a pair is a bad pair
        for name in ("prompt_completion", "alpaca"):
            if IDENTIFYING_COLUMNS[name] <= row.keys() and IDENTIFYING_COLUMNS[name] & has:
                return _RowFormat(name, tuple(sorted(IDENTIFYING_COLUMNS[name] & has)), is_whole=False)
    if row_format:
        return _RowFormat(
            row_format, tuple(sorted(IDENTIFYING_COLUMNS[row_format], reverse=row_format == "prompt_completion"))
        )
    if "prompt" in shapes and "instruction" in has:
        return _RowFormat("prompt", ("instruction",))
    return _RowFormat("prompt", ("turns",)) if isinstance(row.get("turns"), list) else None


def _holds_transcripts(row: Row) -> bool:
    sides = [row[name] for name in ("chosen", "rejected") if row.get(name) not in (None, "", [])]
    opening = row.get("prompt") if isinstance(row.get("prompt"), str) else sides[0]
    return (
        all(isinstance(side, str) for side in sides)
        and isinstance(opening, str)
        and bool(TRANSCRIPT_TURN.match(opening))
    )
