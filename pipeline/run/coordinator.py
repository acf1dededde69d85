"""Coordinates the machines of a run through files in the shared store: node 0 sends commands, worker nodes answer.

    <store>/.meetings/<recipe>-<host>-<port>/
        lock          held by node 0 while its run is in progress
        calls.jsonl   a header that identifies node 0's run, then one command per line (`Command`)
        here-N.json   the last command that node N has answered

Node 0 plans, runs the stages of one machine and commits all artifacts. A worker node runs its ranks of each stage with
`compute.nodes` above 1. This module knows nothing of what the ranks do, nor of the rendezvous of their processes
(`ranks.py`).
"""

from __future__ import annotations

import contextlib
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, Unpack

from pipeline.artifacts.files import is_locked, locked
from pipeline.errors import ExitCode, Interrupted, PipelineError, Problem
from pipeline.launch.job import Job, Outcome
from pipeline.plain_data import JsonObject
from pipeline.plan import Plan, PlannedStage
from pipeline.stage import Event

POLL_S = 0.2
SETTLED_S = 1.0
"""Seconds a worker node must see the lock held before it trusts that `calls.jsonl` was written by the lock's holder."""


@dataclass(frozen=True)
class Command:
    """A command of node 0 to the worker nodes: one line of `calls.jsonl`.

    Attributes:
        what: ``stage`` (run your ranks of it), ``done`` (its artifact is in the store) or ``end`` (node 0's run ended).
        stage: name of the stage; empty for ``end``.
        fingerprint: fingerprint of the stage.
        number: number of the ``stage`` command, from 1.
        compute: the stage's `compute` section as resolved by node 0.
        problems: why the run ended; empty when it succeeded.
    """

    what: str
    stage: str = ""
    fingerprint: str = ""
    number: int = 0
    compute: JsonObject = field(default_factory=dict)
    problems: tuple[str, ...] = ()


class CommandLine(TypedDict, total=False):
    """A line of `calls.jsonl`: a `Command`, or the first line, which says whose commands follow.

    Attributes:
        token: first line: random id of node 0's run.
        run: first line: name of the run's folder.
        what: see `Command`, as the others.
    """

    token: str
    run: str
    what: str
    stage: str
    fingerprint: str
    number: int
    compute: JsonObject
    problems: Sequence[str]


