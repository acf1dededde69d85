"""Whether the machines of a stage still hear one another: a beat over the store that torch's rendezvous keeps anyway.

A cut link leaves processes waiting in a collective for half an hour, and torch's agents do not look after one another.
So every agent writes a beat into the rendezvous' TCPStore and reads the others'. A machine that is silent for
`LOST_S`, or whose store does not answer for as long, is lost. The same store tells all machines what broke first: the
others only see a connection close.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from pipeline.errors import Problem
from pipeline.launch.job import Outcome

BEAT_S = 1.0
LOST_S = 25.0
"""Seconds of silence after which a machine is given up."""
CONNECT_S = 180.0
"""Seconds in which machines that came to a stage must reach one another; one may load its libraries for longer."""
ENDING_S = 5.0
"""Seconds a machine that is done waits to hear how the others ended."""

_CLOSED = re.compile(r"[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|[Tt]imed out waiting|unhandled system error")


@dataclass(frozen=True)
class Ending:
    """How a stage ended on one machine.

    Attributes:
        found: what broke; empty when nothing did.
        ended: clock of the first process that broke.
        is_consequence: it only saw another machine go.
    """

    found: str = ""
    ended: float = 0.0
    is_consequence: bool = False

    @staticmethod
    def of(outcome: Outcome) -> Ending:
        """Return the ending of an outcome."""
        if outcome.result is not None or outcome.stopped or not outcome.problems:
            return Ending()
        found = outcome.problems[0].found
        return Ending(found, outcome.ended or time.time(), bool(_CLOSED.search(found)))


class Heartbeat:
    """Beats for this machine and listens to the others, in two threads.

    Args:
        endpoint: HOST:PORT of the rendezvous.
        session: what keys of this attempt begin with.
        node: this machine.
        nodes: machines.
        give_up: called once, from a thread, when a machine is lost.
    """

    def __init__(self, endpoint: str, session: str, node: int, nodes: int, give_up: Callable[[Problem], None]) -> None:
        self.host, _, port = endpoint.rpartition(":")
        self.port = int(port)
        self.session, self.node, self.give_up = session, node, give_up
        self.others = [other for other in range(nodes) if other != node]
        self.lost: Problem | None = None
        self.ending: Ending | None = None
        self.endings: dict[int, Ending] = {}
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._started = time.monotonic()
        self._answered: float | None = None
        self._hung_up: float | None = None
        self._all_ended, self._closed = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._beat, self._watch)]

    def start(self) -> None:
        """Begin; the others are listened to from their first beat on."""
        for thread in self._threads:
            thread.start()

    def finish(self, outcome: Outcome) -> Outcome:
        """Tell the others how it ended here, hear how it ended there, and return what broke first."""
        self.ending = Ending.of(outcome)
        if self._answered is not None:
            self._all_ended.wait(ENDING_S)
            if self.node == 0:
                time.sleep(0.5)  # the others read here
        self._closed.set()
        if self.lost is not None:
            return Outcome(problems=(self.lost,), seconds=outcome.seconds, peak_memory_mib=outcome.peak_memory_mib)
        theirs = [(node, ending) for node, ending in self.endings.items() if ending.found]
        if outcome.stopped or not theirs or not outcome.problems:
            return outcome
        node, first = min(theirs, key=lambda item: (item[1].is_consequence, item[1].ended))
        if (first.is_consequence, first.ended) >= (self.ending.is_consequence, self.ending.ended):
            return outcome
        return replace(outcome, problems=(Problem(f"node {node}: {first.found}", remedy="details in its log"),))

    def _beat(self) -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # a class of torch's C++ side

        try:
            store = TCPStore(
                self.host,
                self.port,
                is_master=False,
                wait_for_workers=False,
                timeout=timedelta(seconds=CONNECT_S),
            )
            beats = 0
            while not self._closed.is_set():
                beats += 1
                self._exchange(store, beats)
                self._closed.wait(0.1 if self.ending is not None or len(self._heard) < len(self.others) else BEAT_S)
        except Exception:  # node 0 has closed its store, or was never there: then torch's own rendezvous says so
            self._hung_up = time.monotonic() if self._answered is not None else None
            self._all_ended.set()  # nothing more will be heard

    def _exchange(self, store: Any, beats: int) -> None:
        """Write this machine's beat and ending, read the others'."""
        store.set(f"{self.session}/beat/{self.node}", str(beats))
        if self.ending is not None:
            store.set(f"{self.session}/end/{self.node}", json.dumps(vars(self.ending)))
        for other in self.others:
            beat, end = f"{self.session}/beat/{other}", f"{self.session}/end/{other}"
            if store.check([beat]) and (value := store.get(beat)) != self._heard.get(other, (b"",))[0]:
                self._heard[other] = (value, time.monotonic())
            if other not in self.endings and store.check([end]):
                self.endings[other] = Ending(**json.loads(store.get(end)))
        self._answered = time.monotonic()
        if self.ending is not None and len(self.endings) == len(self.others):
            self._all_ended.set()

    def _watch(self) -> None:
        """Look once a second for who is silent, or has said that it broke."""
        while not self._closed.wait(1.0):
            problem = self._silent()
            if problem is not None and self.ending is None:
                self.lost = problem
                self.give_up(problem)
                return

    def _silent(self) -> Problem | None:
        now = time.monotonic()
        broken = {node: ending.found for node, ending in self.endings.items() if ending.found}
        if broken:
            node, found = min(broken.items())
            return Problem(f"node {node}: {found}", remedy="details in its log")
        gone = [node for node, (_, heard) in self._heard.items() if now - heard > LOST_S and node not in self.endings]
        if self._hung_up is not None and now - self._hung_up > ENDING_S:
            return Problem("node 0 ended without a word", remedy="see its log; run again on all machines to resume")
        if self.node and self._answered is not None and now - self._answered > LOST_S:
            gone = [0]
        if now - self._started > CONNECT_S:
            gone += [other for other in self.others if other not in self._heard]
        if not gone:
            return None
        return Problem(
            f"node {gone[0]} has not answered for {LOST_S:.0f} s",
            "machines that reach one another",
            f"see whether it is up and the network to {self.host}:{self.port} holds; run again on all to resume",
        )


def interface_towards(endpoint: str) -> str | None:
    """Return the network interface this machine reaches an endpoint through, for gloo; None when nothing tells."""
    import psutil

    host, _, port = endpoint.rpartition(":")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # sends nothing: asks the system for a route
            probe.connect(address)
            own = probe.getsockname()[0]
    except (OSError, ValueError):
        return None
    found = [name for name, addresses in psutil.net_if_addrs().items() for each in addresses if each.address == own]
    return found[0] if found else None
