"""Items to label: responses to one prompt, two to compare or several to rank, without their origin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.plain_data import JsonObject, Row
from pipeline.records.shapes.turns import Turn, content_of

Turns = tuple[Turn, ...]
"""The turns of a prompt or of a response."""

REPEATED = 3
"""Number of labels of an item that is labelled several times to measure agreement."""


@dataclass(frozen=True)
class Item:
    """Responses to compare: a pair, or a group of three and more to rank.

    Attributes:
        id: first 16 hex digits of the SHA-256 of prompt and responses.
        prompt: the conversation before the responses.
        responses: the responses, in the order of the data.
        propensity: probability with which just these were chosen among the prompt's answers; None if it is not known.
        tools: tools that the assistant may call.
    """

    id: str
    prompt: Turns
    responses: tuple[Turns, ...]
    propensity: float | None = None
    tools: tuple[JsonObject, ...] = ()

    @property
    def is_ranked(self) -> bool:
        """Whether the responses are ranked; two are compared."""
        return len(self.responses) > 2


def items_of(rows: Iterable[Row]) -> tuple[list[Item], int]:
    """Return the items of preference rows, and the number of rows left out: duplicates, and equal responses.

    The preference that a row contains is not used.
    """
    return _distinct((row, (tuple(row["chosen"]), tuple(row["rejected"]))) for row in rows)


def groups_of(rows: Iterable[Row]) -> tuple[list[Item], int]:
    """Return the items of rows with `answers` to rank, and the number of rows left out, as `items_of` does."""
    return _distinct((row, tuple(map(tuple, row["answers"]))) for row in rows)


def _distinct(rows: Iterable[tuple[Row, tuple[Turns, ...]]]) -> tuple[list[Item], int]:
    items: dict[str, Item] = {}
    left_out = 0
    encode = json.JSONEncoder(sort_keys=True, ensure_ascii=False).encode  # `json.dumps` makes an encoder for each row
    for row, responses in rows:
        prompt = tuple(row["prompt"])
        text = encode([prompt, *responses])
        item_id = hashlib.sha256(text.encode()).hexdigest()[:16]
        texts = [" ".join(_words(response)) for response in responses]
        if item_id in items or len(set(texts)) < len(texts):
            left_out += 1
            continue
        propensity, tools = _propensity(row.get("propensity")), tuple(row.get("tools") or ())
        items[item_id] = Item(item_id, prompt, responses, propensity, tools)
    return list(items.values()), left_out


def is_ranked(items: Sequence[Item]) -> bool:
    """Return whether items are groups to rank; a batch has groups only, or pairs only."""
    return len(items) > 0 and items[0].is_ranked


def _propensity(value: object) -> float | None:
    """Return the propensity that a row gives; None for anything that is no probability above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 < value <= 1 else None


def wanted(item: str, per_item: int, overlap: float) -> int:
    """Return the number of labels an item needs: ``per_item``; for the share ``overlap``, at least `REPEATED`."""
    return max(per_item, REPEATED) if _share(f"overlap/{item}") < overlap else per_item


def text_of(turns: Sequence[Turn]) -> str:
    """Return the contents of turns, joined by empty lines."""
    return "\n\n".join(str(turn["content"]) for turn in turns)


def _words(turns: Sequence[Turn]) -> list[str]:
    return " ".join(map(content_of, turns)).split()


def _share(text: str) -> float:
    """Hash a text to a uniform number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