class Coordinator:
    """The channel between node 0 and the worker nodes; each machine has one instance.

    Attributes:
        folder: the files of the channel, in the shared store.
        rendezvous: HOST:PORT of the rendezvous of the ranks.
        join_timeout_s: seconds a worker node waits for node 0.
        token: random id of node 0's run; empty until known.
    """

    def __init__(self, store: Path, recipe: str, rendezvous: str, join_timeout_s: float) -> None:
        self.folder = store / ".meetings" / re.sub(r"[^\w.-]+", "-", f"{recipe}-{rendezvous}")
        self.rendezvous, self.join_timeout_s = rendezvous, join_timeout_s
        self.token = ""
        self.run_dir = Path()
        self._calls = 0
        self._offset = 0

    @contextlib.contextmanager
    def hosting(self, run_dir: Path, stopping: Callable[[], bool]) -> Iterator[Coordinator]:
        """Act as node 0: hold the lock while the block runs, then send ``end`` with the problems of the run.

        Raises:
            Interrupted: ``stopping`` returned true while another run held the lock.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder / "lock", stopping=stopping))
            except InterruptedError:
                raise Interrupted(Problem(f"stopped while waiting for another run at {self.rendezvous}")) from None
            self.token, self.run_dir = uuid.uuid4().hex[:12], run_dir
            self._file.write_text(json.dumps({"token": self.token, "run": run_dir.name}) + "\n", encoding="utf-8")
            problems: tuple[str, ...] = ("it ended without a word",)
            try:
                yield self
                problems = ()
            except PipelineError as error:
                problems = tuple(str(problem) for problem in error.problems)
                raise
            finally:
                self._write(what="end", problems=problems)

    def start_stage(self, job: Job, show: Callable[[Event], None], stopping: Callable[[], bool]) -> Outcome:
        """Send ``stage`` to the worker nodes and wait until all have answered; else the outcome has the problems."""
        self._calls += 1
        self._write(
            what="stage",
            stage=job.name,
            fingerprint=job.fingerprint,
            number=self._calls,
            compute=job.compute.model_dump(),
        )
        timeout_s = job.compute.join_timeout_s
        deadline, announced = time.monotonic() + timeout_s, False
        while True:
            missing, refused = self._answers(job.nodes)
            if refused:
                return Outcome(problems=refused, exit_code=ExitCode.BAD_INPUT)
            if not missing:
                return Outcome()
            if stopping():
                return Outcome(problems=(Problem("stopped while waiting for the other machines"),), stopped=True)
            if time.monotonic() > deadline:
                return Outcome(problems=(_not_here(missing, job.nodes, timeout_s),))
            if not announced:
                text = f"waits for node {_and(missing)}: run the same command there with --node-rank {_or(missing)}"
                show(Event("note", text))
                announced = True
            time.sleep(POLL_S)

    def done(self, stage: str) -> None:
        """Tell the worker nodes that a stage's artifact is in the store."""
        self._write(what="done", stage=stage)

    def find_host(self, note: Callable[[str], None], stopping: Callable[[], bool]) -> None:
        """Act as a worker node: wait for node 0's run and read its token and run folder.

        Raises:
            PipelineError: node 0 did not start within ``join_timeout_s``.
            Interrupted: ``stopping`` returned true.
        """
        deadline, held_since, announced = time.monotonic() + self.join_timeout_s, None, False
        while True:
            if not self.has_host():
                held_since = None
            elif held_since is None:
                held_since = time.monotonic()
            elif time.monotonic() - held_since > SETTLED_S and (head := self._next()) is not None:
                self.token, self.run_dir = head["token"], self.folder.parents[1] / ".runs" / head["run"]
                return
            if stopping():
                raise Interrupted(Problem("stopped while waiting for node 0"))
            if time.monotonic() > deadline:
                raise PipelineError(_no_host(self.folder.parents[1], self.join_timeout_s), exit_code=ExitCode.FAILED)
            if not announced and held_since is None:
                note("waits for node 0: run the same command there without --node-rank")
                announced = True
            time.sleep(POLL_S)

    def has_host(self) -> bool:
        """Return whether node 0's run is in progress."""
        return is_locked(self.folder / "lock")

    def next_command(self) -> Command | None:
        """Return the next command of node 0; None when there is no new one."""
        line = self._next()
        if line is None:
            return None
        return Command(
            line["what"],
            line.get("stage", ""),
            line.get("fingerprint", ""),
            line.get("number", 0),
            line.get("compute", {}),
            tuple(line.get("problems", ())),
        )

    def answer(self, node: int, command: Command, problem: str = "") -> None:
        """Tell node 0 that this worker node runs the command, or, with ``problem``, why it cannot."""
        file = self.folder / f"here-{node}.json"
        part = file.with_suffix(".part")
        part.write_text(json.dumps({"token": self.token, "call": command.number, "problem": problem}), encoding="utf-8")
        part.replace(file)

    @property
    def _file(self) -> Path:
        return self.folder / "calls.jsonl"

    def _write(self, **line: Unpack[CommandLine]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _next(self) -> CommandLine | None:
        try:
            with self._file.open("rb") as file:
                file.seek(self._offset)
                line = file.readline()
        except FileNotFoundError:
            return None
        if not line.endswith(b"\n"):
            return None
        self._offset += len(line)
        command: CommandLine = json.loads(line)
        return command

    def _answers(self, nodes: int) -> tuple[list[int], tuple[Problem, ...]]:
        """Return the nodes that have not answered the last command, and the problems of those that refused it."""
        missing, refused = [], []
        for node in range(1, nodes):
            try:
                answer = json.loads((self.folder / f"here-{node}.json").read_bytes())
            except (OSError, ValueError):
                answer = {}
            if (answer.get("token"), answer.get("call")) != (self.token, self._calls):
                missing.append(node)
            elif answer["problem"]:
                refused.append(Problem(f"node {node} cannot take part: {answer['problem']}"))
        return missing, tuple(refused)


def nodes_of(planned: PlannedStage) -> int:
    """Return the number of machines that run a stage."""
    return planned.spec.effective_compute.nodes


def coordinator_of(plan: Plan, store: Path, planned: PlannedStage) -> Coordinator:
    """Return the coordinator of a stage that several machines run."""
    compute = planned.spec.compute
    return Coordinator(store, plan.recipe.name, str(compute.rendezvous), compute.join_timeout_s)


@contextlib.contextmanager
def hosting(plan: Plan, store: Path, run_dir: Path, stopping: Callable[[], bool]) -> Iterator[Coordinator | None]:
    """Act as node 0 if the plan has pending stages of several machines; yield None if it has none."""
    shared = [stage for stage in plan.pending if nodes_of(stage) > 1]
    if not shared:
        yield None
        return
    with coordinator_of(plan, store, shared[0]).hosting(run_dir, stopping) as coordinator:
        yield coordinator


def _not_here(missing: list[int], nodes: int, timeout_s: float) -> Problem:
    return Problem(
        f"node {_and(missing)} did not come within {_span(timeout_s)}",
        f"{nodes} machines that share the store",
        f"run the same command there with --node-rank {_or(missing)}; compute.join_timeout_s is how long it waits",
    )


def _no_host(store: Path, timeout_s: float) -> Problem:
    return Problem(
        f"node 0 did not start within {_span(timeout_s)}",
        f"a run of the same recipe in the same store ({store})",
        "run the same command there without --node-rank",
    )


def _and(nodes: list[int]) -> str:
    return " and ".join(map(str, nodes))


def _or(nodes: list[int]) -> str:
    return " or ".join(map(str, nodes))


def _span(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:g} s"
