"""Live dialogues as they result from a ledger's events.

Pure: the same events give the same dialogues. Knows neither databases nor the web, nor models.

An exchange is one message of a person with two answers. The dialogue goes on with one of the answers, which the person
chooses. A person who takes a choice back is shown its answers again, and what followed them is no part of the dialogue
any more; the ledger keeps it. A person who skips two answers goes on with one of them, and one who flags them gets two
new ones: flagged answers are no part of a dialogue.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from pipeline.preferences.events import EventBody, EventKind, GoesOn, LedgerEvent, Verdict
from pipeline.preferences.items import Item
from pipeline.records.shapes.turns import Turn

Phase = Literal["say", "answering", "choose", "over"]
"""What a dialogue waits for: a message, the answers, a choice; or that it is over."""

PLACES: tuple[GoesOn, GoesOn] = ("first", "second")


@dataclass
class Exchange:
    """A message and its two answers.

    Attributes:
        text: what the person said.
        asked: number of the event that asked for the answers.
        item: id of the answers as a pair to label; empty while both models are answering.
        texts: both answers, in the order of the models.
        models: names of the models that gave them.
        uncompared: why the person is not asked to choose: `equal` or `unfit`; empty where they are.
        verdict: the choice; None before it, and of answers that were skipped or flagged.
        edit: the preferred answer as the person wants it, with which the dialogue goes on; empty without an edit.
        goes_on: with which answer the dialogue goes on, or `again`; None before a choice.
    """

    text: str
    asked: int
    item: str = ""
    texts: tuple[str, str] = ("", "")
    models: tuple[str, str] = ("", "")
    uncompared: str = ""
    verdict: Verdict | None = None
    edit: str = ""
    goes_on: GoesOn | None = None

    def turns(self) -> list[Turn]:
        """Return the message, and the answer with which the dialogue goes on if there is one."""
        said: list[Turn] = [{"role": "user", "content": self.text}]
        if self.goes_on in PLACES:
            text = self.edit or self.texts[PLACES.index(self.goes_on)]
            said.append({"role": "assistant", "content": text})
        return said


@dataclass
class Dialogue:
    """A dialogue of a person.

    Attributes:
        id: its id.
        annotator: name of the person.
        start: turns with which it begins.
        offered: message that the person may begin with.
        most: number of messages after which it ends.
        exchanges: what was said so far.
        ended: why it is over before its last message; empty while it goes on.
    """

    id: str
    annotator: str
    start: tuple[Turn, ...]
    offered: str
    most: int
    exchanges: list[Exchange] = field(default_factory=list)
    ended: str = ""

    @property
    def phase(self) -> Phase:
        """What the dialogue waits for."""
        last = self.exchanges[-1] if self.exchanges else None
        if self.ended:
            return "over"
        if last is None:
            return "say"
        if not last.item:
            return "answering"
        if last.goes_on is None:
            return "choose"
        return "over" if self.messages >= self.most else "say"

    @property
    def messages(self) -> int:
        """Number of messages that were answered and are part of the dialogue."""
        return sum(one.goes_on in PLACES for one in self.exchanges)

    @property
    def last(self) -> Exchange:
        """The last exchange; only a dialogue in which something was said has one."""
        return self.exchanges[-1]

    def turns(self, exchange: Exchange | None = None) -> list[Turn]:
        """Return the turns up to the answers of an exchange, without these; of the whole dialogue when omitted.

        A message that is answered again has its first answers in an exchange of its own, which is no part of the turns.
        """
        turns: list[Turn] = [turn.copy() for turn in self.start]
        for one in self.exchanges:
            if one is exchange:
                return [*turns, {"role": "user", "content": one.text}]
            if one.goes_on != "again":
                turns += one.turns()
        return turns

    def items(self) -> Iterator[Item]:
        """Yield the pairs of answers that the person was asked to compare."""
        for one in self.exchanges:
            if one.item and not one.uncompared:
                yield self.item(one)

    def item(self, exchange: Exchange) -> Item:
        """Return the two answers of an exchange as a pair to label."""
        first, second = ((Turn(role="assistant", content=text),) for text in exchange.texts)
        return Item(exchange.item, tuple(self.turns(exchange)), (first, second))


class Dialogues:
    """All dialogues of a batch.

    Attributes:
        by_id: dialogues by id, oldest first.
        current: id of the dialogue that each person is in, by name.
        requests: id of the last request of each person, by name.
    """

    def __init__(self) -> None:
        self.by_id: dict[str, Dialogue] = {}
        self.current: dict[str, str] = {}
        self.requests: dict[str, str] = {}
        self._of_item: dict[str, str] = {}

    def take(self, events: Iterable[LedgerEvent]) -> Dialogues:
        """Apply further events, and return these dialogues."""
        for event in events:
            if event.body:  # else a corrupted row, which `Ledger.problems` reports
                self._take(event.kind, event.body, event.number)
        return self

    def of(self, annotator: str) -> Dialogue | None:
        """Return the dialogue that a person is in; None before the first."""
        name = self.current.get(annotator)
        return None if name is None else self.by_id[name]

    def answering(self) -> list[Dialogue]:
        """Return the dialogues that wait for answers."""
        return [one for name in self.current.values() if (one := self.by_id[name]).phase == "answering"]

    def has(self, item: str) -> bool:
        """Return whether an item is a pair of answers of a dialogue."""
        return item in self._of_item

    def items(self) -> list[Item]:
        """Return the pairs of answers that people were asked to compare, by dialogue."""
        return [item for dialogue in self.by_id.values() for item in dialogue.items()]

    def preferred(self, without: Container[str] = ()) -> dict[str, tuple[int, int]]:
        """Return of each model how often its answer was preferred, and how often one of two answers was.

        Args:
            without: items that do not count, such as those that were dropped.
        """
        counts: dict[str, tuple[int, int]] = {}
        exchanges = (one for dialogue in self.by_id.values() for one in dialogue.exchanges)
        for exchange in exchanges:
            if exchange.verdict in PLACES and exchange.item not in without:
                for place, model in zip(PLACES, exchange.models, strict=True):
                    won, of = counts.get(model, (0, 0))
                    counts[model] = (won + (place == exchange.verdict), of + 1)
        return counts

    def _take(self, kind: EventKind, body: EventBody, number: int) -> None:
        if body.get("request") and "annotator" in body:
            self.requests[body["annotator"]] = body["request"]
        if kind == "open":
            start = tuple(body.get("turns", ()))
            self._enter(Dialogue(body["dialogue"], body["annotator"], start, body.get("text", ""), body["most"]))
        elif kind in ("say", "answers", "end"):
            self._within(kind, self.by_id[body["dialogue"]], body, number)
        elif kind in ("label", "skip", "flag", "undo") and body["item"] in self._of_item:
            self._answered(kind, self.by_id[self._of_item[body["item"]]], body, number)

    def _answered(self, kind: EventKind, dialogue: Dialogue, body: EventBody, number: int) -> None:
        place = next((i for i, one in enumerate(dialogue.exchanges) if one.item == body["item"]), None)
        if place is None or body["annotator"] != dialogue.annotator or (kind != "undo" and "goes_on" not in body):
            return  # no answer of this dialogue's person
        if kind == "undo":
            del dialogue.exchanges[place + 1 :]
        exchange = dialogue.exchanges[place]
        exchange.verdict = body["verdict"] if kind == "label" else None
        exchange.edit = body.get("edit", "") if kind == "label" else ""
        exchange.goes_on = None if kind == "undo" else body["goes_on"]
        if exchange.goes_on == "again":
            dialogue.exchanges.append(Exchange(exchange.text, number))
        self._enter(dialogue)

    def _within(self, kind: EventKind, dialogue: Dialogue, body: EventBody, number: int) -> None:
        if kind == "say":
            dialogue.exchanges.append(Exchange(body["text"], number))
        elif kind == "end":
            dialogue.ended = body["reason"]
        else:
            exchange = dialogue.last
            exchange.item, exchange.uncompared = body["item"], body.get("reason", "")
            (first, second), (one, other) = body["texts"], body["models"]
            exchange.texts, exchange.models = (first, second), (one, other)
            exchange.goes_on = body.get("goes_on")
            self._of_item[exchange.item] = dialogue.id

    def _enter(self, dialogue: Dialogue) -> None:
        """Have a person be in this dialogue; the one before, if it goes on, is left."""
        before = self.of(dialogue.annotator)
        if before is not None and before is not dialogue and before.phase != "over":
            before.ended = "left"
        dialogue.ended = ""
        self.by_id[dialogue.id] = dialogue
        self.current[dialogue.annotator] = dialogue.id
