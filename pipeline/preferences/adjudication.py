"""Adjudication: a lead decides a pair that people disagree on, flagged or left open.

The lead is as blind as everybody: ids and sides are the lead's own, and nothing says where a response comes from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from pipeline.errors import PipelineError, Problem
from pipeline.preferences.blinding import blinded_id
from pipeline.preferences.events import EventBody, NewEvent, Verdict
from pipeline.preferences.items import Item
from pipeline.preferences.label_queue import LONGEST_REASON, LabelQueue
from pipeline.preferences.labels import VERDICTS, State
from pipeline.preferences.probes import is_swapped
from pipeline.preferences.shown import ShownPair, shown_pair
from pipeline.preferences.stored_items import by_id

Side = Literal["left", "right", "tie", "both good", "both bad"]


class Adjudication:
    """The items of a batch as leads see them, and their verdicts.

    Args:
        queue: queue of the batch.
        items: items by id, of live dialogues, which become more as people talk; None for those of the batch.
    """

    def __init__(self, queue: LabelQueue, items: Mapping[str, Item] | None = None) -> None:
        self.queue = queue
        self._items = items if items is not None else by_id(queue.batch.items)
        self._shown: dict[str, dict[str, str]] = {}

    def item(self, lead: str, shown: str) -> Item:
        """Return the item that a lead's browser knows under an id.

        Raises:
            PipelineError: there is none.
        """
        if len(self._shown.get(lead, ())) < len(self._items):  # the secret of a batch lasts, and so do the ids
            self._shown[lead] = {blinded_id(self.queue.salt, lead, item): item for item in list(self._items)}
        item = self._shown[lead].get(shown)
        if item is None:
            raise PipelineError(Problem("this pair is not in the batch", remedy="reload the page"))
        return self._items[item]

    def shown(self, lead: str, item: str) -> ShownPair:
        """Return an item as a lead's browser receives it."""
        return shown_pair(self._items[item], lead, self.queue.salt)

    def side(self, lead: str, item: str, verdict: Verdict | None) -> Side | None:
        """Return a verdict on an item as a side of a lead's screen."""
        if verdict in ("first", "second"):
            return "left" if (verdict == "second") == is_swapped(self.queue.salt, lead, item) else "right"
        return cast(Side | None, verdict)

    def adjudicate(self, lead: str, shown: str, side: Side | None, strength: int, reason: str) -> None:
        """Record the verdict of a lead, which replaces an earlier one and decides the item alone.

        Args:
            lead: name of the lead.
            shown: id of the item as this lead's browser knows it.
            side: the choice; None takes the verdict back.
            strength: strength of a preference, 1 to 3.
            reason: the lead's reason.

        Raises:
            PipelineError: the item is not in the batch, or was dropped.
        """
        item = self.item(lead, shown).id
        is_second = (side == "right") != is_swapped(self.queue.salt, lead, item)
        verdict = VERDICTS[is_second] if side in ("left", "right") else side
        given = EventBody(annotator=lead, item=item)
        if verdict is not None:
            given |= EventBody(verdict=cast(Verdict, verdict), strength=strength, reason=reason[:LONGEST_REASON])

        def decide(state: State) -> NewEvent | None:
            if item in state.dropped:
                raise PipelineError(Problem("this pair was taken out of the batch"))
            final = state.adjudicated.get(item)
            if final is None and verdict is None:
                return None
            is_same = final is not None and (final.verdict, final.strength, final.reason) == (verdict, strength, reason)
            return None if is_same else ("adjudicate", given)

        self.queue.record(decide)

    def drop(self, lead: str, shown: str, reason: str) -> None:
        """Take an item out of the batch.

        Raises:
            PipelineError: it is not in the batch.
        """
        self.queue.drop(self.item(lead, shown).id, reason, by=lead)
