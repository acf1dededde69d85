"""Serves the labelling app from one process on one socket, until SIGINT or SIGTERM."""

from __future__ import annotations

import socket

import uvicorn

from pipeline.errors import PipelineError, Problem
from pipeline.preferences.app import Answers, make_app
from pipeline.preferences.label_queue import LabelQueue


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        PipelineError: the address is not this machine's, or the port is taken.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        statement = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise PipelineError(
            Problem(statement, "an address of this machine and a free port", "see --host and --port")
        ) from error


def serve(queue: LabelQueue, title: str, guidelines: str, listener: socket.socket, live: Answers | None = None) -> None:
    """Serve the app until SIGINT or SIGTERM; requests in progress are completed first."""
    config = uvicorn.Config(
        make_app(queue, title, guidelines, live), log_level="warning", server_header=False, timeout_graceful_shutdown=5
    )
    uvicorn.Server(config).run(sockets=[listener])
