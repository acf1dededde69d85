"""Serves the labelling app from one process on one socket, until SIGINT or SIGTERM."""

from __future__ import annotations

import asyncio
import math
import socket
from functools import partial
from typing import cast

import uvicorn

from pipeline.errors import PipelineError, Problem
from pipeline.preferences.app import Live, make_app
from pipeline.preferences.connections import ConnectionLimits, LimitedProtocol
from pipeline.preferences.gate import Hosts
from pipeline.preferences.label_queue import LabelQueue

LIMITS = ConnectionLimits()


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


def make_server(
    queue: LabelQueue,
    title: str,
    guidelines: str,
    hosts: Hosts,
    limits: ConnectionLimits = LIMITS,
    live: Live | None = None,
) -> uvicorn.Server:
    """Return the server of the app, which runs until its `should_exit` is set."""
    config = uvicorn.Config(
        make_app(queue, title, guidelines, hosts, live),
        http=cast(type[asyncio.Protocol], partial(LimitedProtocol, limits)),
        ws="none",
        lifespan="off",
        proxy_headers=bool(hosts.origin),  # whoever is no proxy would choose the address that its wrong links count for
        log_level="warning",
        server_header=False,
        timeout_keep_alive=math.ceil(limits.idle_s),
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def serve(
    queue: LabelQueue,
    title: str,
    guidelines: str,
    listener: socket.socket,
    hosts: Hosts,
    live: Live | None = None,
) -> None:
    """Serve the app until SIGINT or SIGTERM; requests in progress are completed first."""
    make_server(queue, title, guidelines, hosts, live=live).run(sockets=[listener])
