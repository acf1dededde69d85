"""The files that ranks and their agent exchange (events, outcomes, stop request), and the thread that monitors ranks.

Owns the files. Knows nothing of how ranks are started.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipeline.launch.job import Outcome
from pipeline.stage import Event

POLL_S = 0.1
SHUTDOWN_S = 10.0
"""Seconds the other ranks have to end once one has failed."""

_EVENT, _OUTCOME = TypeAdapter(Event), TypeAdapter(Outcome)


def _text(adapter: TypeAdapter[Any], value: object) -> bytes:
    return json.dumps(adapter.dump_python(value, mode="json")).encode()  # Python's JSON keeps NaN and infinity


RESERVED_BYTES = 1 << 16
"""Disk space reserved for the outcome of a rank: a traceback and some figures."""


@dataclass(frozen=True)
class RankFiles:
    """The files that the ranks of one machine share with their agent; ``rank`` is the local rank."""

    path: Path

    @property
    def events(self) -> Path:
        """The file of rank 0's events, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def stop(self) -> Path:
        """The stop request: the file exists once the run was asked to stop."""
        return self.path / "stop"

    def pid(self, rank: int) -> Path:
        """The file that holds a rank's process id."""
        return self.path / f"pid-{rank}"

    def tell(self, event: Event) -> None:
        """Append an event to the events file."""
        with self.events.open("ab") as file:
            file.write(_text(_EVENT, event) + b"\n")

    def reserve(self, rank: int) -> None:
        """Reserve disk space for a rank's outcome, so that it can be written even when the disk is full."""
        (self.path / f"outcome-{rank}.part").write_bytes(bytes(RESERVED_BYTES))

    def leave(self, rank: int, outcome: Outcome) -> None:
        """Write a rank's outcome atomically, into the reserved space if there is any."""
        part = self.path / f"outcome-{rank}.part"
        with part.open("r+b" if part.is_file() else "wb") as file:
            file.write(_text(_OUTCOME, outcome))
            file.truncate()
        part.replace(self.path / f"outcome-{rank}.json")

    def read(self, rank: int) -> Outcome | None:
        """Return a rank's outcome; None when the rank has written none."""
        file = self.path / f"outcome-{rank}.json"
        return _OUTCOME.validate_python(json.loads(file.read_bytes())) if file.is_file() else None

    def pids(self) -> dict[int, int]:
        """Return the process ids of the ranks that have started, by rank."""
        pids = {}
        for file in self.path.glob("pid-*"):
            with contextlib.suppress(ValueError):  # being written
                pids[int(file.name.rpartition("-")[2])] = int(file.read_text(encoding="utf-8"))
        return pids


@dataclass
class ExitCodes:
    """Exit codes of this machine's ranks, in the order in which the ranks ended.

    Attributes:
        codes: exit code by local rank, in the order seen; negative for a signal; None when the rank left no outcome and
            the agent has reaped it.
        clocks: Unix time at which each exit was seen.
    """

    codes: dict[int, int | None] = field(default_factory=dict)
    clocks: dict[int, float] = field(default_factory=dict)
    _watched: dict[int, int] = field(default_factory=dict)

    def wait(self, timeout_s: float) -> None:
        """Wait until a rank ends, at most ``timeout_s``: its exit must be seen before the failures it causes."""
        poll = select.poll()
        for rank, watched in self._watched.items():
            if rank not in self.codes:
                poll.register(watched, select.POLLIN)
        poll.poll(timeout_s * 1000)

    def look(self, files: RankFiles) -> None:
        """Record the ranks that have ended since the last look, with one time for all; the agent still reaps them."""
        now = time.time()
        for rank, pid in files.pids().items():
            if rank in self.codes:
                continue
            self._watch(rank, pid)
            try:
                status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:  # the agent has reaped it already
                outcome = files.read(rank)
                self.codes[rank] = None if outcome is None else int(outcome.is_broken)
            else:
                if status is None:
                    continue
                exited = status.si_code == os.CLD_EXITED
                self.codes[rank] = status.si_status if exited else -status.si_status
            self.clocks[rank] = now

    def _watch(self, rank: int, pid: int) -> None:
        if rank not in self._watched and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # the process is gone, or the kernel is too old: it is polled
                self._watched[rank] = os.pidfd_open(pid)

    def close(self) -> None:
        """Close the file descriptors of the watched processes."""
        for watched in self._watched.values():
            os.close(watched)
        self._watched.clear()

    @property
    def broken(self) -> bool:
        """Whether a rank has ended with an exit code other than 0."""
        return any(code != 0 for code in self.codes.values())

    def first_by_signal(self) -> int | None:
        """Return the first rank that a signal killed; a rank without a code counts, as it left no outcome either."""
        return next((rank for rank, code in self.codes.items() if code is None or code < 0), None)

    def was_before(self, rank: int, others: Sequence[int]) -> bool:
        """Return whether a rank ended before the others or in the same look; the failures it causes are later."""
        return all(self.clocks[rank] <= self.clocks.get(other, float("inf")) for other in others)


class RankMonitor(threading.Thread):
    """Forwards rank 0's events, asks the ranks to stop, and kills those that outlive a failed rank by `SHUTDOWN_S`."""

    def __init__(self, files: RankFiles, send: Callable[[Event], None], asked: Callable[[], bool]) -> None:
        super().__init__(daemon=True, name="follower")
        self.files, self.send, self.asked = files, send, asked
        self.exit_codes = ExitCodes()
        self.broken_at: float | None = None
        self._offset = 0
        self._done = threading.Event()

    def run(self) -> None:
        """Look ten times a second, and whenever a rank ends, until `finish` is called."""
        while not self._done.is_set():
            self.exit_codes.wait(POLL_S)
            self.look()
        self.look()
        self.exit_codes.close()

    def finish(self) -> None:
        """Forward the remaining events and end the thread."""
        self._done.set()
        self.join()

    def look(self) -> None:
        """Forward new events, pass a stop request on, record exits, and kill ranks that overran `SHUTDOWN_S`."""
        self._pass_on()
        if self.asked() and not self.files.stop.exists():
            self.files.stop.touch()
        self.exit_codes.look(self.files)
        if self.exit_codes.broken and self.broken_at is None:
            self.broken_at = time.monotonic()
        if self.broken_at is not None and time.monotonic() - self.broken_at > SHUTDOWN_S:
            for rank, pid in self.files.pids().items():
                if rank not in self.exit_codes.codes:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _pass_on(self) -> None:
        if not self.files.events.is_file():
            return
        with self.files.events.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self.send(_EVENT.validate_python(json.loads(line)))
