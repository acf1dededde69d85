"""Runs a test's file as the processes of a run, as the launcher would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def run_two(script: str, *arguments: str, count: int = 2, **environment: str) -> None:
    """Run ``script`` as two ranks, or ``count``, with ``arguments``, and assert that all end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    running = []
    for rank in range(count):
        spread = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
        around = {**os.environ, **{name: str(value) for name, value in spread.items()}, **environment}
        around |= {"MASTER_ADDR": "127.0.0.1", "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        line = [sys.executable, str(Path(script).resolve()), *arguments]
        running.append(subprocess.Popen(line, env=around, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    try:
        logs = [process.communicate(timeout=800)[0].decode() for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * count, "\n".join(log[-3000:] for log in logs)


def be_one(main: Callable[..., None]) -> None:
    """Be one of the two processes, and end as a stage's ranks do: at once, without taking the interpreter down.

    A thread of gloo may still hold Python objects then, and aborts the process when it finds no interpreter.
    """
    main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
