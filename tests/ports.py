"""Finds ports for servers of the tests."""

from __future__ import annotations

import random
import socket

BELOW_EPHEMERAL = range(20_000, 32_000)
"""Ports that the kernel gives to nobody who asks for any port, so none is taken between here and its server's start."""


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    while True:
        port = random.SystemRandom().choice(BELOW_EPHEMERAL)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
