"""What a browser receives: a pair or a group, without what tells which response is which, and how far a batch is."""

from __future__ import annotations

from typing import TypedDict

from pipeline.preferences.blinding import blinded_id, shown_order
from pipeline.preferences.items import Item, Turns
from pipeline.preferences.probes import is_swapped
from pipeline.records.shapes.turns import content_of


class ShownTurn(TypedDict):
    """A turn as a browser receives it."""

    role: str
    content: str


class ShownPair(TypedDict):
    """A pair as a browser receives it; it does not reveal which response is which.

    Attributes:
        item: id of the item, another one for every annotator.
        prompt: the conversation before the responses.
        left: the response on the left of the screen.
        right: the response on its right.
    """

    item: str
    prompt: list[ShownTurn]
    left: list[ShownTurn]
    right: list[ShownTurn]


class ShownGroup(TypedDict):
    """A group of responses to rank, as a browser receives it; it does not reveal which response is which.

    Attributes:
        item: id of the item, another one for every annotator.
        prompt: the conversation before the responses.
        answers: the responses in the order of the screen.
    """

    item: str
    prompt: list[ShownTurn]
    answers: list[list[ShownTurn]]


Shown = ShownPair | ShownGroup


class Progress(TypedDict):
    """How far a batch is.

    Attributes:
        done: number of labels given.
        wanted: number of labels needed.
        own: number of answers given by one annotator.
        closed: whether the batch was closed.
    """

    done: int
    wanted: int
    own: int
    closed: bool


def shown(item: Item, annotator: str, salt: str) -> Shown:
    """Return an item as a browser receives it; it does not reveal which response is which."""
    return shown_group(item, annotator, salt) if item.is_ranked else shown_pair(item, annotator, salt)


def shown_group(item: Item, annotator: str, salt: str) -> ShownGroup:
    """Return a group as a browser receives it."""
    order = shown_order(salt, annotator, item.id, len(item.responses))
    return {
        "item": blinded_id(salt, annotator, item.id),
        "prompt": _shown_turns(item.prompt),
        "answers": [_shown_turns(item.responses[place]) for place in order],
    }


def shown_pair(item: Item, annotator: str, salt: str) -> ShownPair:
    """Return a pair as a browser receives it."""
    left, right = item.responses[::-1] if is_swapped(salt, annotator, item.id) else item.responses
    return {
        "item": blinded_id(salt, annotator, item.id),
        "prompt": _shown_turns(item.prompt),
        "left": _shown_turns(left),
        "right": _shown_turns(right),
    }


def _shown_turns(turns: Turns) -> list[ShownTurn]:
    return [{"role": turn["role"], "content": content_of(turn)} for turn in turns]
