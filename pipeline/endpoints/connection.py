"""Connects to a server, once the libraries for it are known to be installed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from pipeline.endpoints.asking import Budget, Server
from pipeline.endpoints.completions import Completion
from pipeline.endpoints.settings import ServerSettings
from pipeline.errors import PipelineError

ReplyT = TypeVar("ReplyT")


def connect(
    settings: ServerSettings, where: str, budget: Budget, stopped: threading.Event, read: Callable[[Completion], ReplyT]
) -> Server[ReplyT]:
    """Return a client of the server.

    Args:
        settings: its settings.
        where: key of the recipe that holds them, for messages.
        budget: calls and tokens that may be spent.
        stopped: is set when calls under way are to end.
        read: makes a reply of what the server returned; it raises `FailedCallError` if that is of no use.

    Raises:
        PipelineError: a library or the variable with the key is missing.
    """
    problems = list(settings.machine_problems(where))
    if problems:
        raise PipelineError(*problems)
    from pipeline.endpoints.client import Client  # needs openai and tenacity, of the extra `judge`

    return Client(settings, budget, stopped, read)
