"""What people ranked, as rows: one per group."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

from pipeline.preferences.items import Item
from pipeline.preferences.labels import State
from pipeline.records.shapes.turns import Turn


class RankedGroup(TypedDict):
    """The rankings of one group, as they were given.

    Attributes:
        item: id of the item.
        prompt: turns before the answers.
        answers: turns of each answer, in the order of the data.
        rankings: by person: tiers, best first, each with the places in `answers`, from 0, of those that share a rank.
        propensity: probability with which just these answers were chosen among the prompt's; None if it is not known.
    """

    item: str
    prompt: list[Turn]
    answers: list[list[Turn]]
    rankings: dict[str, list[list[int]]]
    propensity: float | None


def ranking_rows(items: Iterable[Item], state: State) -> list[RankedGroup]:
    """Return the groups that somebody ranked, in the order of items."""
    return [
        {
            "item": item.id,
            "prompt": [turn.copy() for turn in item.prompt],
            "answers": [[turn.copy() for turn in response] for response in item.responses],
            "rankings": rankings,
            "propensity": item.propensity,
        }
        for item in items
        if (rankings := {who: [*map(list, one.tiers)] for who, one in state.labels(item.id).items() if one.tiers})
    ]
