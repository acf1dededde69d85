"""The lead's page of live dialogues: its figures and lists, and what a lead may do.

What compares people has no meaning here, since nobody else sees a person's dialogue: there are no agreement, no gold
items, no repeats and no verdicts of a lead. A dialogue has gone on from the choice of its person.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import Field

from pipeline.errors import PipelineError, Problem
from pipeline.plain_data import JsonObject
from pipeline.preferences.events import LedgerEvent
from pipeline.preferences.gate import Answers, Given, Nothing
from pipeline.preferences.items import Item
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.labels import Batch
from pipeline.preferences.lead import ITEMS_AT_ONCE, Decide, LeadApi
from pipeline.preferences.lead_figures import LeadFigures, OpenItem
from pipeline.preferences.ledger import Ledger
from pipeline.preferences.live.dialogues import Dialogues

LiveListing = Literal["flagged", "skipped", "chosen", "waiting"]
"""Answers that somebody flagged, skipped or chose between, the newest first; those that wait for a choice."""


class List(Given):
    """Some answers of a list are to be shown."""

    name: LiveListing
    offset: Annotated[int, Field(ge=0, le=10_000_000)] = 0


class LiveFigures(LeadFigures):
    """The figures of live dialogues, kept up to date with their ledger.

    Args:
        labels: choices after which the batch is finished.
        ledger: the events.
    """

    def __init__(self, labels: int, ledger: Ledger) -> None:
        super().__init__(Batch((), total=labels), ledger)
        self._items: dict[str, Item] = {}
        self.items = self._items
        self._dialogues = Dialogues()
        self._live_lists: dict[LiveListing, list[str]] = {}

    def live_listing(self, name: LiveListing, offset: int, count: int) -> tuple[int, list[OpenItem]]:
        """Return the number of answers of a list, and some of them."""
        with self._turn:
            self._read()
            items = self._live_listed()[name]
            return len(items), [self._open_item(item) for item in items[offset : offset + count]]

    def _follow(self, events: Sequence[LedgerEvent]) -> None:
        self._live_lists = {}
        for event in events:
            self._dialogues.take([event])
            if event.kind == "answers" and event.body and not event.body.get("reason"):
                dialogue = self._dialogues.by_id[event.body["dialogue"]]
                self._items[event.body["item"]] = dialogue.item(dialogue.last)

    def _progress(self) -> dict[str, int]:
        answers = self._state.answers.values()
        dropped = self._state.dropped
        done = sum(
            one.kind == "label" and item in self.items and item not in dropped
            for own in answers
            for item, one in own.items()
        )
        wanted = done if self._state.is_closed else self.batch.total
        return {"done": done, "wanted": wanted, "pairs": len(self.items), "dialogues": len(self._dialogues.by_id)}

    def _list_sizes(self) -> dict[str, int]:
        return {name: len(items) for name, items in self._live_listed().items()}

    def _live_listed(self) -> dict[LiveListing, list[str]]:
        if not self._live_lists:
            self._live_lists = self._live_sorted_out()
        return self._live_lists

    def _live_sorted_out(self) -> dict[LiveListing, list[str]]:
        kinds: dict[str, LiveListing] = {"label": "chosen", "skip": "skipped", "flag": "flagged"}
        lists: dict[LiveListing, list[str]] = {name: [] for name in get_args(LiveListing)}
        state = self._state
        numbers = {}
        for item, given in state.given.items():
            if item not in self.items or item in state.dropped:
                continue
            for answer in given.values():  # there is one, of the person whose dialogue it is
                lists[kinds[answer.kind]].append(item)
                numbers[item] = answer.number
        for items in lists.values():
            items.sort(key=lambda item: -numbers[item])
        current = (self._dialogues.by_id[name] for name in self._dialogues.current.values())
        lists["waiting"] = [one.last.item for one in current if one.phase == "choose"]
        return lists


class LiveLeadApi(LeadApi):
    """The HTTP API of the lead's page of live dialogues.

    Args:
        queue: queue of the batch, which knows its people and its end.
        title: title of the page, the stage's name.
    """

    def __init__(self, queue: LabelQueue, title: str) -> None:
        self.live_figures = LiveFigures(queue.batch.total, queue.ledger)
        super().__init__(queue, title, self.live_figures)

    def answers(self) -> Answers:
        """Return what answers each request of the page."""
        return {**super().answers(), "items": (List, self.live_items)}

    def hello(self, name: str, given: Nothing) -> JsonObject:
        """Return who the lead is, and that the batch has live dialogues."""
        return {**super().hello(name, given), "live": True}

    def live_items(self, name: str, given: List) -> JsonObject:
        """Return some answers of a list, as this lead may see them."""
        total, items = self.live_figures.live_listing(given.name, given.offset, ITEMS_AT_ONCE)
        return {"total": total, "items": [self._shown(name, item) for item in items]}

    def adjudicate(self, name: str, given: Decide) -> JsonObject:
        """Refuse a verdict.

        Raises:
            PipelineError: always.
        """
        statement = "live dialogues take no verdict of a lead: each has gone on from the choice of its person"
        raise PipelineError(Problem(statement, remedy="drop a choice that is to make no row"))
