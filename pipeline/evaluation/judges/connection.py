"""Connects to a judge's server, once the libraries for it are known to be installed."""

from __future__ import annotations

import threading

from pipeline.errors import PipelineError
from pipeline.evaluation.judges.asking import Budget, Server
from pipeline.evaluation.judges.endpoint import Endpoint


def connect(endpoint: Endpoint, budget: Budget, stopped: threading.Event) -> Server:
    """Return a client of the server.

    Args:
        endpoint: its settings.
        budget: calls and tokens that may be spent.
        stopped: is set when calls under way are to end.

    Raises:
        PipelineError: a library or the variable with the key is missing.
    """
    problems = list(endpoint.machine_problems())
    if problems:
        raise PipelineError(*problems)
    from pipeline.evaluation.judges.client import Client  # needs openai and tenacity, of the extra `judge`

    return Client(endpoint, budget, stopped)
