"""The rules that all training loops share: when a run saves, when it stops, and which loss ends it.

Three loops follow them: transformers' Trainer (`loop.py`), the pipeline's (`pipelined.py`), and PPO's
(`pipeline/rl/ppo/run_log.py`).
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import ExitCode, Interrupted, PipelineError, Problem
from pipeline.parallel.ranks import any_reduce
from pipeline.stage import StageContext


class Due(NamedTuple):
    """What a loop has to do between two steps.

    Attributes:
        save: write a checkpoint.
        stop: end the session after it; `save` is True then.
    """

    save: bool = False
    stop: bool = False


class Session:
    """One session of a training run: from its start, or from a checkpoint, until it ends or is asked to stop.

    Attributes:
        ctx: the stage's context.
        total: steps of the whole run.
        unit: what messages call a step.
        clock: seconds of all sessions.
    """

    def __init__(self, ctx: StageContext, total: int, *, resumed_at: int | None, unit: str = "step") -> None:
        """Begin a session, and note where it resumes.

        Args:
            ctx: the stage's context.
            total: steps of the whole run.
            resumed_at: steps done before; None if the run starts from the beginning.
            unit: what messages call a step.
        """
        self.ctx, self.total, self.unit = ctx, total, unit
        self.clock = SessionClock(ctx.work / "seconds.json", fresh=resumed_at is None)
        self.saved_at = time.perf_counter()
        if resumed_at is not None:
            ctx.note(f"resumes at {unit} {resumed_at} of {total}")

    def start(self) -> None:
        """Start the clock and the interval until the first checkpoint."""
        self.clock.start()
        self.saved_at = time.perf_counter()

    def after(self, done: int) -> Due:
        """Return what is due after ``done`` steps; every process calls it, and all get the same answer.

        After the last step nothing is due, because the artifact comes next.
        """
        if done >= self.total:
            return Due()
        if self.ctx.stopping():
            return Due(save=True, stop=True)
        waited = time.perf_counter() - self.saved_at
        return Due(save=any_reduce(waited > self.ctx.compute.checkpoint_every_s))  # saving is collective

    def saved(self) -> None:
        """Record that a checkpoint was written."""
        self.saved_at = time.perf_counter()
        if self.ctx.is_first:
            self.clock.save()

    def stopped(self, done: int) -> Interrupted:
        """Return the error that ends a session whose user asked to stop."""
        return Interrupted(Problem(f"stopped as asked at {self.unit} {done} of {self.total}", stage=self.ctx.name))

    def check_loss(self, loss: float, done: int) -> None:
        """Check the loss of a step.

        Raises:
            PipelineError: it is not finite.
        """
        if not math.isfinite(loss):
            remedy = "lower train.learning_rate or add train.warmup_steps; the last checkpoint is kept"
            problem = Problem(f"the loss is {loss} at {self.unit} {done}", "a finite number", remedy)
            raise PipelineError(problem, exit_code=ExitCode.FAILED)


class SessionClock:
    """Counts the seconds spent in the trainer over all sessions of a stage."""

    def __init__(self, file: Path, *, fresh: bool) -> None:
        self.file = file
        self.before = 0.0
        self.started = time.perf_counter()
        if not fresh and file.is_file():
            self.before = float(json.loads(file.read_text(encoding="utf-8"))["seconds"])

    def start(self) -> None:
        """Start the clock of this session."""
        self.started = time.perf_counter()

    def total(self) -> float:
        """Return the seconds of all sessions so far."""
        return self.before + time.perf_counter() - self.started

    def save(self) -> None:
        """Write the seconds so far; the first process calls it with each checkpoint."""
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps({"seconds": self.total()}), encoding="utf-8")
        part.replace(self.file)
