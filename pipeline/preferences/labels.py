"""The state that results from a ledger's events: people, labels and leases.

Pure: the same events give the same state. Knows neither databases nor the web, nor which items a batch has
(`assignment.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import get_args

from pipeline.preferences.blinding import blinded_id
from pipeline.preferences.events import Access, EventBody, EventKind, LedgerEvent, Verdict
from pipeline.preferences.items import Item, wanted

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
LEASE_S = 600.0
"""Seconds for which a pair is reserved for the annotator it was shown to."""


@dataclass(frozen=True)
class Answer:
    """The answer of one annotator to one item.

    Attributes:
        number: number of its event.
        kind: `label`, `skip` or `flag`.
        verdict: verdict of a label; None for a skip or a flag.
        strength: strength of a preference, 1 to 3.
        seconds: time a label took.
        swapped: whether the second response was on the left.
        reason: reason for a skip or a flag.
        guidelines: version of the guidelines that the annotator saw; empty without guidelines.
        request: id that the browser gave the request.
    """

    number: int
    kind: EventKind
    verdict: Verdict | None = None
    strength: int = 1
    seconds: float = 0.0
    swapped: bool = False
    reason: str = ""
    guidelines: str = ""
    request: str = ""


@dataclass(frozen=True)
class Person:
    """An annotator.

    Attributes:
        token: SHA-256 of the annotator's token.
        access: what the annotator may do.
    """

    token: str
    access: Access = "active"


@dataclass
class State:
    """The state after a number of events.

    Attributes:
        number: number of the last event.
        head: hash of the last event.
        salt: secret of the batch; empty before the app was opened for the first time.
        guidelines: version of the guidelines that are shown; empty without guidelines.
        people: annotators by name.
        answers: answers that were not undone, by annotator, by item.
        given: the same answers by item, by annotator.
        leases: end of each lease in Unix time, by item, by annotator.
        shown: items that were handed out, by annotator, by the id that the annotator's browser knows.
        dropped: reasons of the items that need no labels any more, by item.
        is_closed: whether the batch ends with the labels it has.
        undone: item whose answer an annotator took back last, by annotator; it is shown again first.
        requests: id of the last undo of an annotator, by annotator.
        touched: items that events concerned since the last call of `take_touched`.
    """

    number: int = 0
    head: str = ""
    salt: str = ""
    guidelines: str = ""
    people: dict[str, Person] = field(default_factory=dict)
    answers: dict[str, dict[str, Answer]] = field(default_factory=lambda: defaultdict(dict))
    given: dict[str, dict[str, Answer]] = field(default_factory=lambda: defaultdict(dict))
    leases: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    leased_to: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    shown: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    dropped: dict[str, str] = field(default_factory=dict)
    is_closed: bool = False
    undone: dict[str, str] = field(default_factory=dict)
    requests: dict[str, str] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)

    def take(self, events: Iterable[LedgerEvent]) -> State:
        """Apply further events, and return this state."""
        for event in events:
            self.number, self.head = event.number, event.hash
            if event.body:  # else a corrupted row, which `Ledger.problems` reports
                self._take(event.kind, event.body, event.number)
        return self

    def _take(self, kind: EventKind, body: EventBody, number: int) -> None:
        if kind in ("label", "skip", "flag"):
            self._answer(kind, body, number)
        elif kind == "lease":
            for item in body["items"]:
                self._lease(item, body["annotator"], body["until"])
        elif kind == "undo":
            self._undo(body)
        elif kind == "drop":
            self.dropped[body["item"]] = body.get("reason", "")
            self.touched.add(body["item"])
        else:
            self._take_batch(kind, body)

    def _take_batch(self, kind: EventKind, body: EventBody) -> None:
        if kind == "batch":
            self.salt = body["salt"]
            for annotator, items in self.leased_to.items():  # leases of a ledger that had no secret yet
                self.shown[annotator] |= {blinded_id(self.salt, annotator, item): item for item in items}
        elif kind == "guidelines":
            self.guidelines = body["guidelines"]
        elif kind == "annotator":
            self.people[body["name"]] = Person(body["token"])
        elif kind == "access":
            self.people[body["name"]] = Person(self.people[body["name"]].token, body["access"])
        elif kind == "close":
            self.is_closed = body["closed"]

    def _answer(self, kind: EventKind, body: EventBody, number: int) -> None:
        item, annotator = body["item"], body["annotator"]
        answer = Answer(
            number,
            kind,
            body.get("verdict"),
            body.get("strength", 1),
            body.get("seconds", 0.0),
            body.get("swapped", False),
            body.get("reason", ""),
            body.get("guidelines", ""),
            body.get("request", ""),
        )
        self.answers[annotator].pop(item, None)  # so that the last answer is the newest
        self.answers[annotator][item] = self.given[item][annotator] = answer
        self._release(item, annotator)
        if self.undone.get(annotator) == item:
            del self.undone[annotator]

    def _lease(self, item: str, annotator: str, until: float) -> None:
        self.leases[item][annotator] = self.leased_to[annotator][item] = until
        self.shown[annotator][blinded_id(self.salt, annotator, item)] = item
        self.touched.add(item)

    def _release(self, item: str, annotator: str) -> None:
        self.leases[item].pop(annotator, None)
        self.leased_to[annotator].pop(item, None)
        self.touched.add(item)

    def _undo(self, body: EventBody) -> None:
        item, annotator = body["item"], body["annotator"]
        self.answers[annotator].pop(item, None)
        self.given[item].pop(annotator, None)
        self._lease(item, annotator, body["until"])
        self.undone[annotator] = item
        self.requests[annotator] = body.get("request", "")

    def take_touched(self) -> set[str]:
        """Return the items that events concerned since the last call."""
        touched, self.touched = self.touched, set()
        return touched

    def last(self, annotator: str) -> tuple[str, Answer] | None:
        """Return the item and answer that an annotator gave last; None without answers."""
        own = self.answers.get(annotator)
        if not own:
            return None
        item = next(reversed(own))
        return item, own[item]

    def labels(self, item: str) -> dict[str, Answer]:
        """Return the labels of an item by annotator, oldest first."""
        return {who: one for who, one in self.given.get(item, {}).items() if one.kind == "label"}

    def is_flagged(self, item: str) -> bool:
        """Return whether somebody flagged an item."""
        return any(one.kind == "flag" for one in self.given.get(item, {}).values())

    def active(self) -> list[str]:
        """Return the names of the annotators who may label."""
        return [name for name, person in self.people.items() if person.access == "active"]


@dataclass(frozen=True)
class Batch:
    """Items, and the number of labels each needs.

    Attributes:
        items: items in the order in which they are assigned.
        per_item: number of labels of an item.
        overlap: share of the items that get at least `REPEATED` labels, to measure agreement.
        total: number of labels needed in all, of live dialogues, whose items come as people talk; 0 for the sum over
            the items.
    """

    items: Sequence[Item]
    per_item: int = 1
    overlap: float = 0.0
    total: int = 0

    def wanted(self, item: Item) -> int:
        """Return the number of labels an item needs."""
        return wanted(item.id, self.per_item, self.overlap)
