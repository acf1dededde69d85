"""Sends requests to a server: several at a time, within a budget, until all are answered or it is stopped.

Owns the threads and the order of things. Knows nothing of HTTP: `client.py` asks one question.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from pipeline.endpoints.requests import ChatRequest
from pipeline.errors import counted

ReplyT = TypeVar("ReplyT")
ReplyT_co = TypeVar("ReplyT_co", covariant=True)

LOOK_EVERY_S = 0.2
"""Longest time in which a request to stop is not seen."""

GRACE_S = 5.0
"""Time that the calls under way have when the run is asked to stop; their replies are kept."""

UNANSWERED = 10
"""Calls that fail before any succeeds, at least, until the server counts as gone."""


class FailedCallError(Exception):
    """A request has no usable reply; its text is the reason.

    Attributes:
        is_hopeless: whether every other request would fail in the same way.
    """

    def __init__(self, reason: str, *, is_hopeless: bool = False) -> None:
        super().__init__(reason)
        self.is_hopeless = is_hopeless


class BudgetSpentError(FailedCallError):
    """The calls or tokens of a run are used up."""


class Budget:
    """Calls and tokens that a run may still spend; safe between threads.

    Args:
        max_calls: most calls.
        max_tokens: most tokens; None sets no bound.
        where: key of the recipe that holds these settings, for messages.

    Attributes:
        calls: calls that were sent.
        tokens: tokens that they used.
    """

    def __init__(self, max_calls: int, max_tokens: int | None, where: str = "endpoint") -> None:
        self._max_calls, self._max_tokens, self._where = max_calls, max_tokens, where
        self._lock = threading.Lock()
        self.calls = 0
        self.tokens = 0

    def take_call(self) -> None:
        """Count a call that is about to be sent.

        Raises:
            BudgetSpentError: it would be one too many.
        """
        with self._lock:
            if self.calls >= self._max_calls:
                raise BudgetSpentError(f"{self._where}.max_calls is {self._max_calls:,}, and repeated calls count too")
            if self._max_tokens is not None and self.tokens >= self._max_tokens:
                raise BudgetSpentError(f"{self._where}.max_tokens_total is {self._max_tokens:,}, and they are used")
            self.calls += 1

    def add_tokens(self, tokens: int) -> None:
        """Count the tokens of a reply."""
        with self._lock:
            self.tokens += tokens


class Server(Protocol[ReplyT_co]):
    """Answers one request at a time, from any thread."""

    def ask(self, request: ChatRequest) -> ReplyT_co:
        """Return the reply, or raise `FailedCallError`."""
        ...

    def close(self) -> None:
        """End the calls under way."""
        ...


@dataclass
class Answered(Generic[ReplyT]):
    """What became of the requests so far.

    Attributes:
        replies: replies by the key of their request.
        failures: reasons of those that failed, by the same key.
        useless: replies without a verdict, which are among the failures.
        is_alive: whether the server has replied at all, also without a verdict.
        is_stopped: whether the run was asked to stop.
        gave_up: why no more were sent; empty if all were.
    """

    replies: dict[str, ReplyT] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    useless: dict[str, ReplyT] = field(default_factory=dict)
    is_alive: bool = False
    is_stopped: bool = False
    gave_up: str = ""


@dataclass(frozen=True)
class Watch(Generic[ReplyT]):
    """How the asking is watched; every function is called in the thread that asks.

    Attributes:
        keep: stores new replies, and returns the reasons of those that are of no use, by key.
        progress: is called with the number of requests done and the calls per second.
        stopping: returns whether the run was asked to stop.
        give_up: returns why it is of no use to go on after these failures; empty if it is.
    """

    keep: Callable[[Mapping[str, ReplyT]], Mapping[str, str]]
    progress: Callable[[int, float], None]
    stopping: Callable[[], bool]
    give_up: Callable[[Mapping[str, str]], str]


class _Workers(Generic[ReplyT]):
    """Threads that ask a server; they end with the process, so that a call without an end does not hold it up."""

    def __init__(self, server: Server[ReplyT], count: int) -> None:
        self._server = server
        self._waiting: queue.SimpleQueue[ChatRequest | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[str, ReplyT | Exception]] = queue.SimpleQueue()
        self.running = 0
        self.count = count
        for number in range(count):
            threading.Thread(target=self._work, name=f"calls-{number}", daemon=True).start()

    def send(self, request: ChatRequest) -> None:
        self._waiting.put(request)
        self.running += 1

    def results(self, timeout_s: float) -> dict[str, ReplyT | Exception]:
        """Return what has ended, by key, after at most ``timeout_s``."""
        ended: dict[str, ReplyT | Exception] = {}
        with contextlib.suppress(queue.Empty):
            key, result = self._done.get(timeout=timeout_s)
            ended[key] = result
            while True:
                key, result = self._done.get_nowait()
                ended[key] = result
        self.running -= len(ended)
        return ended

    def end(self) -> None:
        for _ in range(self.count):
            self._waiting.put(None)

    def _work(self) -> None:
        while (request := self._waiting.get()) is not None:
            result: ReplyT | Exception
            try:
                result = self._server.ask(request)
            except Exception as error:  # raised again in the thread that asks
                result = error
            self._done.put((request.key, result))


def ask_all(
    server: Server[ReplyT],
    requests: Sequence[ChatRequest],
    parallel: int,
    stopped: threading.Event,
    watch: Watch[ReplyT],
) -> Answered[ReplyT]:
    """Send requests, at most ``parallel`` at a time, and return what became of them.

    Args:
        server: the server.
        requests: requests with different keys.
        parallel: calls at a time.
        stopped: is set when the calls under way are to end; the server waits for it between attempts.
        watch: what is called while it goes on.
    """
    answered, waiting, started = Answered[ReplyT](), iter(requests), time.perf_counter()
    workers = _Workers(server, min(parallel, max(1, len(requests))))
    try:
        for request in itertools.islice(waiting, parallel):
            workers.send(request)
        while workers.running:
            ended = workers.results(LOOK_EVERY_S)
            hopeless = _take(answered, ended, watch, parallel)
            count = len(answered.replies) + len(answered.failures)
            watch.progress(count, count / (time.perf_counter() - started))
            answered.is_stopped = watch.stopping()
            answered.gave_up = hopeless or watch.give_up(answered.failures)
            if answered.is_stopped or answered.gave_up:
                break
            for request in itertools.islice(waiting, len(ended)):
                workers.send(request)
    finally:
        stopped.set()
        workers.end()
        ends = time.monotonic() + GRACE_S
        while workers.running and (left := ends - time.monotonic()) > 0:
            _take(answered, workers.results(left), watch, parallel)
        server.close()
    return answered


def _take(
    answered: Answered[ReplyT], ended: Mapping[str, ReplyT | Exception], watch: Watch[ReplyT], parallel: int
) -> str:
    """Add the results of calls that have ended; return why all others would fail too, or nothing."""
    replies: dict[str, ReplyT] = {}
    hopeless = ""
    for key, result in ended.items():
        if not isinstance(result, Exception):
            replies[key] = result
        elif isinstance(result, FailedCallError):
            answered.failures[key] = str(result)
            if result.is_hopeless or isinstance(result, BudgetSpentError):
                hopeless = hopeless or str(result)
        else:
            raise result
    if replies:
        answered.is_alive = True
        reasons = watch.keep(replies)
        answered.failures |= reasons
        for key, reply in replies.items():
            (answered.useless if key in reasons else answered.replies)[key] = reply
    if not answered.is_alive and not hopeless and len(answered.failures) >= max(UNANSWERED, 2 * parallel):
        first = next(iter(answered.failures.values()))
        hopeless = f"none of the first {counted(len(answered.failures), 'call')} was answered: {first}"
    is_spent = any(isinstance(result, BudgetSpentError) for result in ended.values())
    return hopeless if is_spent or not answered.is_alive else ""
