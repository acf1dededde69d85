"""The promise of the runner: killed at any instant and run again, a chain ends in the same bytes as one left alone.

Real SIGKILLs of the real command, of its whole process group and of the runner alone, at seeded random instants over
the whole chain: while libraries load, inside every kind of stage, while artifacts are written.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.artifacts import Store

KILLS = 20
SHARE = 0.3
"""A session works for at most this share of the chain before it is killed: kills fall everywhere."""

pytestmark = [pytest.mark.xdist_group("kill"), pytest.mark.slow]


def _alive(session: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


class Attempt:
    """One start of the command, and what its journal says."""

    def __init__(self, process: subprocess.Popen[str], store: Path, journal: Callable[[Path], list[Any]]) -> None:
        self.process = process
        self.store = store
        self.journal = journal
        self.before = len(journal(store))

    def events(self) -> list[dict[str, Any]]:
        """Return its events; a kill may have cut the last line off."""
        return self.journal(self.store)[self.before :]

    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait_for_work(self) -> None:
        """Wait until a stage has said something: the libraries are loaded."""
        while not self.ended() and not any(event["event"] == "stage_note" for event in self.events()):
            time.sleep(0.02)

    def sleep(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < ends:
            time.sleep(0.005)

    def kill(self, whom: str) -> None:
        """Send the signal, then check that nothing of the session outlives it."""
        if whom == "group":
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.communicate()
        # The warm parent may be in the middle of its imports and looks up when they are done.
        ends = time.monotonic() + 60
        while _alive(self.process.pid) and time.monotonic() < ends:
            time.sleep(0.02)
        assert not _alive(self.process.pid), f"processes outlive a kill of the {whom}"

    def stage(self) -> str:
        """Return the stage that was running when it ended."""
        running = ""
        for event in self.events():
            if event["event"] == "stage_started":
                running = event["stage"]
            if event["event"] == "stage_done":
                running = "between stages"
        return running or "before any stage"


def _check_visible(store: Store, digests: dict[str, str]) -> dict[str, str]:
    """Check that all that can be seen in a store is whole and as it should be; return its digests."""
    for folder in store.root.glob("[!.]*/*"):
        assert (folder / "manifest.json").is_file(), f"half an artifact: {folder}"
    found = {}
    for artifact in store.artifacts():
        name = artifact.manifest.name
        assert store.verify(artifact) == []
        assert artifact.manifest.digest == digests[name], f"{name} differs from the uninterrupted run"
        assert artifact.manifest.version == 1
        found[name] = artifact.manifest.digest
    return found


def test_a_chain_killed_again_and_again_ends_in_the_same_bytes(
    chain: Any, tmp_path: Path, command: Any, journal: Callable[[Path], list[Any]]
) -> None:
    rng = random.Random(2023)
    work_s = sum(artifact.manifest.seconds for artifact in chain.store.artifacts())
    killed: Counter[str] = Counter()
    stores = [Store(tmp_path / "store0")]

    def attempt() -> Attempt:
        process = command.start("run", chain.recipe, "--store", stores[-1].root, cwd=tmp_path)
        return Attempt(process, stores[-1].root, journal)

    while killed.total() < KILLS:
        running = attempt()
        if killed.total() % 7 == 6:  # while the recipe is read or the libraries load
            running.sleep(rng.uniform(0, 4))
        else:
            running.wait_for_work()
            running.sleep(rng.uniform(0, SHARE * work_s))
        if running.ended():  # it was quicker: the chain is finished, and the next one begins
            out, err = running.process.communicate()
            assert running.process.returncode == 0, out + err
        else:
            running.kill("group" if killed.total() % 2 else "runner")
            killed[running.stage()] += 1
        if _check_visible(stores[-1], chain.digests) == chain.digests:
            stores.append(Store(tmp_path / f"store{len(stores)}"))
    last = attempt()
    out, err = last.process.communicate()
    assert last.process.returncode == 0, out + err
    for store in stores[:-1] if not stores[-1].root.exists() else stores:
        assert _check_visible(store, chain.digests) == chain.digests
        assert not list(store.root.glob(".work/*/lock"))
    # The kills did what they are for: they hit several stages, and work was resumed in the middle of some.
    assert len(set(killed) - {"before any stage", "between stages"}) >= 3, killed
    notes = [event["text"] for store in stores for event in journal(store.root) if event["event"] == "stage_note"]
    resumed = [text for text in notes if text.startswith("resumes at step")]
    assert len(resumed) >= 3, notes
