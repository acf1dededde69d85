"""What a lead sees of a batch: how far and how fast it goes, how people agree, who labels with care, what is open.

The figures follow the ledger with a state of their own, in a thread of their own, and take a tenth of the time at most,
so that computing them keeps nobody from labelling. They are computed again when the ledger has moved on; who asks
meanwhile gets those of a moment ago.

Shape legend: N items, A annotators.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.stats.annotators import against_the_rest, krippendorff_alpha, raw_agreement
from pipeline.evaluation.stats.estimate import Estimate
from pipeline.evaluation.stats.intervals import wilson
from pipeline.machine.garbage import gc_paused
from pipeline.plain_data import JsonObject
from pipeline.preferences.agreement import LabelTable, label_table
from pipeline.preferences.assignment import Assignment
from pipeline.preferences.events import LedgerEvent
from pipeline.preferences.items import Item, is_ranked
from pipeline.preferences.labels import LEASE_S, Answer, Batch, FinalVerdict, State
from pipeline.preferences.ledger import Ledger
from pipeline.preferences.probe_results import ProbeResults, probe_results
from pipeline.preferences.probes import REPEAT, is_probe
from pipeline.preferences.rankings import differ, implied, shown_first, tau_b
from pipeline.preferences.stored_items import by_id, chars_of

Listing = Literal["disagreements", "flagged", "skipped", "stuck", "open", "adjudicated"]
LISTINGS: tuple[Listing, ...] = get_args(Listing)

FASTEST_CHARS_S = 60.0
"""Characters a second of somebody who only scans a text: 600 words a minute of six characters. A label that took less
time than both responses take at this speed is counted as fast, and kept.

