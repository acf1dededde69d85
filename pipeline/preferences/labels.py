"""The state that results from a ledger's events: people, labels and leases.

Pure: the same events give the same state. Knows neither databases nor the web, nor which items a batch has
(`assignment.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, get_args

from pipeline.preferences.blinding import blinded_id
from pipeline.preferences.details import Details, details_of
from pipeline.preferences.events import Access, EventBody, EventKind, LedgerEvent, Role, Verdict
from pipeline.preferences.items import Item, is_ranked, wanted
from pipeline.preferences.probes import NO_PROBES, REPEAT, ProbePlan, repeated
from pipeline.preferences.stored_items import ids_of

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

Tiers = tuple[tuple[int, ...], ...]
"""A ranking: places of responses in the order of the data, those that share a rank together, best first."""

AHEAD = 2
"""Number of pairs that are reserved for an annotator at a time: the one shown and the next."""

LEASE_S = 600.0
"""Seconds for which a pair is reserved for the annotator it was shown to."""


def is_held(until: float, now: float) -> bool:
    """Return whether a lease that ends at ``until`` holds at ``now``.

    A lease that lasts longer than one can was written while the clock was ahead; it would keep the item from all.
    """
    return now < until <= now + 2 * LEASE_S


class Answer(NamedTuple):
    """The answer of one annotator to one item.

    Attributes:
        number: number of its event.
        kind: `label`, `skip` or `flag`.
        verdict: verdict of a label; None for a skip or a flag.
        strength: strength of a preference, 1 to 3.
        seconds: time a label took; None of an imported label whose time nobody noted.
        swapped: whether the second response was on the left; None of an imported label whose sides nobody noted.
        reason: reason for a skip or a flag.
        guidelines: version of the guidelines that the annotator saw; empty without guidelines.
        request: id that the browser gave the request.
        details: comment, edit and kind of flag; None without any.
        tiers: ranking of a group, in place of verdict and strength; None of a pair, a skip or a flag.
        order: places of a group's responses in the order of the screen; None of an imported ranking that does not say.
    """

    number: int
    kind: EventKind
    verdict: Verdict | None = None
    strength: int = 1
    seconds: float | None = 0.0
    swapped: bool | None = False
    reason: str = ""
    guidelines: str = ""
    request: str = ""
    details: Details | None = None
    tiers: Tiers | None = None
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class FinalVerdict:
    """The verdict of a lead on an item, which decides whatever people labelled.

    Attributes:
        lead: name of the lead.
        verdict: the choice; None of a group.
        strength: strength of a preference, 1 to 3.
        reason: the lead's reason.
        tiers: ranking of a group; None of a pair.
    """

    lead: str
    verdict: Verdict | None
    strength: int = 1
    reason: str = ""
    tiers: Tiers | None = None


@dataclass(frozen=True)
class Person:
    """Somebody who has a link.

    Attributes:
        token: SHA-256 of the person's token.
        access: whether the link works.
        role: what the person is there for.
    """

    token: str
    access: Access = "active"
    role: Role = "annotator"


@dataclass
class State:
    """The state after a number of events.

    Attributes:
        last_event: the last event; None before the first.
        salt: secret of the batch; empty before the app was opened for the first time.
        guidelines: version of the guidelines that are shown; empty without guidelines.
        people: annotators by name.
        answers: answers that were not undone, by annotator, by item.
        given: the same answers by item, by annotator.
        leases: end of each lease in Unix time, by item, by annotator.
        leased_to: the same by annotator, by item.
        shown: items that were handed out, by annotator, by the id that the annotator's browser knows; see `item_of`.
        handed: items that were handed out and are not in `shown` yet, by annotator.
        dropped: reasons of the items that need no labels any more, by item.
        adjudicated: verdicts of leads, by item.
        is_closed: whether the batch ends with the labels it has.
        undone: item whose answer an annotator took back last, by annotator; it is shown again first.
        requests: ids of an annotator's undos, and items and ids of the answers they took back, by annotator.
        flags: number of flags that were not taken back, by item; those of a repeat are its pair's.
        touched: items that events concerned since the last call of `take_touched`.
    """

    last_event: LedgerEvent | None = None
    salt: str = ""
    guidelines: str = ""
    people: dict[str, Person] = field(default_factory=dict)
    answers: dict[str, dict[str, Answer]] = field(default_factory=lambda: defaultdict(dict))
    given: dict[str, dict[str, Answer]] = field(default_factory=lambda: defaultdict(dict))
    leases: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    leased_to: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    shown: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    handed: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    dropped: dict[str, str] = field(default_factory=dict)
    adjudicated: dict[str, FinalVerdict] = field(default_factory=dict)
    is_closed: bool = False
    undone: dict[str, str] = field(default_factory=dict)
    requests: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    flags: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    touched: set[str] = field(default_factory=set)

    @property
    def number(self) -> int:
        """Number of the last event; 0 before the first."""
        return self.last_event.number if self.last_event else 0

    @property
    def head(self) -> str:
        """Hash of the last event; empty before the first."""
        return self.last_event.hash if self.last_event else ""

    def take(self, events: Iterable[LedgerEvent]) -> State:
        """Apply further events, and return this state."""
        for event in events:
            self.last_event = event
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
        elif kind == "adjudicate":
            self._adjudicate(body)
        elif kind == "drop":
            self.dropped[body["item"]] = body.get("reason", "")
            self.touched.add(body["item"])
        else:
            self._take_batch(kind, body)

    def _take_batch(self, kind: EventKind, body: EventBody) -> None:
        if kind == "batch":
            self.salt = body["salt"]
        elif kind == "guidelines":
            self.guidelines = body["guidelines"]
        elif kind == "annotator":
            self.people[body["name"]] = Person(body["token"], role=body.get("role", "annotator"))
        elif kind == "access":
            self.people[body["name"]] = replace(self.people[body["name"]], access=body["access"])
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
            details_of(body),
            _tiers(body),
            tuple(order) if (order := body.get("order")) else None,
        )
        self._take_back(item, annotator)  # so that the last answer is the newest
        self.answers[annotator][item] = self.given[item][annotator] = answer
        if kind == "flag":
            self.flags[repeated(item)] += 1
        self._release(item, annotator)
        if self.undone.get(annotator) == item:
            del self.undone[annotator]

    def _take_back(self, item: str, annotator: str) -> None:
        """Remove the answer that an annotator gave to an item, if they gave one."""
        before = self.answers[annotator].pop(item, None)
        if before is not None:
            del self.given[item][annotator]
            if before.kind == "flag":
                self.flags[repeated(item)] -= 1

    def _adjudicate(self, body: EventBody) -> None:
        item = body["item"]
        self.adjudicated.pop(item, None)
        if "verdict" in body or "ranking" in body:
            told = body.get("verdict"), body.get("strength", 1), body.get("reason", ""), _tiers(body)
            self.adjudicated[item] = FinalVerdict(body["annotator"], *told)
        self.touched.add(item)

    def _lease(self, item: str, annotator: str, until: float) -> None:
        self.leases[item][annotator] = self.leased_to[annotator][item] = until
        self.handed[annotator].append(item)
        self._touch(item)

    def _release(self, item: str, annotator: str) -> None:
        if item in self.leases:  # a report reads no leases
            self.leases[item].pop(annotator, None)
            self.leased_to[annotator].pop(item, None)
        self._touch(item)

    def _touch(self, item: str) -> None:
        """Note that an event concerned an item, and the pair that it shows again."""
        self.touched.add(item)
        if item.startswith(REPEAT):
            self.touched.add(repeated(item))

    def _undo(self, body: EventBody) -> None:
        item, annotator = body["item"], body["annotator"]
        answer = self.answers[annotator].get(item)
        self._take_back(item, annotator)
        self.requests[annotator] |= {("", body.get("request", "")), (item, answer.request if answer else "")}
        self._lease(item, annotator, body["until"])
        self.undone[annotator] = item

    def take_touched(self) -> set[str]:
        """Return the items that events concerned since the last call."""
        touched, self.touched = self.touched, set()
        return touched

    def item_of(self, annotator: str, shown: str) -> str | None:
        """Return the item that an annotator's browser knows under an id; None if it was not handed out to them."""
        items = self.shown[annotator]
        for item in self.handed.pop(annotator, ()):  # ids are computed when somebody asks, which a report never does
            items[blinded_id(self.salt, annotator, item)] = item
        return items.get(shown)

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
        """Return whether somebody flagged an item, also when they were shown it again."""
        return self.flags.get(repeated(item), 0) > 0

    def active(self) -> list[str]:
        """Return the names of the annotators who may label."""
        people = self.people.items()
        return [name for name, person in people if person.access == "active" and person.role == "annotator"]


