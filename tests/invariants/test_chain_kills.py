"""The promise of the runner: killed at any instant and run again, a chain ends in the same bytes as one left alone.

Real SIGKILLs of the real command, of its whole process group and of the runner alone, over the whole chain: while
libraries load, inside every kind of stage, after a checkpoint, while artifacts are written. Each kill waits for what
the run has done, then for a seeded random moment more; what is asserted holds whichever moment that is.
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

import pytest
from waiting import living

from pipeline.artifacts import Store
from pipeline.training.checkpoint.completion import COMPLETE_FILE

LOADING = "loading"
MOMENTS = (
    (LOADING, "group"),
    ("tokenizer", "runner"),
    ("base", "group"),
    ("base", "runner"),
    ("sft", "runner"),
    (LOADING, "runner"),
    ("rm", "group"),
    ("dpo", "runner"),
    ("report", "group"),
    ("report", "runner"),
)
"""Where the command is killed, session after session, and whom the signal hits. A stage that trains has got on by a
checkpoint first; another has just begun."""
SHORTER = ((LOADING, "group"), ("base", "group"), ("sft", "runner"), ("rm", "group"), ("dpo", "runner"))
"""What the suite kills; `make test-matrix` kills at all moments."""
TRAINED = ("base", "sft", "rm", "dpo")

pytestmark = [pytest.mark.xdist_group("kill"), pytest.mark.slow]


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

    def wait_for(self, stage: str, rng: random.Random) -> None:
        """Wait until a stage has begun, and has saved a checkpoint if it trains, or is done; then a moment more."""
        older = self.checkpoints(stage)
        while not self.ended() and not self.is_there(stage, older):
            time.sleep(0.005)
        self.sleep(rng.uniform(0, 0.1))

    def is_there(self, stage: str, older: set[Path]) -> bool:
        told = {(event["event"], event.get("stage")) for event in self.events()}
        begun = bool(self.checkpoints(stage) - older) if stage in TRAINED else ("stage_started", stage) in told
        return begun or bool({("stage_done", stage), ("stage_cached", stage)} & told)

    def checkpoints(self, stage: str) -> set[Path]:
        return set(self.store.glob(f".work/{stage}-*/work/checkpoints/checkpoint-*/{COMPLETE_FILE}"))

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
        ends = time.monotonic() + 800
        while living(self.process.pid) and time.monotonic() < ends:
            time.sleep(0.02)
        assert not living(self.process.pid), f"processes outlive a kill of the {whom}"

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
    visible_digests = {}
    for artifact in store.artifacts():
        name = artifact.manifest.name
        assert store.verify(artifact) == []
        assert artifact.manifest.digest == digests[name], f"{name} differs from the uninterrupted run"
        assert artifact.manifest.version == 1
        visible_digests[name] = artifact.manifest.digest
    return visible_digests


@pytest.mark.parametrize(
    "moments", [pytest.param(SHORTER, id="some"), pytest.param(MOMENTS, id="all", marks=pytest.mark.whole)]
)
def test_a_chain_killed_again_and_again_ends_in_the_same_bytes(
    moments: tuple[tuple[str, str], ...], chain: Any, tmp_path: Path, command: Any, journal: Callable[[Path], list[Any]]
) -> None:
    rng = random.Random(2023)
    store, killed = Store(tmp_path / "store"), Counter[str]()
    often = ("--set", "compute.checkpoint_every_s=0.05")  # changes nothing but where a run can resume

    def attempt() -> Attempt:
        process = command.start("run", chain.recipe, "--store", store.root, *often, cwd=tmp_path)
        return Attempt(process, store.root, journal)

    for stage, whom in moments:
        running = attempt()
        if stage == LOADING:  # while the recipe is read or the libraries load
            running.sleep(rng.uniform(0, 4))
        else:
            running.wait_for(stage, rng)
        if running.ended():
            out, err = running.process.communicate()
            assert running.process.returncode == 0, out + err
        else:
            running.kill(whom)
            killed[running.stage()] += 1
        _check_visible(store, chain.digests)
    last = attempt()
    out, err = last.process.communicate()
    assert last.process.returncode == 0, out + err
    assert _check_visible(store, chain.digests) == chain.digests
    assert not list(store.root.glob(".work/*/lock"))
    # The kills did what they are for: they hit several stages, and work was resumed in the middle of some.
    assert len(set(killed) - {"before any stage", "between stages"}) >= 3, killed
    notes = [event["text"] for event in journal(store.root) if event["event"] == "stage_note"]
    assert len([text for text in notes if text.startswith("resumes at step")]) >= 3, (killed, notes)
