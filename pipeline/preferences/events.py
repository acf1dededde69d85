"""The events of labelling: their kinds, and what each says.

Knows nothing of where they are kept (`ledger.py`) or of what follows from them (`labels.py`).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypedDict

from pipeline.records.shapes.turns import Turn

EventKind = Literal[
    "batch",
    "guidelines",
    "annotator",
    "access",
    "lease",
    "label",
    "skip",
    "flag",
    "undo",
    "drop",
    "close",
    "adjudicate",
    "open",
    "say",
    "answers",
    "end",
]
"""The last four are of live dialogues: one begins, the person says something, both models answer, it ends."""

Verdict = Literal["first", "second", "tie", "both good", "both bad"]
"""`first` and `second` are the responses in the order of the data, independent of their side on the screen."""

STRONGEST = 3
"""Largest strength of a preference; the smallest is 1."""

FlagKind = Literal["harmful", "personal data", "broken"]
"""What is wrong with a pair that somebody flagged."""

GoesOn = Literal["first", "second", "again"]
"""The answer with which a live dialogue goes on, or that both models answer the same message again."""

Access = Literal["active", "paused", "revoked"]
"""What an annotator may do: everything; nothing for now; nothing, and never again with the same link."""


Role = Literal["annotator", "lead"]
"""What somebody is there for: an annotator labels; a lead sees how it goes, invites people and adjudicates."""


class Rating(TypedDict, total=False):
    """What a person said in one dimension.

    Attributes:
        first: rating of the first response, from 1; of a dimension that is rated.
        second: rating of the second response.
        better: the better response, or that none is; of a dimension that is compared.
        rationale: why.
    """

    first: int
    second: int
    better: Literal["first", "second", "tie"]
    rationale: str


class EventBody(TypedDict, total=False):
    """The content of an event; each kind has some of the fields.

    Attributes:
        salt: `batch`: secret of the batch, from which ids and sides of a pair on the screen are derived.
        text: `guidelines`: the text that is shown from now on.
        guidelines: `guidelines` and `label`: version of the text, the first 12 hex digits of its SHA-256.
        name: `annotator` and `access`: name of the person.
        token: `annotator`: SHA-256 of the person's token.
        role: `annotator`: what the person is there for; without it, an annotator.
        access: `access`: what the annotator may do from now on.
        annotator: `lease`, `label`, `skip`, `flag`, `undo`, `adjudicate`: who did it.
        by: `annotator`, `access`, `drop`, `close`: the lead who did it; without it, the command line.
        items: `lease`: ids of the items that are reserved.
        item: `label`, `skip`, `flag`, `undo`, `drop`, `adjudicate`: id of the item.
        until: `lease` and `undo`: Unix time at which the lease ends.
        verdict: `label` and `adjudicate`: the choice; an `adjudicate` without it takes the lead's verdict back.
        strength: `label` and `adjudicate`: strength of the preference, 1 to 3.
        seconds: `label`: time the choice took; None of an imported label that does not say.
        swapped: `label`: whether the second response was on the left; None of an imported label that does not say.
        ranking: `label` and `adjudicate` of a group, in place of verdict and strength: tiers of responses, best first,
            each with the places of those that share a rank, in the order of the data.
        order: `label` of a group, in place of `swapped`: places of the responses in the order of the screen; None of an
            imported label that does not say.
        reason: `skip`, `flag`, `drop` and `adjudicate`: the reason given; `answers` and `end`: why nobody compares
            them, why it ends.
        comment: `label`: what the person wrote about the pair.
        edit: `label`: the preferred response as the person wants it, the text of its last turn.
        ratings: `label`: what the person said in each dimension, by its name.
        flag: `flag`: what is wrong with the pair.
        event: `undo`: number of the event that is undone.
        request: `label`, `skip`, `flag`, `undo`: id that the browser gave the request, the same when it sends it again.
        source: `label`, `skip`, `flag`: name of the file from which it was imported.
        closed: `close`: whether the batch ends with the labels it has, or goes on.
        dialogue: `open`, `say`, `answers`, `end`: id of a live dialogue; the annotator is named beside it.
        turns: `open`: turns with which the dialogue begins.
        text: `open` and `say` too: the message that the person is offered; what the person says.
        most: `open`: number of messages after which the dialogue ends.
        asked: `answers` and `end`: number of the event that asked for the answers, a `say` or a `label`; of an end
            that the person asked for, 0.
        texts: `answers`: the two answers.
        models: `answers`: refs of the models that gave them, with the beginning of their fingerprints.
        goes_on: `answers` that nobody compares, and `label`, `skip` and `flag` in a dialogue: with which answer the
            dialogue goes on.
    """

    salt: str
    text: str
    guidelines: str
    name: str
    token: str
    role: Role
    access: Access
    annotator: str
    by: str
    items: list[str]
    item: str
    until: float
    verdict: Verdict
    strength: int
    seconds: float | None
    swapped: bool | None
    ranking: list[list[int]]
    order: list[int] | None
    reason: str
    comment: str
    edit: str
    ratings: dict[str, Rating]
    flag: FlagKind
    event: int
    request: str
    source: str
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


class LedgerEvent(NamedTuple):
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
