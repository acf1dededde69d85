"""What is labelled: pairs of responses to one prompt, without a word on where they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Turns = tuple[Mapping[str, Any], ...]
"""Messages, ``{"role": …, "content": …}``."""

REPEATED = 3
"""Labels of an item that is labelled several times."""


@dataclass(frozen=True)
class Item:
    """Two responses to compare.

    Attributes:
        id: SHA-256 of prompt and responses, 16 hex digits.
        prompt: the conversation up to the responses.
        responses: both of them, as the data has them.
    """

    id: str
    prompt: Turns
    responses: tuple[Turns, Turns]


def items_of(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Item], int]:
    """Return the pairs of preference rows, and how many rows are none: repeated ones, and two equal responses.

    Which response a row calls the better one is not used.
    """
    items: dict[str, Item] = {}
    left_out = 0
    for row in rows:
        prompt, first, second = (tuple(row[key]) for key in ("prompt", "chosen", "rejected"))
        text = json.dumps([prompt, first, second], sort_keys=True, ensure_ascii=False)
        item_id = hashlib.sha256(text.encode()).hexdigest()[:16]
        if item_id in items or _plain(first) == _plain(second):
            left_out += 1
            continue
        items[item_id] = Item(item_id, prompt, (first, second))
    return list(items.values()), left_out


def is_swapped(item: str, annotator: str) -> bool:
    """Return whether an annotator is shown the second response first: by chance, and always the same for both."""
    return _share(f"{annotator}/{item}") < 0.5


def wanted(item: str, per_item: int, overlap: float) -> int:
    """Return how many labels an item gets: ``per_item``, or three for the share ``overlap`` that measures agreement."""
    return max(per_item, REPEATED) if _share(f"overlap/{item}") < overlap else per_item


def text_of(turns: Sequence[Mapping[str, Any]]) -> str:
    """Return what turns say, one after another."""
    return "\n\n".join(str(turn["content"]) for turn in turns)


def _plain(turns: Sequence[Mapping[str, Any]]) -> str:
    return " ".join(text_of(turns).split())


def _share(text: str) -> float:
    """Return a number in [0, 1) that stands for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
