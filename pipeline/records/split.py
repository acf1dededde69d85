"""Which rows are held out: decided by the prompt's text alone.

Owns the key of a row and the side it falls on. The side does not depend on seeds, on other rows, on file order or on
the source, so a prompt held out from the demonstrations is also held out from the preferences, and more rows added
later never move an old one. The share reached is therefore near the one asked for, not equal to it.
"""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Any

from pipeline.stage import Shape

SALT = b"trueup-held-out"


def split(rows: list[dict[str, Any]], share: float, shape: Shape) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Split rows into those to learn from and those held out, in their order.

    All rows of one prompt fall on one side. With two prompts or more and ``0 < share < 1`` each side gets at least one:
    the lowest prompt is always held out, the highest never.

    Args:
        rows: loaded rows.
        share: of prompts to hold out, from 0 to 1.
        shape: of the rows.
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


def _above(position: float) -> float:
    return position + 2.0**-53


def key(row: dict[str, Any], shape: Shape) -> str:
    """Return what decides a row's side: the first user turn of its prompt, or its text.

    The first turn and not the whole prompt, because later turns of one conversation quote its earlier answers: two
    rows of one conversation on two sides would leak. Case and white space do not count.
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
    """Return where a key stands in [0, 1): evenly spread, the same for ever."""
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, key=SALT).digest(), "big")
    return (number >> 11) * 2.0**-53
