"""Adjudication: a lead decides a pair that people disagree on, flagged or left open.

The lead is as blind as everybody: ids and sides are the lead's own, and nothing says where a response comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, cast

from pipeline.errors import PipelineError, Problem
from pipeline.preferences.blinding import blinded_id, shown_order
from pipeline.preferences.events import EventBody, NewEvent, Verdict
from pipeline.preferences.items import Item
from pipeline.preferences.label_queue import LONGEST_REASON, LabelQueue
from pipeline.preferences.labels import VERDICTS, FinalVerdict, State, Tiers
from pipeline.preferences.probes import is_swapped
from pipeline.preferences.rankings import by_response
from pipeline.preferences.shown import Shown, shown
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

    def item(self, lead: str, shown_id: str) -> Item:
        """Return the item that a lead's browser knows under an id.

        Raises:
            PipelineError: there is none.
        """
        if len(self._shown.get(lead, ())) < len(self._items):  # the secret of a batch lasts, and so do the ids
            self._shown[lead] = {blinded_id(self.queue.salt, lead, item): item for item in list(self._items)}
        item = self._shown[lead].get(shown_id)
        if item is None:
            raise PipelineError(Problem(f"this {self.queue.batch.noun} is not in the batch", remedy="reload the page"))
        return self._items[item]

    def shown(self, lead: str, item: str) -> Shown:
        """Return an item as a lead's browser receives it."""
        return shown(self._items[item], lead, self.queue.salt)

    def ranking(self, lead: str, item: str, tiers: Tiers) -> list[list[int]]:
        """Return a ranking of an item by places on a lead's screen."""
        order = self._order(lead, item)
        return [sorted(order.index(place) for place in tier) for tier in tiers]

    def _order(self, lead: str, item: str) -> tuple[int, ...]:
        return shown_order(self.queue.salt, lead, item, len(self._items[item].responses))

    def side(self, lead: str, item: str, verdict: Verdict | None) -> Side | None:
        """Return a verdict on an item as a side of a lead's screen."""
        if verdict in ("first", "second"):
            return "left" if (verdict == "second") == is_swapped(self.queue.salt, lead, item) else "right"
        return cast(Side | None, verdict)

    def adjudicate(
        self,
        lead: str,
        shown_id: str,
        side: Side | None,
        strength: int,
        reason: str,
        ranking: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Record the verdict of a lead, which replaces an earlier one and decides the item alone.

        Args:
            lead: name of the lead.
            shown_id: id of the item as this lead's browser knows it.
            side: the choice between the two answers of a pair; None, without a ranking, takes a verdict back.
            strength: strength of a preference, 1 to 3.
            reason: the lead's reason.
            ranking: of a group in place of a choice: places on the lead's screen in tiers, best first.

        Raises:
            PipelineError: the item is not in the batch, or was dropped; a ranking of a pair, or a choice in a group.
        """
        item = self.item(lead, shown_id)
        name, noun = item.id, self.queue.batch.noun
        if (side if item.is_ranked else ranking) is not None:
            statement = "a choice between two answers" if item.is_ranked else "a ranking"
            raise PipelineError(Problem(f"{statement} for a {noun}", "a ranking" if item.is_ranked else "a choice"))
        final = FinalVerdict(lead, None, strength, reason[:LONGEST_REASON])
        told = EventBody()
        if ranking is not None:
            final = replace(final, tiers=by_response(ranking, self._order(lead, name)), strength=1)
            told = EventBody(ranking=[*map(list, final.tiers or ())], reason=final.reason)
        elif side is not None:
            is_second = (side == "right") != is_swapped(self.queue.salt, lead, name)
            verdict = cast(Verdict, VERDICTS[is_second] if side in ("left", "right") else side)
            final = replace(final, verdict=verdict)
            told = EventBody(verdict=verdict, strength=strength, reason=final.reason)

        def decide(state: State) -> NewEvent | None:
            if name in state.dropped:
                raise PipelineError(Problem(f"this {noun} was taken out of the batch"))
            before = state.adjudicated.get(name)
            is_same = before is not None and replace(before, lead=lead) == final
            if (before is None and not told) or is_same:
                return None
            return "adjudicate", {**told, "annotator": lead, "item": name}

        self.queue.record(decide)

    def drop(self, lead: str, shown_id: str, reason: str) -> None:
        """Take an item out of the batch.

        Raises:
            PipelineError: it is not in the batch.
        """
        self.queue.drop(self.item(lead, shown_id).id, reason, by=lead)
