"""Entry point of a stage's child process: it runs the stage itself, or the elastic agent of a stage with ranks."""

from __future__ import annotations

import contextlib
import os
import signal

import pipeline.stages
from pipeline.launch.job import STOP_SIGNALS, Channel, Job, die_with_parent, execute
from pipeline.launch.logs import forget_output, opened_log, write_trace


def child_main(job: Job, channel: Channel) -> None:
    """Run a job in this child process: redirect its output to the stage's log, run it, send the outcome.

    SIGTERM asks the stage to save and stop. SIGINT is ignored here: the runner handles it. The process is killed when
    its runner ends.
    """
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    with opened_log(job.log) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        # TensorBoard event files go beside the run's log: the stage's scratch folder is deleted with the stage.
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(job.log.parent / "tensorboard" / job.name))

        pipeline.stages.load_all()
        if job.is_distributed:
            from pipeline.launch.ranks import run_ranks  # loads torch; the runner, which imports this, has none

            outcome = run_ranks(job, channel, lambda: bool(asked))
        else:
            outcome = execute(job, channel.send, lambda: bool(asked))
        with contextlib.suppress(BrokenPipeError):
            channel.send(outcome)
        write_trace(outcome)
    forget_output()
