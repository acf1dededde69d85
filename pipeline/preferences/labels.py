"""The state that results from a ledger's events: labels and leases by item and annotator.

Pure: the same events give the same state. Knows neither databases nor the web.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import get_args

from pipeline.preferences.events import EventBody, EventKind, Verdict
from pipeline.preferences.items import Item, wanted
from pipeline.preferences.ledger import LedgerEvent

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
        reason: reason for a skip or a flag.
    """

    number: int
    kind: EventKind
    verdict: Verdict | None = None
    strength: int = 1
    reason: str = ""


@dataclass
class State:
    """The state after a number of events.

    Attributes:
        number: number of the last event.
        head: hash of the last event.
        tokens: SHA-256 of the token, by annotator.
        answers: answers that were not undone, by ``(item, annotator)``.
        leases: end of each lease in Unix time, by ``(item, annotator)``.
    """

    number: int = 0
    head: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    leases: dict[tuple[str, str], float] = field(default_factory=dict)

    def take(self, events: Iterable[LedgerEvent]) -> State:
        """Apply further events, and return this state."""
        for event in events:
            self.number, self.head = event.number, event.hash
            self._take(event.kind, event.body, event.number)
        return self

    def _take(self, kind: EventKind, body: EventBody, number: int) -> None:
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
        """Return the item and answer that an annotator gave last; None without answers."""
        own = [(item, answer) for (item, who), answer in self.answers.items() if who == annotator]
        return max(own, key=lambda one: one[1].number, default=None)

    def labels(self, item: str) -> list[Answer]:
        """Return the labels of an item, oldest first."""
        own = [one for (which, _), one in self.answers.items() if which == item and one.kind == "label"]
        return sorted(own, key=lambda one: one.number)


@dataclass(frozen=True)
class Batch:
    """Items, and the number of labels each needs.

    Attributes:
        items: items in the order in which they are assigned.
        per_item: number of labels of an item.
        overlap: share of the items that get at least `REPEATED` labels, to measure agreement.
    """

    items: Sequence[Item]
    per_item: int = 1
    overlap: float = 0.0

    def wanted(self, item: Item) -> int:
        """Return the number of labels an item needs."""
        return wanted(item.id, self.per_item, self.overlap)

    def progress(self, state: State) -> tuple[int, int]:
        """Return the number of labels given and needed; a flagged item needs no more than it has."""
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
        """Return the items an annotator can label: first those leased to the annotator, then those that need labels.

        Leases of other annotators count as labels. An annotator never gets an item again that they labelled, skipped or
        flagged. Nobody gets a flagged item.
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
