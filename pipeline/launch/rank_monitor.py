"""What the ranks of a stage leave in files, and the thread that follows them: events, outcomes, deaths, wishes to stop.

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
"""Seconds the other ranks have to end once one has broken."""

_EVENT, _OUTCOME = TypeAdapter(Event), TypeAdapter(Outcome)


def _text(adapter: TypeAdapter[Any], value: Any) -> bytes:
    return json.dumps(adapter.dump_python(value, mode="json")).encode()  # Python's JSON keeps NaN and infinity


RESERVED_BYTES = 1 << 16
"""What an outcome takes at most: a traceback and some figures."""


@dataclass(frozen=True)
class RankFiles:
    """The files the ranks of one machine share with their agent; ranks are counted on this machine."""

    path: Path

    @property
    def events(self) -> Path:
        """What rank 0 tells."""
        return self.path / "events.jsonl"

    @property
    def stop(self) -> Path:
        """Exists once the run was asked to stop."""
        return self.path / "stop"

    def pid(self, rank: int) -> Path:
        """Process of a rank."""
        return self.path / f"pid-{rank}"

    def tell(self, event: Event) -> None:
        """Append an event."""
        with self.events.open("ab") as file:
            file.write(_text(_EVENT, event) + b"\n")

    def reserve(self, rank: int) -> None:
        """Take the room for how a rank ends while there is some: a full disk may be how."""
        (self.path / f"outcome-{rank}.part").write_bytes(bytes(RESERVED_BYTES))

    def leave(self, rank: int, outcome: Outcome) -> None:
        """Write how a rank ended, whole or not at all, into the room that was reserved."""
        part = self.path / f"outcome-{rank}.part"
        with part.open("r+b" if part.is_file() else "wb") as file:
            file.write(_text(_OUTCOME, outcome))
            file.truncate()
        part.replace(self.path / f"outcome-{rank}.json")

    def read(self, rank: int) -> Outcome | None:
        """Return how a rank ended; None when it died without a word."""
        file = self.path / f"outcome-{rank}.json"
        return _OUTCOME.validate_python(json.loads(file.read_bytes())) if file.is_file() else None

    def pids(self) -> dict[int, int]:
        """Return the processes that have started, by rank."""
        found = {}
        for file in self.path.glob("pid-*"):
            with contextlib.suppress(ValueError):  # being written
                found[int(file.name.rpartition("-")[2])] = int(file.read_text(encoding="utf-8"))
        return found


@dataclass
class ExitCodes:
    """Which ranks of this machine ended, in which order, with which code (negative: a signal).

    Attributes:
        codes: by rank, in the order they were seen; None where the agent had waited for it first.
        clocks: when each was seen.
    """

    codes: dict[int, int | None] = field(default_factory=dict)
    clocks: dict[int, float] = field(default_factory=dict)
    _watched: dict[int, int] = field(default_factory=dict)

    def wait(self, timeout_s: float) -> None:
        """Wait until a rank ends, at most so long: what its death makes others fail of must not be seen before it."""
        poll = select.poll()
        for rank, watched in self._watched.items():
            if rank not in self.codes:
                poll.register(watched, select.POLLIN)
        poll.poll(timeout_s * 1000)

    def look(self, folder: RankFiles) -> None:
        """Note the ranks that have ended since, all of a look at one time; they stay for the agent to be waited for."""
        now = time.time()
        for rank, pid in folder.pids().items():
            if rank in self.codes:
                continue
            self._watch(rank, pid)
            try:
                status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:  # the agent has waited for it already
                outcome = folder.read(rank)
                self.codes[rank] = None if outcome is None else int(outcome.is_broken)
            else:
                if status is None:
                    continue
                exited = status.si_code == os.CLD_EXITED
                self.codes[rank] = status.si_status if exited else -status.si_status
            self.clocks[rank] = now

    def _watch(self, rank: int, pid: int) -> None:
        if rank not in self._watched and hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):  # it is gone, or the system is too old: looked at by the clock
                self._watched[rank] = os.pidfd_open(pid)

    def close(self) -> None:
        """Watch no longer."""
        for watched in self._watched.values():
            os.close(watched)
        self._watched.clear()

    @property
    def broken(self) -> bool:
        """Whether a rank has ended badly."""
        return any(code != 0 for code in self.codes.values())

    def first_by_signal(self) -> int | None:
        """Return the first rank that a signal killed: of one whose code was not seen, nothing else ends it silently."""
        return next((rank for rank, code in self.codes.items() if code is None or code < 0), None)

    def was_before(self, rank: int, others: Sequence[int]) -> bool:
        """Return whether a rank ended before the others, or within the same look: what a death makes fails later."""
        return all(self.clocks[rank] <= self.clocks.get(other, float("inf")) for other in others)


class RankMonitor(threading.Thread):
    """Passes on events, tells the ranks to stop, and kills those that outlive a broken one for too long."""

    def __init__(self, folder: RankFiles, send: Callable[[Event], None], asked: Callable[[], bool]) -> None:
        super().__init__(daemon=True, name="follower")
        self.folder, self.send, self.asked = folder, send, asked
        self.deaths = ExitCodes()
        self.broken_at: float | None = None
        self._offset = 0
        self._done = threading.Event()

    def run(self) -> None:
        """Look ten times a second, and when a rank ends, until told to finish."""
        while not self._done.is_set():
            self.deaths.wait(POLL_S)
            self.look()
        self.look()
        self.deaths.close()

    def finish(self) -> None:
        """Pass on what is left and end."""
        self._done.set()
        self.join()

    def look(self) -> None:
        """Look once."""
        self._pass_on()
        if self.asked() and not self.folder.stop.exists():
            self.folder.stop.touch()
        self.deaths.look(self.folder)
        if self.deaths.broken and self.broken_at is None:
            self.broken_at = time.monotonic()
        if self.broken_at is not None and time.monotonic() - self.broken_at > SHUTDOWN_S:
            for rank, pid in self.folder.pids().items():
                if rank not in self.deaths.codes:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _pass_on(self) -> None:
        if not self.folder.events.is_file():
            return
        with self.folder.events.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self.send(_EVENT.validate_python(json.loads(line)))
