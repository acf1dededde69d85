"""The events of labelling: their kinds, and what each says.

Knows nothing of where they are kept (`ledger.py`) or of what follows from them (`labels.py`).
"""

from __future__ import annotations

from typing import Literal, TypedDict

EventKind = Literal["annotator", "lease", "label", "skip", "flag", "undo"]

Verdict = Literal["first", "second", "tie", "both good", "both bad"]
"""`first` and `second` are the responses in the order of the data, independent of their side on the screen."""


class EventBody(TypedDict, total=False):
    """The content of an event; each kind has some of the fields.

    Attributes:
        name: `annotator`: name of the annotator.
        token: `annotator`: SHA-256 of the annotator's token.
        annotator: all other kinds: who did it.
        items: `lease`: ids of the items that are reserved.
        item: `label`, `skip`, `flag` and `undo`: id of the item.
        until: `lease` and `undo`: Unix time at which the lease ends.
        verdict: `label`: the choice.
        strength: `label`: strength of the preference, 1 to 3.
        seconds: `label`: time the choice took.
        swapped: `label`: whether the second response was on the left.
        reason: `skip` and `flag`: the annotator's reason.
        event: `undo`: number of the event that is undone.
    """

    name: str
    token: str
    annotator: str
    items: list[str]
    item: str
    until: float
    verdict: Verdict
    strength: int
    seconds: float
    swapped: bool
    reason: str
    event: int


NewEvent = tuple[EventKind, EventBody]
"""Kind and body of an event that is appended."""
