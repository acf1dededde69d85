"""Where a person meets which probe, and what their browser is told of the progress meanwhile.

Places are random: they follow from the secret of the batch, the person, and the number of items shown to them before.
So the same place gives the same probe again, after a reload, an undo, or a lease that ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property

from pipeline.preferences.blinding import uniform
from pipeline.preferences.items import Item
from pipeline.preferences.labels import AHEAD, Batch, State
from pipeline.preferences.probes import REPEAT, is_probe, repeated

LEAST_APART = 10
"""Number of answers between a label and its repeat, at least."""


class ProbeChoice:
    """The probes of a batch, and who is shown which next.

    Args:
        batch: items, and the plan of their probes.
        state: state of the ledger.
        position: place of each item of the batch, by id.
    """

    def __init__(self, batch: Batch, state: State, position: dict[str, int]) -> None:
        self.batch, self.state, self.plan = batch, state, batch.probes
        self._position = position
        self._order: dict[str, list[str]] = {}
        self._given: dict[str, int] = {}
        self._labels = 0

    def update(self, items: Iterable[str]) -> None:
        """Take over what the state has learnt of these items."""
        for item in items if self.plan.share else ():
            self._labels -= self._given.get(item, 0)
            self._given[item] = len(self.state.labels(item))
            self._labels += self._given[item]

    def item(self, probe: str) -> Item | None:
        """Return the responses that a probe compares; None for an id that is no probe of this batch."""
        if not probe.startswith(REPEAT):
            return self.plan.by_id.get(probe)
        place = self._position.get(repeated(probe))
        if place is None:
            return None
        item = self.batch.items[place]
        return Item(probe, item.prompt, item.responses)

    def is_open(self, probe: str) -> bool:
        """Return whether a probe may be answered: it is of this batch, and nobody flagged or dropped it."""
        pair = repeated(probe)
        is_out = pair in self.state.dropped or pair in self.state.adjudicated or self.state.is_flagged(pair)
        return not is_out and self.item(probe) is not None

    def mixed(
        self, annotator: str, reserved: Sequence[str], fresh: Sequence[str], count: int, answered: str = ""
    ) -> list[str]:
        """Return the next items of a person: those reserved for them, then others, with probes among these.

        Without an item of the batch there is no probe either: whoever has nothing left to label is done.

        Args:
            annotator: name of the person.
            reserved: ids that are theirs already.
            fresh: ids of further items of the batch.
            count: number of items, at most.
            answered: item whose answer is being recorded and is not yet in the state.
        """
        chosen, left = list(reserved), list(fresh)
        before = len(self.state.answers.get(annotator, ())) + bool(answered)
        while left and len(chosen) < count:
            probe = self._probe(annotator, before + len(chosen), [*chosen, answered]) if self.plan.share else None
            chosen.append(probe or left.pop(0))
        return chosen

    def _probe(self, annotator: str, place: int, chosen: Sequence[str]) -> str | None:
        """Return the probe at a place of what a person is shown; None where there is none."""
        drawn = uniform(self.state.salt, "probe", annotator, str(place))
        gold_share = self.plan.gold_share if self.plan.gold else 0.0
        own = self.state.answers.get(annotator, {})
        if drawn < gold_share:
            candidates = self._gold_order(annotator)
        elif drawn < gold_share + self.plan.repeats:
            candidates = self._repeats(annotator, place)
        else:
            return None
        return next((one for one in candidates if one not in own and one not in chosen and self.is_open(one)), None)

    def _gold_order(self, annotator: str) -> list[str]:
        """Return the gold items in the order in which a person meets them, another one for everybody."""
        if annotator not in self._order:
            salt = self.state.salt
            self._order[annotator] = sorted(self.plan.by_id, key=lambda item: uniform(salt, "gold", annotator, item))
        return self._order[annotator]

    def _repeats(self, annotator: str, place: int) -> list[str]:
        """Return the repeats of pairs that a person labelled a while ago, in random order."""
        own = self.state.answers.get(annotator, {})
        early = list(own.items())[: max(0, place - AHEAD - LEAST_APART)]  # by the place, which is chosen ahead
        labelled = [REPEAT + item for item, answer in early if answer.kind == "label" and not is_probe(item)]
        return sorted(labelled, key=lambda item: uniform(self.state.salt, "repeat", annotator, str(place), item))

    def told_progress(self, done: int, wanted: int) -> tuple[int, int]:
        """Return the numbers of labels, given and needed, that a browser may be told.

        Where there are probes, each label counts, on whatever item, and a flag changes nothing: else the numbers would
        say which item was a probe. Only the end is exact.

        Args:
            done: number of labels of the batch.
            wanted: number of labels it needs.
        """
        if not self.plan.share:
            return done, wanted
        planned = self._planned
        return (planned, planned) if done >= wanted else (min(self._labels, planned - 1), planned)

    @cached_property
    def _planned(self) -> int:
        """Number of labels that are needed, if nobody flags an item, with those of probes."""
        return math.ceil(sum(map(self.batch.wanted, self.batch.ids)) / (1 - self.plan.share))
