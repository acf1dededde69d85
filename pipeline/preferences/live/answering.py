"""Lets models answer the messages of live dialogues, in a thread of its own, all that wait at once.

Both answers to a message are recorded in one event, so that neither can be seen before the other. A message that a
model cannot answer now, such as one behind a server that is not reached, is put off and asked again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from pipeline.preferences.events import GoesOn
from pipeline.preferences.live.conversations import Asked, Conversations
from pipeline.preferences.model_names import names_model
from pipeline.records.shapes.turns import Turn

LOG = logging.getLogger("trueup.collect")

TRIES = 4
"""Times a model answers until its answer is neither empty nor names a model."""

PAUSE_S = 2.0
"""Pause after the ledger could not be read or written."""

ROUNDS = 5
"""Times in all that a message is asked which a model could not answer; then its dialogue ends."""


class Later(Enum):
    """That a model cannot answer a dialogue now, and may later."""

    LATER = "later"


LATER = Later.LATER


@dataclass(frozen=True)
class _PutOff:
    """A message that is asked again.

    Attributes:
        annotator: name of the person whose message it is.
        times: how often it was asked.
        due_s: when it is asked again, by the monotonic clock.
    """

    annotator: str
    times: int
    due_s: float


class Responder(Protocol):
    """Models that answer."""

    def answer(
        self, model: int, dialogues: Sequence[Sequence[Turn]], row_ids: Sequence[int], seed: int
    ) -> Sequence[str | Later | None]:
        """Return an answer to each dialogue; None where the context is full, `LATER` where none can be had now.

        Args:
            model: place of the model.
            dialogues: dialogues whose last turn is a person's.
            row_ids: identity of each dialogue, for its random numbers.
            seed: seed of the random numbers.
        """
        ...


class Answering:
    """The threads in which models answer: one, and one more for messages to models behind servers.

    So a server that does not answer holds up no dialogue between checkpoints.

    Args:
        conversations: dialogues that wait for answers.
        responder: the models.
        servers: places of the models behind servers.
        close: has nothing wait for calls to servers under way.
    """

    def __init__(
        self,
        conversations: Conversations,
        responder: Responder,
        servers: Container[int] = (),
        close: Callable[[], None] = lambda: None,
    ) -> None:
        def has_server(asked: Asked) -> bool:
            return any(model in servers for model in asked.models)

        self._close = close
        self._threads = [
            _Thread(conversations, responder, lambda asked: not has_server(asked)),
            *([_Thread(conversations, responder, has_server)] if servers else []),
        ]

    def start(self) -> None:
        """Start; what was left unanswered is answered first."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Have the threads look for messages."""
        for thread in self._threads:
            thread.wanted.set()

    def stop(self) -> None:
        """End after the answers under way; calls to servers are given up."""
        for thread in self._threads:
            thread.is_stopped = True
            thread.wanted.set()
        self._close()
        for thread in self._threads:
            thread.join()

    def is_asking_again(self, annotator: str) -> bool:
        """Return whether a person's message is asked again because a model could not answer it."""
        return any(one.annotator == annotator for thread in self._threads for one in thread.put_off.values())


