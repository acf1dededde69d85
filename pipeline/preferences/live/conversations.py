"""The live dialogues of a batch: records what people say and choose and what the models answer, under concurrent use.

Owns the rules of what a person may do in a dialogue. Knows the ledger, neither the web nor models; its methods return
plain data. All methods may be called from several threads; other processes may write to the same ledger.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple, cast

from pipeline.errors import PipelineError, Problem, counted
from pipeline.preferences.blinding import blinded_id, drawn, is_swapped
from pipeline.preferences.details import Choice, details_body
from pipeline.preferences.dimensions import Dimension, check_ratings
from pipeline.preferences.events import EventBody, FlagKind, GoesOn, LedgerEvent, NewEvent, Verdict
from pipeline.preferences.guidelines import guidelines_version
from pipeline.preferences.label_queue import LONGEST_REASON
from pipeline.preferences.labels import VERDICTS, State
from pipeline.preferences.ledger import Ledger
from pipeline.preferences.live.dialogues import PLACES, Dialogue, Dialogues, Exchange
from pipeline.preferences.live.shown import ShownDialogue, shown_dialogue
from pipeline.preferences.shown import Progress
from pipeline.records.shapes.turns import Turn

LONGEST_MESSAGE = 8000
"""Most characters of a message."""

Way = Literal["left", "right", "either", "again"]
"""With which answer a person wants to go on after no preference; `again` asks for two new ones."""

Decision = Callable[[State, Dialogues], NewEvent | None]


@dataclass(frozen=True)
class Rules:
    """What people are to do.

    Attributes:
        labels: number of choices after which the batch is finished.
        turns: number of messages of a dialogue.
        models: names of the models in the ledger, of which two are drawn for each message.
        openings: conversations to begin with, in turn: the last turn is the message that is offered, those before it
            are part of the dialogue.
        guidelines: what the page shows.
        dimensions: what people may judge besides.
    """

    labels: int
    turns: int
    models: Sequence[str]
    openings: Sequence[Sequence[Turn]] = ()
    guidelines: str = ""
    dimensions: Sequence[Dimension] = ()


class Asked(NamedTuple):
    """A message that two models are to answer.

    Attributes:
        dialogue: id of the dialogue.
        annotator: name of the person.
        asked: number of the event that asked for the answers.
        item: id that the pair of answers will have.
        turns: the dialogue up to the message.
        models: places of the models in `Rules.models`.
    """

    dialogue: str
    annotator: str
    asked: int
    item: str
    turns: list[Turn]
    models: tuple[int, int]


class Conversations:
    """The dialogues of a batch.

    Args:
        ledger: the log of events; a `LabelQueue` of the same ledger has given the batch its secret.
        rules: what people are to do.
    """

    def __init__(self, ledger: Ledger, rules: Rules) -> None:
        self.ledger, self.rules = ledger, rules
        self._state, self._dialogues = State(), Dialogues()
        self._turn = threading.Lock()
        self._version = guidelines_version(rules.guidelines)

    def shown(self, annotator: str) -> ShownDialogue:
        """Return the dialogue that a person is in, as their browser shows it."""
        with self._turn:
            self._take(self.ledger.events(self._state.number))
            return self._shown(annotator)

    def open(self, annotator: str, request: str = "") -> None:
        """Begin a dialogue; the one that the person is in is left. One in which nothing was said is not left for none.

        Raises:
            PipelineError: the batch is finished or was closed.
        """

        def decide(state: State, dialogues: Dialogues) -> NewEvent | None:
            self._refuse_finished(state)
            before = dialogues.of(annotator)
            is_unused = before is not None and before.phase == "say" and not before.exchanges
            if is_unused and not self.rules.openings:
                return None
            count = len(dialogues.by_id)
            name = blinded_id(state.salt, annotator, f"dialogue {state.number}")
            body = EventBody(annotator=annotator, dialogue=name, most=self.rules.turns, request=request)
            if self.rules.openings:
                *start, offered = self.rules.openings[count % len(self.rules.openings)]
                body |= EventBody(turns=[turn.copy() for turn in start], text=offered["content"])
            return "open", body

        self._append(annotator, request, decide)

    def say(self, annotator: str, text: str, request: str = "") -> None:
        """Record a message, which two models are to answer.

        Raises:
            PipelineError: it is empty or too long, it is not the person's turn, or the batch is finished.
        """
        text = text.strip()
        if not text or len(text) > LONGEST_MESSAGE:
            statement = f"the message has {counted(len(text), 'character')}"
            raise PipelineError(Problem(statement, f"1 to {LONGEST_MESSAGE}"))

        def decide(state: State, dialogues: Dialogues) -> NewEvent | None:
            self._refuse_finished(state)
            dialogue = _in_phase(dialogues, annotator, "say")
            return "say", EventBody(annotator=annotator, dialogue=dialogue.id, text=text, request=request)

        self._append(annotator, request, decide)

    def choose(self, annotator: str, item: str, choice: Choice, way: Way) -> None:
        """Record a choice between the two answers, and with which of them the dialogue goes on.

        Args:
            annotator: name of the person.
            item: id of the answers as they were shown to this person.
            choice: the choice and what else was said of the answers; an edited answer is the one it goes on with.
            way: with which answer the dialogue goes on; a preferred one is gone on with, whatever this says.

        Raises:
            PipelineError: no such answers wait for this person's choice, the batch was closed, a dimension or an edit
                is none, or two new answers are asked for though the two were not both bad.
        """
        check_ratings(choice.ratings, self.rules.dimensions)
        side = choice.side
        if way == "again" and side != "both bad":
            raise PipelineError(Problem("two new answers are asked for", "only when both are bad"))

        def body(state: State, dialogue: Dialogue) -> EventBody:
            exchange = dialogue.last
            swapped = is_swapped(state.salt, annotator, exchange.item)
            is_preference = side in ("left", "right")
            verdict = VERDICTS[(side == "right") != swapped] if is_preference else cast(Verdict, side)
            goes_on: GoesOn
            if is_preference or way in ("left", "right"):
                goes_on = PLACES[((side if is_preference else way) == "right") != swapped]
            else:
                goes_on = "again" if way == "again" else _drawn_place(state, exchange)
            given = EventBody(verdict=verdict, swapped=swapped, goes_on=goes_on)
            given |= EventBody(strength=choice.strength, seconds=choice.seconds)
            given |= details_body(choice, dialogue.item(exchange), given)
            return given | (EventBody(guidelines=self._version) if self._version else EventBody())

        self._answer("label", annotator, item, choice.request, body)

    def leave(
        self,
        kind: Literal["skip", "flag"],
        annotator: str,
        item: str,
        reason: str = "",
        request: str = "",
        flag: FlagKind | None = None,
    ) -> None:
        """Skip the two answers, or flag them.

        After a skip the dialogue goes on with one of them, drawn by chance. After a flag both models answer the message
        again, so that what was flagged is no part of any row.

        Args:
            kind: whether they are skipped or flagged.
            annotator: name of the person.
            item: id of the answers as they were shown to this person.
            reason: the person's reason.
            request: id of the request.
            flag: what is wrong with answers that are flagged.

        Raises:
            PipelineError: no such answers wait for this person's choice, or the batch was closed.
        """

        def body(state: State, dialogue: Dialogue) -> EventBody:
            goes_on: GoesOn = "again" if kind == "flag" else _drawn_place(state, dialogue.last)
            given = EventBody(reason=reason[:LONGEST_REASON], goes_on=goes_on)
            return given if flag is None else given | EventBody(flag=flag)

        self._answer(kind, annotator, item, request, body)

    def _answer(
        self,
        kind: Literal["label", "skip", "flag"],
        annotator: str,
        item: str,
        request: str,
        body: Callable[[State, Dialogue], EventBody],
    ) -> None:
        def decide(state: State, dialogues: Dialogues) -> NewEvent | None:
            if state.is_closed:
                raise PipelineError(Problem("the batch was closed: no more labels are needed"))
            dialogue = _in_phase(dialogues, annotator, "choose")
            if blinded_id(state.salt, annotator, dialogue.last.item) != item:
                raise PipelineError(Problem("these answers do not wait for a choice", remedy="reload the page"))
            about = EventBody(annotator=annotator, item=dialogue.last.item, request=request)
            return kind, body(state, dialogue) | about

        self._append(annotator, request, decide)

    def undo(self, annotator: str, request: str = "") -> bool:
        """Take the person's last choice, skip or flag back; what was said since is no part of the dialogue any more.

        Returns:
            Whether there was one.
        """
        undone = [False]

        def decide(state: State, dialogues: Dialogues) -> NewEvent | None:
            last = state.last(annotator)
            if last is not None and not dialogues.has(last[0]):
                last = None
            undone[0] = last is not None
            if last is None:
                return None
            item, answer = last
            return "undo", EventBody(annotator=annotator, item=item, event=answer.number, until=0.0, request=request)

        is_new = self._append(annotator, request, decide)
        return undone[0] if is_new else True

    def asked(self) -> list[Asked]:
        """Return the messages that wait for answers."""
        with self._turn:
            self._take(self.ledger.events(self._state.number))
            waiting = self._dialogues.answering()
            return [self._asked(dialogue) for dialogue in waiting]

    def answer(self, asked: Asked, texts: tuple[str, str], reason: str = "", goes_on: GoesOn | None = None) -> None:
        """Record both answers to a message; nothing if it waits for none any more.

        Args:
            asked: the message.
            texts: the answers, in the order of its models.
            reason: why they are not compared: `equal` or `unfit`; empty if they are.
            goes_on: with which answer the dialogue goes on if they are not compared.
        """
        models = [self.rules.models[place] for place in asked.models]
        body = EventBody(item=asked.item, texts=list(texts), models=models, reason=reason)
        self._conclude("answers", asked, body | EventBody(goes_on=goes_on) if goes_on else body)

    def end(self, asked: Asked, reason: str) -> None:
        """Record that a message cannot be answered, which ends its dialogue; nothing if it waits no more."""
        self._conclude("end", asked, EventBody(reason=reason))

    def seed(self, model: int) -> int:
        """Return the seed of a model's random numbers in this batch; no two models share one."""
        with self._turn:
            return drawn(self._state.salt, 2**32, "seed", self.rules.models[model])

    def _conclude(self, kind: Literal["answers", "end"], asked: Asked, body: EventBody) -> None:
        def decide(state: State, dialogues: Dialogues) -> NewEvent | None:
            dialogue = dialogues.of(asked.annotator)
            is_waiting = dialogue is not None and dialogue.phase == "answering" and dialogue.last.asked == asked.asked
            if not is_waiting:
                return None  # taken back, left, or answered by another server
            about = EventBody(annotator=asked.annotator, dialogue=asked.dialogue, asked=asked.asked)
            return kind, about | body

        self._append(asked.annotator, "", decide)

    def _asked(self, dialogue: Dialogue) -> Asked:
        last, salt = dialogue.last, self._state.salt
        pairs = list(combinations(range(len(self.rules.models)), 2))
        models = pairs[drawn(salt, len(pairs), "models", dialogue.id, str(last.asked))]
        item = hashlib.sha256(f"{dialogue.id}/{last.asked}".encode()).hexdigest()[:16]
        return Asked(dialogue.id, dialogue.annotator, last.asked, item, dialogue.turns(last), models)

    def _shown(self, annotator: str) -> ShownDialogue:
        dialogue = self._dialogues.of(annotator)
        return shown_dialogue(dialogue, annotator, self._state.salt, self._progress(annotator))

    def _progress(self, annotator: str) -> Progress:
        has = self._dialogues.has  # a batch may hold labels of pairs, too
        answers = self._state.answers
        dropped = self._state.dropped
        done = sum(
            one.kind == "label" and has(item) and item not in dropped
            for own in answers.values()
            for item, one in own.items()
        )
        own = sum(map(has, answers.get(annotator, ())))
        closed = self._state.is_closed
        return {"done": done, "wanted": done if closed else self.rules.labels, "own": own, "closed": closed}

    def _refuse_finished(self, state: State) -> None:
        progress = self._progress("")
        if progress["done"] >= progress["wanted"]:
            raise PipelineError(Problem("no more labels are needed"))

    def _append(self, annotator: str, request: str, decide: Decision) -> bool:
        """Append what ``decide`` returns; return whether the request is a new one."""
        is_new = [True]

        def once(events: list[LedgerEvent]) -> NewEvent | None:
            self._take(events)
            is_new[0] = not request or self._dialogues.requests.get(annotator) != request
            return decide(self._state, self._dialogues) if is_new[0] else None  # else sent again: its reply was lost

        with self._turn:
            self._take(self.ledger.append(once, self._state.last_event))
        return is_new[0]

    def _take(self, events: list[LedgerEvent]) -> None:
        self._state.take(events)
        self._state.take_touched()
        self._dialogues.take(events)


def _drawn_place(state: State, exchange: Exchange) -> GoesOn:
    """Return the answer with which a dialogue goes on that nobody chose: the secret decides."""
    return PLACES[drawn(state.salt, 2, "goes on", exchange.item)]


def _in_phase(dialogues: Dialogues, annotator: str, phase: str) -> Dialogue:
    """Return the dialogue of a person if it waits for this.

    Raises:
        PipelineError: it does not.
    """
    dialogue = dialogues.of(annotator)
    if dialogue is None or dialogue.phase != phase:
        statement = f"your dialogue does not wait for a {'message' if phase == 'say' else 'choice'}"
        raise PipelineError(Problem(statement, remedy="reload the page: another window may show it"))
    return dialogue
