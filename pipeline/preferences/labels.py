"""What the events of a ledger add up to: who said what of which pair, and who works on which one now.

Pure: the same events give the same labels. Knows neither databases nor the web.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pipeline.preferences.items import Item, wanted
from pipeline.preferences.ledger import LedgerEvent

Verdict = Literal["first", "second", "tie", "both good", "both bad"]
"""`first` and `second` are the responses as the data has them, whatever side they were shown on."""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
LEASE_S = 600.0
"""Seconds a pair stays with the person it was shown to."""


@dataclass(frozen=True)
class Answer:
    """What one person did with one pair.

    Attributes:
        number: of the event.
        kind: `label`, `skip` or `flag`.
        verdict: of a label.
        strength: of a preference, 1 to 3.
        reason: of a skip or a flag.
    """

    number: int
    kind: str
    verdict: Verdict | None = None
    strength: int = 1
    reason: str = ""


@dataclass
class State:
    """Events folded so far.

    Attributes:
        number: of the last event seen.
        head: its hash.
        tokens: annotator to the SHA-256 of their token.
        answers: ``(item, annotator)`` to what stands.
        leases: ``(item, annotator)`` to when it ends, in seconds since 1970.
    """

    number: int = 0
    head: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    leases: dict[tuple[str, str], float] = field(default_factory=dict)

    def take(self, events: Iterable[LedgerEvent]) -> State:
        """Fold further events in, and return itself."""
        for event in events:
            self.number, self.head = event.number, event.hash
            self._take(event.kind, event.body, event.number)
        return self

    def _take(self, kind: str, body: Mapping[str, Any], number: int) -> None:
        if kind == "annotator":
            self.tokens[body["name"]] = body["token"]
            return
        key = (body.get("item", ""), body["annotator"])
        if kind == "lease":
            self.leases |= {(item, body["annotator"]): body["until"] for item in body["items"]}
        elif kind in ("label", "skip", "flag"):
            answer = Answer(number, kind, body.get("verdict"), body.get("strength", 1), body.get("reason", ""))
            self.answers[key] = answer
            self.leases.pop(key, None)
        elif kind == "undo":
            self.answers.pop(key, None)
            self.leases[key] = body["until"]

    def last(self, annotator: str) -> tuple[str, Answer] | None:
        """Return the item and answer an annotator would undo."""
        own = [(item, answer) for (item, who), answer in self.answers.items() if who == annotator]
        return max(own, key=lambda one: one[1].number, default=None)

    def labels(self, item: str) -> list[Answer]:
        """Return the labels of an item, oldest first."""
        own = [one for (which, _), one in self.answers.items() if which == item and one.kind == "label"]
        return sorted(own, key=lambda one: one.number)


@dataclass(frozen=True)
class Batch:
    """Items and how many labels each is to get.

    Attributes:
        items: in the order they are given out.
        per_item: labels of an item.
        overlap: share of the items that get three, to measure agreement by.
    """

    items: Sequence[Item]
    per_item: int = 1
    overlap: float = 0.0

    def wanted(self, item: Item) -> int:
        """Return how many labels an item gets."""
        return wanted(item.id, self.per_item, self.overlap)

    def progress(self, state: State) -> tuple[int, int]:
        """Return how many labels there are of how many wanted; a flagged item wants no more than it has."""
        counts: dict[str, int] = {}
        flagged = set()
        for (item, _), answer in state.answers.items():
            counts[item] = counts.get(item, 0) + (answer.kind == "label")
            if answer.kind == "flag":
                flagged.add(item)
        done = full = 0
        for one in self.items:
            most = self.wanted(one)
            have = min(counts.get(one.id, 0), most)
            done, full = done + have, full + (have if one.id in flagged else most)
        return done, full

    def queue(self, state: State, annotator: str, now: float) -> list[Item]:
        """Return what an annotator can work on: first what they have already, then what nobody else does.

        A person never gets an item again that they labelled, skipped or flagged, and nobody one that was flagged.
        """
        taken: dict[str, int] = {}
        out = set()
        for (item, who), answer in state.answers.items():
            if who == annotator or answer.kind == "flag":
                out.add(item)
            taken[item] = taken.get(item, 0) + (answer.kind == "label")
        own = set()
        for (item, who), until in state.leases.items():
            if until > now:
                if who == annotator:
                    own.add(item)
                else:
                    taken[item] = taken.get(item, 0) + 1
        free = [i for i in self.items if i.id not in out and (i.id in own or taken.get(i.id, 0) < self.wanted(i))]
        return sorted(free, key=lambda item: item.id not in own)