Reference: Carver (1990), Reading Rate, chapter 2: scanning 600, skimming 450, reading 300 words a minute.
"""

LEAST_WORK_S = 60.0
"""Time at work from which labels in an hour are said: of a few seconds they would be many thousands."""

WAIT_S = 1.0
"""Seconds that somebody waits for figures of this moment, when there are some of a moment ago."""

REST = 9.0
"""Rest after computing the figures, by the time that it took: so they get a tenth of the time, and labels the rest."""

HOURS = 24
"""Number of hours whose labels are counted one by one."""


class OpenItem(NamedTuple):
    """Why a lead may want to see an item.

    Attributes:
        item: its id.
        labels: labels by annotator.
        skips: reasons of those who skipped it, by annotator.
        flags: kinds and reasons of those who flagged it, by annotator.
        missing: number of labels it lacks.
        final: verdict of a lead, if there is one.
    """

    item: str
    labels: Mapping[str, Answer]
    skips: Mapping[str, str]
    flags: Mapping[str, str]
    missing: int
    final: FinalVerdict | None


class Told(NamedTuple):
    """Figures as of an event.

    Attributes:
        number: number of the event.
        figures: what the page shows.
        times: times at which each person gave their labels.
    """

    number: int
    figures: JsonObject
    times: Mapping[str, Sequence[float]]


class LeadFigures:
    """The figures of one batch, kept up to date with its ledger.

    Args:
        batch: items, and the number of labels each needs.
        ledger: the events.

    Attributes:
        items: items by id.
    """

    def __init__(self, batch: Batch, ledger: Ledger) -> None:
        self.batch, self.ledger = batch, ledger
        self._state = State()
        self._assignment = Assignment(batch, self._state)
        self._at: dict[int, float] = {}
        self._chars = dict(zip(batch.ids, chars_of(batch.items), strict=True))
        self.items = by_id(batch.items)
        self._turn = threading.Lock()
        self._number = 0
        self._listings: dict[Listing, list[str]] = {}
        self._told: Told | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="lead-figures")
        self._pending: Future[Told] | None = None
        self._asking = threading.Lock()
        self._rests_until = 0.0

    def overview(self, after: int = 0, wait_s: float = WAIT_S) -> JsonObject:
        """Return all figures.

        Args:
            after: number of an event that they should know of.
            wait_s: seconds to wait for figures that do; then those there are, if there are any, are returned.
        """
        until = time.monotonic() + wait_s
        told = self._told
        while told is None or told.number < after:
            if told is not None and self._rests_until > until:
                break
            time.sleep(max(0.0, self._rests_until - time.monotonic()))
            try:
                told = self.start().result(max(0.0, until - time.monotonic()) if told is not None else None)
            except TimeoutError:
                break
        assert told is not None
        return {**told.figures, "hours": _by_hour(told.times)}

    def start(self) -> Future[Told]:
        """Begin to compute the figures, unless they are being computed."""
        with self._asking:
            if self._pending is None or self._pending.done():
                self._pending = self._worker.submit(self._compute)
            return self._pending

    def listing(self, name: Listing, offset: int, count: int) -> tuple[int, list[OpenItem]]:
        """Return the number of items of a list, and some of them."""
        with self._turn:
            self._read()
            items = self._listed(name)
            return len(items), [self._open_item(item) for item in items[offset : offset + count]]

    def _compute(self) -> Told:
        began = time.monotonic()
        with self._turn:
            self._read()
            number = self._number
            if self._told is not None and self._told.number == number:
                return self._told
            times = self._times()
            shared = self._shared_groups() if self.batch.is_ranked else self.batch.items
            pairs = implied(shared, self._state)
            table = label_table(pairs.items, pairs.state, only_shared=not self.batch.is_ranked)
            figures = self._figures(times) | _tau(shared, self._state)
        figures |= _agreement(table, pairs.group_N)  # takes longest, and needs the state no more
        rest = dict(zip(table.annotators, against_the_rest(table.verdict_NA, cluster_N=pairs.group_N), strict=True))
        for person in figures["people"]:
            person["with_the_rest"] = _plain(rest.get(person["name"]))
        self._told = Told(number, figures, times)
        ended = time.monotonic()
        self._rests_until = ended + REST * (ended - began)
        return self._told

    def _shared_groups(self) -> list[Item]:
        """Return the groups that several people answered; the others say nothing of agreement, and are not parsed."""
        given = self._state.given.items()
        return [self.items[item] for item, own in given if len(own) > 1 and item in self.items]

    def _read(self) -> None:
        with gc_paused():
            events = self.ledger.said(after=self._number)
            if events:
                self._number = events[-1].number
                self._take(events)

    def _take(self, events: Sequence[LedgerEvent]) -> None:
        self._state.take(events)
        self._assignment.update()
        given = (event for event in events if event.kind == "label" and "source" not in event.body)
        self._at |= {event.number: event.at for event in given}
        self._listings.clear()
        self._follow(events)

    def _follow(self, events: Sequence[LedgerEvent]) -> None:
        """Take over what else a kind of batch has to know of the events."""

    def _times(self) -> dict[str, list[float]]:
        """Return the times at which each person gave their labels, in order; those of probes too: they take time."""
        labels = self._state.answers.items()
        return {
            name: sorted(self._at[one.number] for one in answers.values() if one.number in self._at)
            for name, answers in labels
        }

    def _figures(self, times: Mapping[str, Sequence[float]]) -> JsonObject:
        state = self._state
        probes = probe_results(self.batch.probes, state)
        people = [
            {**self._person(name, times.get(name, ())), **_probes(probes.get(name))}
            for name in sorted(state.people.keys() | state.answers.keys())
            if name not in state.people or state.people[name].role == "annotator"
        ]
        return {
            "progress": {**self._progress(), "closed": state.is_closed},
            "people": people,
            "leads": [
                {"name": name, "access": person.access}
                for name, person in sorted(state.people.items())
                if person.role == "lead"
            ],
            "lists": {**self._list_sizes(), "dropped": len(state.dropped)},
            "event": self._number,
        }

    def _progress(self) -> dict[str, int]:
        done, wanted = self._assignment.progress()
        return {"done": done, "wanted": wanted, "pairs": len(self.batch.items)}

    def _list_sizes(self) -> dict[str, int]:
        return {name: len(self._listed(name)) for name in LISTINGS}

    def _person(self, name: str, times: Sequence[float]) -> JsonObject:
        answers = self._state.answers.get(name, {})
        own = {item: one for item, one in answers.items() if not is_probe(item)}
        kinds = Counter(one.kind for one in own.values())
        labels = [(item, one) for item, one in own.items() if one.kind == "label"]
        timed = [(self._reading_s(item), one.seconds) for item, one in labels if one.seconds]
        gaps = np.diff(times)
        at_work = gaps[gaps <= LEASE_S]
        fast = sum(seconds < least for least, seconds in timed)
        return {
            "name": name,
            "access": self._state.people[name].access if name in self._state.people else "imported",
            "labels": kinds["label"],
            "skipped": kinds["skip"],
            "flagged": kinds["flag"],
            "per_hour": float(3600 * len(at_work) / at_work.sum()) if at_work.sum() >= LEAST_WORK_S else None,
            "median_seconds": float(np.median([seconds for _, seconds in timed])) if timed else None,
            "fast": _plain(wilson(fast, len(timed)) if timed else None),
            "chose_left": _plain(shown_first(one for _, one in labels)),
        }

    def _reading_s(self, item: str) -> float:
        """Return the seconds in which nobody reads the responses of an item."""
        if item not in self._chars:
            known = self.items.get(item)
            self._chars[item] = chars_of([known])[0] if known else 0
        return self._chars[item] / FASTEST_CHARS_S

    def _listed(self, name: Listing) -> list[str]:
        """Return the ids of a list, in the order in which a lead wants them."""
        if not self._listings:
            self._listings = self._sorted_out()
        return self._listings[name]

    def _sorted_out(self) -> dict[Listing, list[str]]:
        state = self._state
        lists: dict[Listing, list[str]] = {name: [] for name in LISTINGS}
        lists["stuck"] = [one.item for one in self._assignment.stuck()]
        split = []
        for item in self.items:
            given = state.given.get(item)
            if item in state.dropped:
                continue
            if item in state.adjudicated:
                lists["adjudicated"].append(item)
                continue
            is_open = self._assignment.is_open(item)
            if is_open:
                lists["open"].append(item)
            if state.is_flagged(item):
                lists["flagged"].append(item)
            if not given:
                continue
            how = _how_they_differ(given)
            if how == "order":
                lists["disagreements"].append(item)
            elif how:
                split.append(item)
            if is_open and any(one.kind == "skip" for one in given.values()):
                lists["skipped"].append(item)
        lists["disagreements"] += split  # those that differ only in a tie, or in both being good or bad
        return lists

    def _open_item(self, item: str) -> OpenItem:
        given, again = self._state.given.get(item, {}), self._state.given.get(REPEAT + item, {})
        flags = {name: one for name, one in (*again.items(), *given.items()) if one.kind == "flag"}
        return OpenItem(
            item,
            self._state.labels(item),
            {name: one.reason for name, one in given.items() if one.kind == "skip"},
            {name: _why_flagged(one) for name, one in flags.items()},
            self._assignment.missing(item),
            self._state.adjudicated.get(item),
        )


def _why_flagged(answer: Answer) -> str:
    """Return the kind of a flag and the person's words, as far as they were given."""
    kind = answer.details.flag if answer.details else None
    return ": ".join(filter(None, (kind, answer.reason)))


