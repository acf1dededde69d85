"""The journal of a run: a file in the run's own folder, with one line per event, written when the event happens."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Required, TypedDict, Unpack

from pipeline.machine.disk import writing

ENDINGS = ("stage_failed", "run_ended")
"""Events that the terminal also shows. A disk error while writing one is ignored, lest it hide the run's own error."""


RunEvent = Literal[
    "run_started", "run_ended", "stage_cached", "stage_started", "stage_note", "stage_done", "stage_failed"
]


class JournalFields(TypedDict, total=False):
    """What a line of the journal says beside its event; each event has some of the fields.

    Attributes:
        recipe: `run_started`: the recipe file.
        pid: `run_started`: process id of the runner.
        pending: `run_started`: stages that have to run.
        stage: events of a stage: its name.
        fingerprint: `stage_cached` and `stage_started`: fingerprint of the stage.
        resumed: `stage_started`: whether there is a checkpoint to resume from.
        why: `stage_started`: why the stage has to run.
        kind: `stage_note`: kind of the `Event`.
        text: `stage_note`: text of the `Event`.
        artifact: `stage_done`: folder of the artifact.
        problems: `stage_failed`: the problems as texts.
        stopped: `stage_failed`: whether the stage was asked to stop.
        exit_code: `stage_failed`: exit code of the command.
        seconds: `stage_done` and `run_ended`: wall time.
        finished: `run_ended`: stages that are done.
    """

    recipe: str
    pid: int
    pending: list[str]
    stage: str
    fingerprint: str
    resumed: bool
    why: tuple[str, ...]
    kind: Literal["progress", "note", "phase"]
    text: str
    artifact: str
    problems: list[str]
    stopped: bool
    exit_code: int
    seconds: float
    finished: list[str]


class JournalLine(JournalFields, total=False):
    """A line of the journal.

    Attributes:
        time: when the event happened, in ISO format.
        event: what happened.
    """

    time: str
    event: Required[RunEvent]


class Journal:
    """Append-only log of a run: one JSON object per line, flushed after each event."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir
        self._file = (run_dir / "journal.jsonl").open("a", encoding="utf-8")

    def write(self, event: RunEvent, **fields: Unpack[JournalFields]) -> None:
        """Append one event with the time."""
        row = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        with contextlib.suppress(OSError) if event in ENDINGS else writing(self._folder):
            self._file.write(json.dumps(row, default=str) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # an earlier write has failed
            self._file.close()


def new_run_dir(runs: Path, recipe: str) -> Path:
    """Create a unique folder for a run: in containers, two runs may have the same second and the same process id."""
    runs.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]", "-", recipe)  # `a/b` is one folder
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}-{os.getpid()}"
    for number in itertools.count(1):
        folder = runs / (stem if number == 1 else f"{stem}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder
