"""The log of a stage's process. When the log cannot be written, the stage still runs and reports its outcome."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TextIO

from pipeline.launch.job import Outcome


def opened_log(path: Path) -> TextIO:
    """Open a stage's log for appending; when it cannot be written (a full disk), return the null device instead."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", buffering=1)
    return Path(os.devnull).open("a", buffering=1)


def write_trace(outcome: Outcome) -> None:
    """Write the outcome's traceback to the log; a log that cannot be written is ignored."""
    if outcome.trace:
        with contextlib.suppress(OSError):
            print(outcome.trace, file=sys.stderr, flush=True)


def forget_output() -> None:
    """Redirect output to the null device, so that the interpreter's last flush cannot fail on a full disk."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)
