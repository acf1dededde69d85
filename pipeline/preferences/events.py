"""The events of labelling: their kinds, and what each says.

Knows nothing of where they are kept (`ledger.py`) or of what follows from them (`labels.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

from pipeline.records.shapes.turns import Turn

EventKind = Literal[
    "batch", "guidelines", "annotator", "access", "lease", "label", "skip", "flag", "undo", "drop", "close",
    "open", "say", "answers", "end",
]  # fmt: skip
"""The last four are of live dialogues: one begins, the person says something, both models answer, it ends."""

Verdict = Literal["first", "second", "tie", "both good", "both bad"]
"""`first` and `second` are the responses in the order of the data, independent of their side on the screen."""

GoesOn = Literal["first", "second", "again"]
"""The answer with which a live dialogue goes on, or that both models answer the same message again."""

Access = Literal["active", "paused", "revoked"]
"""What an annotator may do: everything; nothing for now; nothing, and never again with the same link."""


class EventBody(TypedDict, total=False):
    """The content of an event; each kind has some of the fields.

    Attributes:
        salt: `batch`: secret of the batch, from which ids and sides of a pair on the screen are derived.
        text: `guidelines`: the text that is shown from now on.
        guidelines: `guidelines` and `label`: version of the text, the first 12 hex digits of its SHA-256.
        name: `annotator` and `access`: name of the annotator.
        token: `annotator`: SHA-256 of the annotator's token.
        access: `access`: what the annotator may do from now on.
        annotator: `lease`, `label`, `skip`, `flag`, `undo`: who did it.
        items: `lease`: ids of the items that are reserved.
        item: `label`, `skip`, `flag`, `undo` and `drop`: id of the item.
        until: `lease` and `undo`: Unix time at which the lease ends.
        verdict: `label`: the choice.
        strength: `label`: strength of the preference, 1 to 3.
        seconds: `label`: time the choice took.
        swapped: `label`: whether the second response was on the left.
        reason: `skip`, `flag`, `drop`: the reason given; `answers` and `end`: why nobody compares them, why it ends.
        event: `undo`: number of the event that is undone.
        request: `label`, `skip`, `flag`, `undo`: id that the browser gave the request, the same when it sends it again.
        closed: `close`: whether the batch ends with the labels it has, or goes on.
        dialogue: `open`, `say`, `answers`, `end`: id of a live dialogue; the annotator is named beside it.
        turns: `open`: turns with which the dialogue begins.
        text: `open` and `say` too: the message that the person is offered; what the person says.
        most: `open`: number of messages after which the dialogue ends.
        asked: `answers` and `end`: number of the event that asked for the answers, a `say` or a `label`; of an end
            that the person asked for, 0.
        texts: `answers`: the two answers.
        models: `answers`: refs of the models that gave them, with the beginning of their fingerprints.
        goes_on: `answers` that nobody compares, and `label` in a dialogue: with which answer the dialogue goes on.
    """

    salt: str
    text: str
    guidelines: str
    name: str
    token: str
    access: Access
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
    request: str
    closed: bool
    dialogue: str
    turns: list[Turn]
    most: int
    asked: int
    texts: list[str]
    models: list[str]
    goes_on: GoesOn


NewEvent = tuple[EventKind, EventBody]
"""Kind and body of an event that is appended."""


@dataclass(frozen=True)
class LedgerEvent:
    """One event of the ledger.

    Attributes:
        number: sequence number in the batch, from 1.
        at: Unix time.
        kind: what happened.
        body: content of the event; empty for a corrupted row.
        hash: SHA-256 over the batch, the previous event's hash and all of the above.
    """

    number: int
    at: float
    kind: EventKind
    body: EventBody
    hash: str
