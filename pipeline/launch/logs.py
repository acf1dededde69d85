"""The log of a stage's process; where it cannot be written, how the stage ended is told all the same."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TextIO

from pipeline.launch.job import Outcome


def opened_log(path: Path) -> TextIO:
    """Open a stage's log; where it cannot be written (a full disk) what goes there is lost, and the stage goes on."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", buffering=1)
    return Path(os.devnull).open("a", buffering=1)


def write_trace(outcome: Outcome) -> None:
    """Write what went wrong into the log, if that can be written: the disk may be what went wrong."""
    if outcome.trace:
        with contextlib.suppress(OSError):
            print(outcome.trace, file=sys.stderr, flush=True)


def forget_output() -> None:
    """Keep the interpreter's last flush from failing where the log cannot be written."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
