"""Runs a stage in a child process forked from a forkserver that has the libraries imported.

Importing torch, transformers and trl costs seconds per process. The forkserver imports them once
(`pipeline.launch.warm`), and each stage's child is forked from it. So a run pays for the imports once, while each stage
still has its own memory and its own peak memory, and can be killed alone.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from pipeline.errors import PipelineError, Problem
from pipeline.launch.child import child_main
from pipeline.launch.job import STOP_SIGNALS, Job, Outcome
from pipeline.stage import Event

GRACE_S = 60.0
"""Seconds a stage has to save a checkpoint after it was asked to stop."""
SPIN_COUNT = "2000"
"""Spins of a waiting OpenMP thread before it sleeps (`GOMP_SPINCOUNT`). libgomp's default spins for milliseconds, which
makes a machine with other load ten times slower. Sleeping at once halves the speed of an idle machine (docs/log.md)."""

LONGEST_TEMPORARY = 75
"""Most bytes in the path of the temporary folder: a socket's path has at most 107, and multiprocessing appends 32."""

_context = multiprocessing.get_context("forkserver")


def warm_up() -> None:
    """Start the forkserver; returns at once, while the forkserver imports the libraries.

    The forkserver starts with SIGINT and SIGTERM blocked: the runner handles a signal to the whole process group
    (Ctrl-C, `scancel`, a stopping container), and the stage in progress must survive it to save its state. A stage's
    child unblocks the signals once its handlers are installed.

    Raises:
        PipelineError: no temporary folder can hold the sockets of the processes.
    """
    temporary_folder()
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    _context.set_forkserver_preload(["pipeline.launch.warm"])
    multiprocessing.resource_tracker.ensure_running()  # else the forkserver starts it, which unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def temporary_folder() -> str:
    """Return the folder for temporary files, which holds the sockets of a run's processes.

    Raises:
        PipelineError: no temporary folder can be written, or its path is too long for a socket.
    """
    remedy = "name another one with TMPDIR; in a container, --tmpfs /tmp"
    try:
        folder = tempfile.gettempdir()
    except OSError as error:
        raise PipelineError(Problem(f"no folder for temporary files: {error.strerror}", remedy=remedy)) from None
    length = len(os.fsencode(folder))
    if length > LONGEST_TEMPORARY:
        statement = f"the folder for temporary files is {folder}, {length} bytes long"
        raise PipelineError(Problem(statement, f"at most {LONGEST_TEMPORARY}: sockets are made in it", remedy))
    return folder


def run_job(job: Job, on_event: Callable[[Event], None], stopping: Callable[[], bool], poll_s: float = 0.1) -> Outcome:
    """Run ``job`` in a child process and return its outcome.

    Args:
        job: the stage.
        on_event: called in this process for every event of the stage.
        stopping: called at each poll; once true the child is asked to save and stop, and killed after `GRACE_S`.
        poll_s: seconds between two polls.
    """
    warm_up()
    receiver, sender = _context.Pipe(duplex=False)
    child = _context.Process(target=child_main, args=(job, sender), name=f"trueup {job.name}", daemon=False)
    started = time.perf_counter()
    child.start()
    sender.close()
    try:
        outcome = _listen(child, receiver, on_event, stopping, poll_s)
    finally:
        if child.is_alive():
            child.join(timeout=5)
        if child.is_alive():
            child.kill()
        child.join()
        receiver.close()
    if outcome is not None:
        return outcome
    return Outcome(problems=(_died(child.exitcode, job),), seconds=time.perf_counter() - started)


def _listen(
    child: multiprocessing.process.BaseProcess,
    receiver: Connection,
    on_event: Callable[[Event], None],
    stopping: Callable[[], bool],
    poll_s: float,
) -> Outcome | None:
    """Forward the child's events until its outcome arrives; return None when it died without one."""
    asked_at: float | None = None
    while True:
        if receiver.poll(poll_s):
            try:
                message = receiver.recv()
            except EOFError:
                return None
            if isinstance(message, Outcome):
                return message
            on_event(message)
        if asked_at is None and stopping():
            asked_at = time.perf_counter()
            if child.pid is not None and child.is_alive():
                child.terminate()
        if asked_at is not None and time.perf_counter() - asked_at > GRACE_S:
            child.kill()
            return None


def _died(exitcode: int | None, job: Job) -> Problem:
    if exitcode is not None and exitcode < 0:
        number = -exitcode
        hint = "the system may have run out of memory" if number == 9 else f"details in {job.log}"
        return Problem(f"its process was killed by signal {number}", remedy=f"{hint}; run again to resume")
    return Problem(f"its process ended with status {exitcode}", remedy=f"details in {job.log}")