def says_the_same(answer: Answer, kind: str, body: EventBody) -> bool:
    """Return whether an answer is what a body says, whatever time it took."""
    told = (body.get("verdict"), body.get("strength", 1), body.get("reason", ""), details_of(body), _tiers(body))
    said = (answer.verdict, answer.strength, answer.reason, answer.details, answer.tiers)
    return (answer.kind, *said) == (kind, *told)


def _tiers(body: EventBody) -> Tiers | None:
    return tuple(map(tuple, body["ranking"])) if "ranking" in body else None


@dataclass(frozen=True)
class Batch:
    """Items, and the number of labels each needs.

    Attributes:
        items: items in the order in which they are assigned.
        per_item: number of labels of an item.
        overlap: share of the items that get at least `REPEATED` labels, to measure agreement.
        probes: hidden items among them.
        total: number of labels needed in all, of live dialogues, whose items come as people talk; 0 for the sum over
            the items.
    """

    items: Sequence[Item]
    per_item: int = 1
    overlap: float = 0.0
    probes: ProbePlan = NO_PROBES
    total: int = 0

    @cached_property
    def ids(self) -> Sequence[str]:
        """Ids of the items, in their order."""
        return ids_of(self.items)

    @property
    def is_live(self) -> bool:
        """Whether the items are answers of live dialogues, each of which one person alone sees."""
        return self.total > 0

    @cached_property
    def is_ranked(self) -> bool:
        """Whether people rank groups of responses, and do not compare pairs."""
        return is_ranked(self.items)

    @property
    def noun(self) -> str:
        """What an item is called: a pair, or a group."""
        return "group" if self.is_ranked else "pair"

    def wanted(self, item: str) -> int:
        """Return the number of labels an item needs."""
        return wanted(item, self.per_item, self.overlap) if self.overlap else self.per_item
