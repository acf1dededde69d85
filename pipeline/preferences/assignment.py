"""Which items still need labels, and who gets which next: kept up to date event by event.

An item is open while it has fewer labels than it needs, and was not flagged, dropped or adjudicated, in a batch that is
not closed. Nobody gets an item again that they answered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.preferences.items import Item
from pipeline.preferences.labels import Batch, State, is_held
from pipeline.preferences.probe_choice import ProbeChoice
from pipeline.preferences.probes import is_probe, repeated


@dataclass(frozen=True)
class Stuck:
    """An open item that the annotators there are cannot complete.

    Attributes:
        item: id of the item.
        missing: number of labels it lacks.
        people: number of active annotators who have not answered it.
    """

    item: str
    missing: int
    people: int


class Assignment:
    """The items of a batch, by what the state says they still need.

    Args:
        batch: items, and the number of labels each needs.
        state: state of the ledger; the assignment follows it (`update`).
    """

    def __init__(self, batch: Batch, state: State) -> None:
        self.batch, self.state = batch, state
        self._position = {item: place for place, item in enumerate(batch.ids)}
        self._wanted = [batch.wanted(item) for item in batch.ids]
        self._labels = [0] * len(batch.ids)
        self._needed = list(self._wanted)
        self._done, self._full = 0, sum(self._wanted)
        self.probes = ProbeChoice(batch, state, self._position)
        self.probes.update(state.given)
        # By annotator: the items before this place are answered by them, or need no labels.
        self._first: dict[str, int] = defaultdict(int)
        self._update(state.given.keys() | state.dropped.keys() | state.adjudicated.keys())
        state.take_touched()

    def update(self) -> None:
        """Take over what the state has learnt since the last call."""
        touched = self.state.take_touched()
        self.probes.update(touched)
        self._update(touched)

    def _update(self, items: Iterable[str]) -> None:
        given, dropped, adjudicated = self.state.given, self.state.dropped, self.state.adjudicated
        for item in items:
            place = self._position.get(item)
            if place is None:  # of data that has changed since
                continue
            self._done -= self._labels[place]
            self._full -= self._needed[place]
            labels = [one for one in given.get(item, {}).values() if one.kind == "label"]
            is_out = item in dropped or item in adjudicated or self.state.is_flagged(item)
            self._labels[place] = min(len(labels), self._wanted[place])
            if is_out and self.batch.is_live:
                self._labels[place] = 0  # of live dialogues: another choice takes its place
            self._needed[place] = self._labels[place] if is_out else self._wanted[place]
            self._done += self._labels[place]
            self._full += self._needed[place]
            if self._is_open(place):
                for annotator, first in self._first.items():
                    if item not in self.state.answers.get(annotator, {}):
                        self._first[annotator] = min(first, place)

    def _is_open(self, place: int) -> bool:
        return self._labels[place] < self._needed[place]

    def progress(self) -> tuple[int, int]:
        """Return the number of labels given and needed; a flagged or dropped item needs no more than it has."""
        return self._done, self._done if self.state.is_closed else self.batch.total or self._full

    def is_open(self, item: str) -> bool:
        """Return whether an item still needs labels, or a probe may be answered."""
        if is_probe(item):
            return not self.state.is_closed and self.probes.is_open(item)
        place = self._position.get(item)
        return place is not None and not self.state.is_closed and self._is_open(place)

    def next(self, annotator: str, now: float, count: int, answered: str = "") -> list[Item]:
        """Return the next items of an annotator, with probes among them.

        First the one whose answer they took back, then those reserved for them, then those that need labels. Leases of
        other annotators count as labels until they end.

        Args:
            annotator: name of the annotator.
            now: Unix time.
            count: number of items, at most.
            answered: item whose answer is being recorded and is not yet in the state; it is left out.
        """
        if self.state.is_closed:
            return []
        undone = self.state.undone.get(annotator)
        leased = self.state.leased_to.get(annotator, {})
        reserved = [undone] if undone else []
        reserved += [item for item, until in leased.items() if is_held(until, now) and item != undone]
        reserved = [item for item in reserved if self.is_open(item) and item != answered][:count]
        chosen = list(reserved)
        own = self.state.answers.get(annotator, {})
        place = self._first[annotator]
        is_start = True
        while place < len(self.batch.ids) and len(chosen) < count:
            item = self.batch.ids[place]
            is_passed = not self._is_open(place) or item in own
            if is_start and is_passed:
                self._first[annotator] = place + 1
            else:
                is_start = False
            if not is_passed and item not in chosen and item != answered and self.is_free(item, annotator, now):
                chosen.append(item)
            place += 1
        mixed = self.probes.mixed(annotator, reserved, chosen[len(reserved) :], count, answered)
        return [item for item in map(self.item, mixed) if item is not None]

    def why_not_open(self, item: str) -> str:
        """Return why an item may not be answered."""
        state, noun = self.state, self.batch.noun
        item = repeated(item)  # a pair that is shown again is told of as the pair itself
        if state.is_closed:
            return "the batch was closed"
        if item in state.dropped:
            return f"this {noun} was taken out of the batch"
        if item in state.adjudicated:
            return f"the lead has decided this {noun}"
        return f"somebody flagged this {noun}" if state.is_flagged(item) else f"this {noun} has all its labels"

    def item(self, item: str) -> Item | None:
        """Return an item or a probe of the batch; None for an id that is neither."""
        place = self._position.get(item)
        return self.batch.items[place] if place is not None else self.probes.item(item)

    def missing(self, item: str) -> int:
        """Return the number of labels an item still needs."""
        place = self._position.get(item)
        return self._needed[place] - self._labels[place] if place is not None and self.is_open(item) else 0

    def is_free(self, item: str, annotator: str, now: float) -> bool:
        """Return whether an item needs more labels than it has and other annotators are about to give."""
        if is_probe(item):
            return True
        place = self._position[item]
        leases = self.state.leases.get(item, {})
        others = sum(is_held(until, now) and who != annotator for who, until in leases.items())
        return self._labels[place] + others < self._needed[place]

    def comes_back(self, annotator: str, now: float) -> bool:
        """Return whether others hold an open item that this annotator has not answered."""
        own = self.state.answers.get(annotator, {})
        return any(
            is_held(until, now) and item not in own and item in self._position and self.is_open(item)
            for who, leased in self.state.leased_to.items()
            if who != annotator
            for item, until in leased.items()
        )

    def stuck(self) -> list[Stuck]:
        """Return the open items that the active annotators cannot complete, in the order of the batch."""
        active = set(self.state.active())
        stuck: list[Stuck] = []
        if self.batch.is_live:  # any further dialogue gives the labels that are missing
            return stuck
        for place, item in enumerate(self.batch.ids):
            missing = self._needed[place] - self._labels[place]
            if missing <= 0 or self.state.is_closed:
                continue
            people = len(active - self.state.given.get(item, {}).keys())
            if people < missing:
                stuck.append(Stuck(self.batch.ids[place], missing, people))
        return stuck
