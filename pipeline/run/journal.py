"""The journal of a run: a file in the run's own folder, with one line per event, written when the event happens."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.machine.disk import writing

ENDINGS = ("stage_failed", "run_ended")
"""Events that the terminal also shows. A disk error while writing one is ignored, lest it hide the run's own error."""


class Journal:
    """Append-only log of a run: one JSON object per line, flushed after each event."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir
        self._file = (run_dir / "journal.jsonl").open("a", encoding="utf-8")

    def write(self, event: str, **fields: Any) -> None:
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
