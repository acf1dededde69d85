"""Limits of connections: how long a client may take, and how many there are, so that slow ones keep nobody out.

A client that sends a request byte by byte, or never reads the answer, holds a connection of the server. uvicorn limits
how long a connection may be idle between two requests; this is about all the other times.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

Phase = Literal["idle", "body", "response"]


@dataclass(frozen=True)
class ConnectionLimits:
    """How long clients may take, in seconds, and how many connections there may be.

    Attributes:
        idle_s: until a request has come with its headers, on a new connection and on one that is used again.
        body_s: until the body of a request has come.
        response_s: until a request is answered, and the client has read it.
        most: number of connections. One more closes the one that has been idle for longest.
    """

    idle_s: float = 15.0
    body_s: float = 15.0
    response_s: float = 60.0
    most: int = 500


class LimitedProtocol(H11Protocol):
    """uvicorn's HTTP protocol on one connection, with a time limit at every moment.

    Args:
        limits: the limits.
        **of_server: what uvicorn gives a protocol.
    """

    def __init__(self, limits: ConnectionLimits, **of_server: Any) -> None:
        super().__init__(**of_server)
        self.limits = limits
        self.since = self.loop.time()
        self.phase: Phase | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit of a new connection; where there are too many, close the one that was idle longest."""
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > self.limits.most:
            others = [one for one in self.connections if isinstance(one, LimitedProtocol) and one.phase == "idle"]
            longest = min(others, key=lambda one: one.since, default=self)
            longest.transport.abort()
            longest.connections.discard(longest)

    def data_received(self, data: bytes) -> None:
        """Take what has come, and look what is waited for next."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request; close a connection on which a refused request is still being sent."""
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.close()
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the time limit."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _now(self) -> Phase:
        if self.transport.is_closing():  # what is left of an answer is being sent
            return "response"
        if self.cycle is None or self.cycle.response_complete:
            return "idle"
        return "body" if self.conn.their_state is h11.SEND_BODY else "response"

    def _watch(self) -> None:
        """Start the time limit of a phase when it begins; further bytes do not prolong it."""
        phase = self._now()
        if phase == self.phase:
            return
        if self._timer is not None:
            self._timer.cancel()
        seconds = {"idle": self.limits.idle_s, "body": self.limits.body_s, "response": self.limits.response_s}[phase]
        self.phase, self.since = phase, self.loop.time()
        self._timer = self.loop.call_later(seconds, self.transport.abort)
