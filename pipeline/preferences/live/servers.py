"""Models behind servers that answer in live dialogues, beside checkpoints or alone.

A reply is not cached: the ledger keeps what was said. An attempt that failed is no end of a dialogue, see
`answering.py`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from pipeline.endpoints.answers import AnswerEndpoint, AnswerSampling, answer_request, seed_of, where_of
from pipeline.endpoints.asking import LOOK_EVERY_S, Budget, FailedCallError, Server
from pipeline.endpoints.connection import connect
from pipeline.preferences.live.answering import LATER, Later, Responder
from pipeline.records.shapes.turns import Turn

LOG = logging.getLogger("trueup.collect")


class _Connected(NamedTuple):
    name: str
    endpoint: AnswerEndpoint
    server: Server[str]


class ServerResponder:
    """Models behind servers that answer.

    Args:
        endpoints: settings of the servers by name; the models have the order of their names.
        sampling: how they sample.

    Raises:
        PipelineError: a library or the variable with a key is missing.
    """

    def __init__(self, endpoints: Mapping[str, AnswerEndpoint], sampling: AnswerSampling) -> None:
        self._sampling, self._stopped = sampling, threading.Event()
        self._connected = [self._connect(name, one) for name, one in sorted(endpoints.items())]

    def _connect(self, name: str, endpoint: AnswerEndpoint) -> _Connected:
        once = endpoint.model_copy(update={"attempts": 1})  # the next attempts are those of the dialogue
        budget = Budget(endpoint.max_calls, endpoint.max_tokens_total, where_of(name))
        return _Connected(name, once, connect(once, where_of(name), budget, self._stopped, lambda told: told.text))

    def close(self) -> None:
        """Wait for no call any more; one under way ends with the process."""
        self._stopped.set()

    def answer(
        self, model: int, dialogues: Sequence[Sequence[Turn]], row_ids: Sequence[int], seed: int
    ) -> list[str | Later | None]:
        """Return an answer to each dialogue; `LATER` where the server gave none now."""
        name, endpoint, server = self._connected[model]

        def ask(turns: Sequence[Turn], row_id: int) -> str | Later:
            request = answer_request(endpoint, self._sampling, {"prompt": turns}, seed_of(f"{seed}/{row_id}"))
            try:
                return server.ask(request).strip()
            except FailedCallError as error:
                LOG.warning("%s gave no answer (%s); it is asked again", where_of(name), error)
                return LATER

        return self._all(list(zip(dialogues, row_ids, strict=True)), ask, endpoint.parallel)

    def _all(
        self,
        asked: Sequence[tuple[Sequence[Turn], int]],
        ask: Callable[[Sequence[Turn], int], str | Later],
        parallel: int,
    ) -> list[str | Later | None]:
        """Ask in threads that end with the process: a call without an end holds nothing up."""
        waiting, done = queue.SimpleQueue[int](), queue.SimpleQueue[tuple[int, str | Later | Exception]]()
        for place in range(len(asked)):
            waiting.put(place)

        def work() -> None:
            with contextlib.suppress(queue.Empty):
                while True:
                    place = waiting.get_nowait()
                    try:
                        done.put((place, ask(*asked[place])))
                    except Exception as error:  # raised again in the thread that waits
                        done.put((place, error))

        for _ in range(min(parallel, len(asked))):
            threading.Thread(target=work, name="calls", daemon=True).start()
        answers: dict[int, str | Later] = {}
        while len(answers) < len(asked) and not self._stopped.is_set():
            with contextlib.suppress(queue.Empty):
                place, answer = done.get(timeout=LOOK_EVERY_S)
                if isinstance(answer, Exception):
                    raise answer
                answers[place] = answer
        return [answers.get(place, LATER) for place in range(len(asked))]


class JoinedResponder:
    """Checkpoints, and after them models behind servers.

    Args:
        checkpoints: the checkpoints.
        count: number of checkpoints.
        servers: the models behind servers.
    """

    def __init__(self, checkpoints: Responder, count: int, servers: Responder) -> None:
        self._checkpoints, self._count, self._servers = checkpoints, count, servers
        self._turn = threading.Lock()

    def answer(
        self, model: int, dialogues: Sequence[Sequence[Turn]], row_ids: Sequence[int], seed: int
    ) -> Sequence[str | Later | None]:
        """Return an answer of a checkpoint or of a model behind a server to each dialogue."""
        if model < self._count:
            with self._turn:  # of the two threads that answer
                return self._checkpoints.answer(model, dialogues, row_ids, seed)
        return self._servers.answer(model - self._count, dialogues, row_ids, seed)
