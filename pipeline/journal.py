"""The record of a run: a folder of its own with one line for each thing that happened, written as it happens."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.disk import writing

ENDINGS = ("stage_failed", "run_ended")
"""Events that are told in the terminal too: a disk that refuses them does not hide why it was written to."""


class Journal:
    """Append-only record of a run: one JSON object per line, flushed as it happens."""

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
        with contextlib.suppress(OSError):  # what it could not write before
            self._file.close()


def new_run_dir(runs: Path, recipe: str) -> Path:
    """Make the folder of this run and no other: in containers, two processes of one second may have one number."""
    runs.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]", "-", recipe)  # `a/b` is one folder
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}-{os.getpid()}"
    for number in itertools.count(1):
        folder = runs / (stem if number == 1 else f"{stem}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    return folder