def _how_they_differ(given: Mapping[str, Answer]) -> str:
    """Return how the labels of an item differ: ``order`` if two prefer the opposite, else ``ties`` or empty."""
    tiers = [one.tiers for one in given.values() if one.tiers is not None]
    if tiers:
        return differ(tiers)
    verdicts = {one.verdict for one in given.values() if one.verdict is not None}
    return "order" if {"first", "second"} <= verdicts else "ties" if len(verdicts) > 1 else ""


def _tau(several: Sequence[Item], state: State) -> JsonObject:
    """Return the agreement of rankings; nothing of pairs."""
    return {"kendall_tau_b": _plain(tau_b(several, state))} if is_ranked(several) else {}


def _agreement(table: LabelTable, group_N: NDArray[np.int64] | None) -> JsonObject:
    """Return how far the labels of people agree; None for what has no value."""
    strength_NA = np.where(table.strength_NA == -9, -1, table.strength_NA + 3)
    return {
        "agreement": _plain(raw_agreement(table.verdict_NA, seed=0, cluster_N=group_N)),
        "alpha": krippendorff_alpha(table.verdict_NA),
        "alpha_ordinal": krippendorff_alpha(strength_NA, "ordinal"),
    }


def _by_hour(times: Mapping[str, Sequence[float]]) -> JsonObject:
    """Return the number of labels of each person in each of the last `HOURS` hours, the current one last."""
    end = (int(time.time()) // 3600 + 1) * 3600
    edges = [end - 3600 * hour for hour in range(HOURS, -1, -1)]
    counts = {name: np.histogram(list(given), edges)[0].tolist() for name, given in times.items() if given}
    return {"start": edges[0], "labels": counts}


def _probes(results: ProbeResults | None) -> JsonObject:
    if results is None:
        return {"gold": None, "consistency": None, "same_side_twice": None}
    sides = {"left": results.same_left, "right": results.same_right}
    return {
        "gold": _plain(results.accuracy),
        "consistency": _plain(results.consistency),
        "same_side_twice": sides,
    }


def _plain(estimate: Estimate | None) -> JsonObject | None:
    return estimate.model_dump() if estimate is not None else None
