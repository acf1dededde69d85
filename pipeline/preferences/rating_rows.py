"""What people said in each dimension, as rows: one per label that has ratings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

from pipeline.preferences.events import Rating, Verdict
from pipeline.preferences.items import Item
from pipeline.preferences.labels import State
from pipeline.records.shapes.turns import Turn


class RatedLabel(TypedDict):
    """The ratings of one person for one item, as they were given.

    Attributes:
        item: id of the item.
        annotator: name of the person.
        prompt: turns before the responses.
        first: turns of the first response, in the order of the data.
        second: turns of the second response.
        verdict: the person's choice.
        ratings: by dimension; `first` and `second` are the responses above.
    """

    item: str
    annotator: str
    prompt: list[Turn]
    first: list[Turn]
    second: list[Turn]
    verdict: Verdict | None
    ratings: dict[str, Rating]


def rating_rows(items: Iterable[Item], state: State) -> list[RatedLabel]:
    """Return the labels that have ratings, in the order of items, then in that in which they were given."""
    return [
        {
            "item": item.id,
            "annotator": name,
            "prompt": [turn.copy() for turn in item.prompt],
            "first": [turn.copy() for turn in item.responses[0]],
            "second": [turn.copy() for turn in item.responses[1]],
            "verdict": label.verdict,
            "ratings": dict(label.details.ratings),
        }
        for item in items
        for name, label in state.labels(item.id).items()
        if label.details is not None and label.details.ratings
    ]