class _Thread(threading.Thread):
    """A thread in which models answer the messages that it takes."""

    def __init__(self, conversations: Conversations, responder: Responder, takes: Callable[[Asked], bool]) -> None:
        super().__init__(name="answering", daemon=True)
        self.conversations, self.responder, self.takes = conversations, responder, takes
        self.wanted, self.is_stopped = threading.Event(), False
        self.wanted.set()
        self.put_off: dict[str, _PutOff] = {}  # replaced and never changed: other threads read it

    def run(self) -> None:
        """Answer until the thread is stopped."""
        while not self.is_stopped:
            due_s = min((one.due_s for one in self.put_off.values()), default=None)
            self.wanted.wait(None if due_s is None else max(0.0, due_s - time.monotonic()))
            self.wanted.clear()
            try:
                while not self.is_stopped and (asked := self._due()):
                    later = answer_all(self.conversations, self.responder, asked)
                    if not self.is_stopped:
                        self._ask_later(asked, later)
            except Exception:  # of the ledger: what waits goes on waiting, and the thread has to live
                LOG.exception("answers could not be recorded; they are asked for again")
                threading.Event().wait(PAUSE_S)
                self.wanted.set()

    def _due(self) -> list[Asked]:
        """Return the messages to ask now."""
        asked, now = list(filter(self.takes, self.conversations.asked())), time.monotonic()
        waiting = {one.item for one in asked}
        self.put_off = {item: one for item, one in self.put_off.items() if item in waiting}
        return [one for one in asked if one.item not in self.put_off or self.put_off[one.item].due_s <= now]

    def _ask_later(self, asked: Sequence[Asked], later: Sequence[Asked]) -> None:
        """Put messages off, each time for longer; end the dialogue of one that was asked too often."""
        items = {one.item for one in asked}
        before = {item: one.times for item, one in self.put_off.items() if item in items}
        kept = {item: one for item, one in self.put_off.items() if item not in items}
        for one in later:
            times = before.get(one.item, 0) + 1
            if times >= ROUNDS:
                self.conversations.end(one, "failed")
            else:
                kept[one.item] = _PutOff(one.annotator, times, time.monotonic() + PAUSE_S * 2 ** (times - 1))
        self.put_off = kept


def answer_all(conversations: Conversations, responder: Responder, asked: Sequence[Asked]) -> list[Asked]:
    """Let the models answer messages, and record the answers; return the messages that a model can answer later only.

    An answer that is empty or names a model is sampled again, up to `TRIES` times in all. If it stays so, the two
    answers are not compared and the dialogue goes on with the other one.
    """
    texts: dict[tuple[int, int], str] = {}  # by message and model; the last try
    full: set[int] = set()
    later: set[int] = set()
    missing = [(i, model) for i, one in enumerate(asked) for model in one.models]
    try:
        for attempt in range(TRIES):
            by_model: dict[int, list[int]] = defaultdict(list)
            for i, model in missing:
                if i not in full | later:
                    by_model[model].append(i)
            for model, places in sorted(by_model.items()):
                rows = [(int(asked[i].item, 16) + attempt) % 2**63 for i in places]
                seed = conversations.seed(model)
                answers = responder.answer(model, [asked[i].turns for i in places], rows, seed)
                for i, answer in zip(places, answers, strict=True):
                    if answer is None:
                        full.add(i)
                    elif isinstance(answer, Later):
                        later.add(i)
                    else:
                        texts[i, model] = answer
            missing = [(i, model) for i, model in missing if not _is_fit(texts.get((i, model), ""))]
    except Exception:  # whatever a model raises: only the person whose message it was is told
        LOG.exception("a model could not answer")
        if len(asked) == 1:
            conversations.end(asked[0], "failed")
            return []
        return [left for one in asked for left in answer_all(conversations, responder, [one])]
    for i, one in enumerate(asked):
        if i in full:
            conversations.end(one, "context")
        elif i not in later:
            _record(conversations, one, (texts[i, one.models[0]], texts[i, one.models[1]]))
    return [asked[i] for i in sorted(later - full)]


def _record(conversations: Conversations, asked: Asked, texts: tuple[str, str]) -> None:
    first, second = texts
    goes_on: GoesOn = "first" if _is_fit(first) or (first and not _is_fit(second)) else "second"
    if not first and not second:
        conversations.end(asked, "silent")
    elif not _is_fit(first) or not _is_fit(second):
        conversations.answer(asked, texts, "unfit", goes_on)
    elif first.split() == second.split():
        conversations.answer(asked, texts, "equal", "first")
    else:
        conversations.answer(asked, texts)


def _is_fit(text: str) -> bool:
    """Return whether an answer says something and does not say which model it is from."""
    return bool(text.strip()) and not names_model(text)
