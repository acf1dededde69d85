"""Heartbeats between the machines of a stage, through the TCPStore of torch's rendezvous.

Without them a cut network link leaves ranks waiting in a collective for half an hour: torch's elastic agents do not
monitor one another. So each agent writes its heartbeat into the TCPStore and reads those of the other machines. A
machine is lost when it sends no heartbeat for `LOST_S` seconds, and node 0 also when its store does not answer for as
long. The agents also write how the stage ended on their machine, so that all machines report the failure that came
first; a machine whose peer failed sees only a closed connection.
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

import psutil
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # a class of torch's C++ side

from pipeline.errors import Problem
from pipeline.launch.job import Outcome

BEAT_S = 1.0
LOST_S = 25.0
"""Seconds without a heartbeat after which a machine counts as lost."""
CONNECT_S = 180.0
"""Seconds in which the machines of a stage must connect; long, because one may still be importing its libraries."""
ENDING_S = 5.0
"""Seconds a machine whose ranks have ended waits for the endings of the other machines."""

_CLOSED = re.compile(r"[Cc]onnection (closed|reset|refused)|[Bb]roken pipe|[Tt]imed out waiting|unhandled system error")


@dataclass(frozen=True)
class Ending:
    """How a stage ended on one machine.

    Attributes:
        found: the failure; empty when nothing failed.
        ended: Unix time at which the first rank failed.
        is_consequence: whether the failure only says that a connection to another machine was lost.
    """

    found: str = ""
    ended: float = 0.0
    is_consequence: bool = False

    @staticmethod
    def of(outcome: Outcome) -> Ending:
        """Summarize the outcome of this machine's ranks."""
        if outcome.result is not None or outcome.stopped or not outcome.problems:
            return Ending()
        statement = outcome.problems[0].found
        return Ending(statement, outcome.ended or time.time(), bool(_CLOSED.search(statement)))


class Heartbeat:
    """Sends this machine's heartbeat and monitors those of the other machines, in two threads.

    Args:
        endpoint: HOST:PORT of the rendezvous.
        session: prefix of the TCPStore keys of this attempt.
        node: rank of this machine.
        nodes: number of machines.
        give_up: called once, from a thread, when a machine is lost or has failed.
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
        """Start both threads; another machine is monitored from its first heartbeat on."""
        for thread in self._threads:
            thread.start()

    def finish(self, outcome: Outcome) -> Outcome:
        """Exchange endings with the other machines and return the outcome of the failure that came first."""
        self.ending = Ending.of(outcome)
        if self._answered is not None:
            self._all_ended.wait(ENDING_S)
            if self.node == 0:
                time.sleep(0.5)  # node 0 serves the store: the other machines still read its ending
        self._closed.set()
        if self.lost is not None:
            return Outcome(problems=(self.lost,), seconds=outcome.seconds, peak_memory_mib=outcome.peak_memory_mib)
        failures = [(node, ending) for node, ending in self.endings.items() if ending.found]
        if outcome.stopped or not failures or not outcome.problems:
            return outcome
        node, first = min(failures, key=lambda item: (item[1].is_consequence, item[1].ended))
        if (first.is_consequence, first.ended) >= (self.ending.is_consequence, self.ending.ended):
            return outcome
        return replace(outcome, problems=(Problem(f"node {node}: {first.found}", remedy="details in its log"),))

    def _beat(self) -> None:
        try:
            # On node 0 this is the rendezvous' own store; it stays open until the others have read node 0's ending.
            store = TCPStore(
                self.host,
                self.port,
                is_master=self.node == 0,
                wait_for_workers=False,
                multi_tenant=True,
                timeout=timedelta(seconds=CONNECT_S),
            )
            beats = 0
            while not self._closed.is_set():
                beats += 1
                self._exchange(store, beats)
                self._closed.wait(0.1 if self.ending is not None or len(self._heard) < len(self.others) else BEAT_S)
        except Exception:  # node 0 closed its store; or it never served one, which torch's own rendezvous reports
            self._hung_up = time.monotonic() if self._answered is not None else None
            self._all_ended.set()  # nothing more will be heard

    def _exchange(self, store: Any, beats: int) -> None:
        """Write this machine's heartbeat and ending, and read those of the other machines."""
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
        """Check once a second for a machine that is lost or has failed."""
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
            node, failure = min(broken.items())
            return Problem(f"node {node}: {failure}", remedy="details in its log")
        gone = [node for node, (_, heard) in self._heard.items() if now - heard > LOST_S and node not in self.endings]
        if self._hung_up is not None and now - self._hung_up > ENDING_S:
            return Problem("node 0 ended without a word", remedy="see its log; run again on all machines to resume")
        if self.node and self._answered is not None and now - self._answered > LOST_S:
            gone = [0]
        silence = LOST_S
        if not gone and now - self._started > CONNECT_S:
            gone, silence = [other for other in self.others if other not in self._heard], CONNECT_S
        if not gone:
            return None
        return Problem(
            f"node {gone[0]} has not answered for {silence:.0f} s",
            "machines that reach one another",
            f"see whether it is up and the network to {self.host}:{self.port} holds; run again on all to resume",
        )


def interface_towards(endpoint: str) -> str | None:
    """Return the network interface that routes to an endpoint, for gloo; None when it cannot be determined."""
    host, _, port = endpoint.rpartition(":")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # sends nothing: looks up the route
            probe.connect(address)
            own = probe.getsockname()[0]
    except (OSError, ValueError):
        return None
    interfaces = [
        name for name, addresses in psutil.net_if_addrs().items() for each in addresses if each.address == own
    ]
    return interfaces[0] if interfaces else None
