"""The label queue: assigns pairs to annotators and records their answers, safely under concurrent requests.

Owns the rules of what an annotator may do. Knows the ledger, not the web; its methods return plain data.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from typing import Literal, TypedDict, cast

from pipeline.errors import PipelineError, Problem
from pipeline.preferences.events import EventBody, EventKind, NewEvent, Verdict
from pipeline.preferences.items import Item, Turns, is_swapped
from pipeline.preferences.labels import LEASE_S, VERDICTS, Batch, State
from pipeline.preferences.ledger import Ledger, LedgerEvent

SIDES = ("left", "right", "tie", "both good", "both bad")
"""Choices of an annotator; `left` and `right` are sides of the screen."""

STRONGEST = 3


class ShownTurn(TypedDict):
    """A turn as a browser receives it."""

    role: str
    content: str


class ShownPair(TypedDict):
    """A pair as a browser receives it; it does not reveal which response is which.

    Attributes:
        item: id of the item.
        prompt: the conversation before the responses.
        left: the response on the left of the screen.
        right: the response on its right.
    """

    item: str
    prompt: list[ShownTurn]
    left: list[ShownTurn]
    right: list[ShownTurn]


class Progress(TypedDict):
    """How far a batch is.

    Attributes:
        done: number of labels given.
        wanted: number of labels needed.
        own: number of labels given by one annotator.
    """

    done: int
    wanted: int
    own: int


class LabelQueue:
    """The queue of a batch of items that annotators label.

    Args:
        batch: items, and the number of labels each needs.
        ledger: the log of events that records labels, leases and annotators.
    """

    def __init__(self, batch: Batch, ledger: Ledger) -> None:
        self.batch, self.ledger = batch, ledger
        self._items = {item.id: item for item in batch.items}
        self._state = State()
        self._turn = threading.Lock()

    def state(self) -> State:
        """Return the state after all events in the ledger so far."""
        with self._turn:
            return self._state.take(self.ledger.events(self._state.number))

    def invite(self, name: str) -> str:
        """Issue a token to an annotator, which replaces an earlier one; the ledger stores only its hash."""
        token = secrets.token_urlsafe(16)
        self._append(lambda state: ("annotator", {"name": name, "token": _hashed(token)}))
        return token

    def annotator(self, token: str) -> str | None:
        """Return the name of the annotator with this token; None for an unknown token."""
        known = self.state().tokens.items()
        return next((name for name, hashed in known if hmac.compare_digest(hashed, _hashed(token))), None)

    def next(self, annotator: str, count: int = 1) -> list[ShownPair]:
        """Return the next pairs for an annotator, as they are shown, and lease them to the annotator for `LEASE_S`."""
        given: list[Item] = []

        def decide(state: State) -> NewEvent | None:
            now = time.time()
            given[:] = self.batch.queue(state, annotator, now)[:count]
            late = [i.id for i in given if state.leases.get((i.id, annotator), 0) < now + LEASE_S / 2]
            return ("lease", {"annotator": annotator, "items": late, "until": now + LEASE_S}) if late else None

        self._append(decide)
        return [_shown(item, annotator) for item in given]

    def label(self, annotator: str, item: str, side: str, strength: int, seconds: float) -> None:
        """Record a choice.

        Args:
            annotator: name of the annotator.
            item: id of an item of the batch.
            side: one of `SIDES`.
            strength: strength of the preference, 1 to 3.
            seconds: time the choice took.

        Raises:
            PipelineError: no such item, side or strength, or the item is not leased to this annotator.
        """
        if side not in SIDES:
            raise PipelineError(Problem(f"choice {side!r}", f"one of {', '.join(SIDES)}"))
        if strength not in range(1, STRONGEST + 1):
            raise PipelineError(Problem(f"strength {strength!r}", f"1 to {STRONGEST}"))
        swapped = is_swapped(item, annotator)
        is_even = side not in ("left", "right")
        verdict = cast(Verdict, side) if is_even else VERDICTS[(side == "right") != swapped]
        body = EventBody(verdict=verdict, strength=strength, seconds=seconds, swapped=swapped)
        self._answer("label", annotator, item, body)

    def leave(self, kind: Literal["skip", "flag"], annotator: str, item: str, reason: str) -> None:
        """Skip an item, or flag it, after which no annotator gets it.

        Raises:
            PipelineError: no such item, or it is not leased to this annotator.
        """
        self._answer(kind, annotator, item, EventBody(reason=reason[:1000]))

    def undo(self, annotator: str) -> str | None:
        """Undo the annotator's last answer and return its item; None when there is none."""
        undone: list[str] = []

        def decide(state: State) -> NewEvent | None:
            last = state.last(annotator)
            if last is None:
                return None
            undone[:] = [last[0]]
            until = time.time() + LEASE_S
            return "undo", {"annotator": annotator, "item": last[0], "event": last[1].number, "until": until}

        self._append(decide)
        return undone[0] if undone else None

    def progress(self, annotator: str) -> Progress:
        """Return the number of labels given, of labels needed, and of those given by this annotator."""
        state = self.state()
        done, full = self.batch.progress(state)
        own = sum(who == annotator and one.kind == "label" for (_, who), one in state.answers.items())
        return {"done": done, "wanted": full, "own": own}

    def _answer(self, kind: EventKind, annotator: str, item: str, body: EventBody) -> None:
        if item not in self._items:
            raise PipelineError(Problem("this pair is not in the data", "one that was handed out", "reload the page"))

        def decide(state: State) -> NewEvent:
            if (item, annotator) in state.answers:
                raise PipelineError(Problem("this pair was answered", "one answer of a person", "undo it to change it"))
            if (item, annotator) not in state.leases:
                raise PipelineError(Problem("this pair was not handed to you", "one that was", "reload the page"))
            return kind, {**body, "annotator": annotator, "item": item}

        self._append(decide)

    def _append(self, decide: Callable[[State], NewEvent | None]) -> None:
        with self._turn:

            def after(events: list[LedgerEvent]) -> NewEvent | None:
                return decide(self._state.take(events))

            self.ledger.append(after, self._state.number)


def _shown(item: Item, annotator: str) -> ShownPair:
    """Return an item as a browser receives it; it does not reveal which response is which."""
    left, right = item.responses[::-1] if is_swapped(item.id, annotator) else item.responses
    return {
        "item": item.id,
        "prompt": _shown_turns(item.prompt),
        "left": _shown_turns(left),
        "right": _shown_turns(right),
    }


def _shown_turns(turns: Turns) -> list[ShownTurn]:
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
