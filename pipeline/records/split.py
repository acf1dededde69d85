"""Splits rows into training and held-out rows by a hash of the prompt's text.

Owns the key of a row and its side. The side does not depend on seeds, other rows, file order or the source. A prompt
held out from the demonstrations is therefore also held out from the preferences, and added rows never move an old one.
The share held out is close to the requested share, not equal to it.
"""

from __future__ import annotations

import hashlib
import unicodedata

from pipeline.errors import Problem, counted
from pipeline.plain_data import Row, ShapedRow
from pipeline.stage import Shape

SALT = b"trueup-held-out"


def split(rows: list[ShapedRow], share: float, shape: Shape) -> tuple[list[ShapedRow], list[ShapedRow]]:
    """Split rows into training rows and held-out rows; both keep the order of the rows.

    All rows of one prompt fall on one side. With two prompts or more and ``0 < share < 1`` each side gets at least one:
    the lowest prompt is always held out, the highest never.

    Args:
        rows: loaded rows.
        share: share of the prompts to hold out, from 0 to 1.
        shape: shape of the rows.
    """
    if share <= 0:
        return rows, []
    positions = [position(key(row, shape)) for row in rows]
    lowest, highest = min(positions, default=0.0), max(positions, default=0.0)
    if lowest == highest:
        return (rows, []) if share < 1 else ([], rows)
    cut = share if share >= 1 else min(max(share, _above(lowest)), highest)
    train = [row for row, at in zip(rows, positions, strict=True) if at >= cut]
    held_out = [row for row, at in zip(rows, positions, strict=True) if at < cut]
    return train, held_out


def is_within(row: Row, part: tuple[float, float], shape: Shape) -> bool:
    """Return whether the position of a row's prompt lies in a part; all rows of a prompt lie in one part.

    Args:
        row: a loaded row.
        part: the lowest position that belongs to it, and the lowest one above it.
        shape: shape of the row.
    """
    low, high = part
    return low <= position(key(row, shape)) < high


def empty_part_problem(part: tuple[float, float], rows: int, name: str) -> Problem:
    """Return the problem of a source of which no row lies in its part.

    Args:
        part: the part.
        rows: number of rows outside of it.
        name: name of the source in the recipe.
    """
    statement = f"data {name}: no prompt of {counted(rows, 'row')} is in the part from {part[0]:g} to {part[1]:g}"
    return Problem(statement, "at least one", "bring more rows, or widen the part")


def _above(position: float) -> float:
    return position + 2.0**-53


def key(row: Row, shape: Shape) -> str:
    """Return the text whose hash decides a row's side: the first user turn of its prompt, or its text.

    Only the first turn counts, because later turns contain earlier answers of the same conversation: two rows of one
    conversation on different sides would leak. Case and white space are normalised.
    """
    if shape == "text":
        opening = row["text"]
    else:
        turns = row["messages" if shape == "messages" else "prompt"]
        opening = next(turn["content"] for turn in turns if turn["role"] == "user")
    if not opening.isascii():
        opening = unicodedata.normalize("NFKC", opening)
    return " ".join(opening.casefold().split())


def position(text: str) -> float:
    """Return the hash of a key as a number in [0, 1), uniformly distributed and the same in every version."""
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=SALT).digest(), "big")
    return (number >> 11) * 2.0**-53
