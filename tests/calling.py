"""Calls `trueup` in the process of a test: what it prints, writes and returns, without loading the libraries anew.

A command of its own imports torch, transformers and trl for its first stage, which takes longer than the stage. Called
here, its stages are forked from the warm parent that serves all runs of this process. Signals, environment variables
that a library reads as it loads, and what outlives a command are seen only with the real one.
"""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from typer.testing import CliRunner

from pipeline.cli.app import app

SURROUNDINGS = {"NO_COLOR": "1", "COLUMNS": "200", "TRUEUP_STORE": None, "TRUEUP_DEBUG": None}


class Call:
    """`trueup`, called in this process."""

    def __call__(self, *args: str | Path, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Call it in a folder and return what a command would have ended with."""
        line = [str(arg) for arg in args]
        with contextlib.chdir(cwd):
            ended = CliRunner().invoke(app, line, input=stdin, env=SURROUNDINGS)
        return subprocess.CompletedProcess(line, ended.exit_code, ended.stdout, ended.stderr)
