"""Models behind servers that answer in live dialogues, beside checkpoints or alone.

A reply is not cached: the ledger keeps what was said. An attempt that failed is no end of a dialogue, see
`answering.py`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from pipeline.endpoints.answers import AnswerEndpoint, AnswerSampling, answer_request, seed_of, where_of
from pipeline.endpoints.asking import Budget, FailedCallError, Server
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

        with ThreadPoolExecutor(endpoint.parallel) as threads:
            return list(threads.map(ask, dialogues, row_ids))


class JoinedResponder:
    """Checkpoints, and after them models behind servers.

    Args:
        checkpoints: the checkpoints.
        count: number of checkpoints.
        servers: the models behind servers.
    """

    def __init__(self, checkpoints: Responder, count: int, servers: Responder) -> None:
        self._checkpoints, self._count, self._servers = checkpoints, count, servers

    def answer(
        self, model: int, dialogues: Sequence[Sequence[Turn]], row_ids: Sequence[int], seed: int
    ) -> Sequence[str | Later | None]:
        """Return an answer of a checkpoint or of a model behind a server to each dialogue."""
        if model < self._count:
            return self._checkpoints.answer(model, dialogues, row_ids, seed)
        return self._servers.answer(model - self._count, dialogues, row_ids, seed)
