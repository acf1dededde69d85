"""Runs a plan as Slurm jobs: submits a job for each missing stage, after those it needs, and follows the jobs.

    <store>/.jobs/<stage>-<fingerprint12>.json    the job that makes an artifact, so that a later run finds the job
    <store>/.runs/<run>/<stage>/                  files of one job: journal, the stage's log, progress, batch script

The jobs do not need this process: they continue when it ends, by Ctrl-C or with its terminal, and the same command
follows them again. The journal and the store decide whether a stage is done, not Slurm's state of the job.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, Store
from pipeline.artifacts.files import locked, write_durably
from pipeline.artifacts.manifest import SHORT
from pipeline.errors import ExitCode, Interrupted, PipelineError, Problem, StageFailed
from pipeline.plan import FORCED, Plan, PlannedStage
from pipeline.run import slurm
from pipeline.run.journal import JournalLine, new_run_dir
from pipeline.run.runner import RunReport, StageDone, StopRequest, View
from pipeline.stage import Event

LOOK_S = 0.5
"""Seconds between two reads of a job's journal."""
ASK_EVERY_S = 5.0
"""Seconds between two queries of Slurm."""
SETTLE_S = 60.0
"""Seconds a job may stay COMPLETING, and seconds a network file system may take to show the job's artifact."""
PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class Request:
    """The arguments of the user's command, which a job's command repeats.

    Attributes:
        recipe: the recipe file.
        overrides: the values of `--set`.
        profile: the profile of the recipe.
    """

    recipe: Path
    overrides: tuple[str, ...] = ()
    profile: str | None = None

    def command(self, planned: PlannedStage, store: Store, folder: Path) -> list[str]:
        """Return the command with which a job runs a stage."""
        line = [sys.executable, "-m", "pipeline.cli", "stage-job", str(self.recipe.resolve()), planned.spec.name]
        line += ["--store", str(store.root), "--dir", str(folder), "--fingerprint", planned.fingerprint]
        line += [part for override in self.overrides for part in ("--set", override)]
        line += ["--profile", self.profile] if self.profile else []
        return [*line, "--again"] if FORCED in planned.why else line


@dataclass
class StageInQueue:
    """A stage and the Slurm job that runs it.

    Attributes:
        folder: folder the job writes to; see the module.
        offset, shown: position in the journal; step and total of the progress shown last.
        said: state and reason of the job at the last query.
        ending: whether Slurm says COMPLETING: the job may be saving its state.
        ended: monotonic time since which Slurm no longer lists the job as active; None while it does.
        failed: problems of the stage, from its journal, as are ``stopped`` and ``exit_code``.
        artifact: the stage's artifact, once the journal reports it.
    """

    planned: PlannedStage
    job: str
    folder: Path
    offset: int = 0
    shown: tuple[int, int] = (0, 0)
    said: str = ""
    ending: bool = False
    ended: float | None = None
    failed: list[Problem] = field(default_factory=list)
    stopped: bool = False
    exit_code: ExitCode = ExitCode.FAILED
    artifact: Artifact | None = None

    @property
    def name(self) -> str:
        """Name of the stage."""
        return self.planned.spec.name

    @property
    def has_begun(self) -> bool:
        """Whether the job has started: its journal exists."""
        return (self.folder / "journal.jsonl").exists()

    def news(self) -> Iterator[JournalLine]:
        """Yield the new lines of the job's journal."""
        try:
            with (self.folder / "journal.jsonl").open("rb") as file:
                file.seek(self.offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self.offset += len(line)
                    yield json.loads(line)
        except FileNotFoundError:  # the job has not started
            return

    def progress(self) -> Event | None:
        """Return the stage's progress if it has changed since the last call."""
        try:
            fields = json.loads((self.folder / PROGRESS_FILE).read_bytes())
        except (OSError, ValueError):
            return None
        at = (fields["step"], fields["total"])
        if at == self.shown:
            return None
        self.shown = at
        return Event("progress", step=at[0], total=at[1], metrics=fields["metrics"])


def run_on_cluster(plan: Plan, store: Store, view: View, request: Request) -> RunReport:
    """Submit jobs for the missing stages and follow them to their end.

    Raises:
        PipelineError: Slurm is missing, or refuses a job.
        StageFailed: a job failed; the jobs that need it are cancelled, the others continue.
        Interrupted: this command was asked to stop; the jobs continue.
    """
    slurm.check_tools()
    started = time.perf_counter()
    run_dir = new_run_dir(store.root / ".runs", plan.recipe.name)
    view.run_started(plan, run_dir)
    with StopRequest().listening() as stop:
        queue = _submit_missing(plan, store, request, run_dir)
        follower = _Follower(queue, store, view, stop)
        done = []
        for planned in plan.stages:
            if planned.spec.name in queue:
                artifact = follower.follow(queue[planned.spec.name])
                done.append(StageDone(planned, artifact, cached=False, seconds=artifact.manifest.seconds))
            elif (cached := planned.artifact or store.find(planned.spec.name, planned.fingerprint)) is not None:
                view.stage_cached(planned, cached)
                done.append(StageDone(planned, cached, cached=True, seconds=0.0))
    return RunReport(run_dir, tuple(done), time.perf_counter() - started)


def cancel_jobs(plan: Plan, store: Store) -> dict[str, str]:
    """Cancel the jobs of a plan's stages; return the numbers of those that were in the queue, by stage."""
    records = {stage.spec.name: record for stage in plan.stages if (record := _record(store, stage)) is not None}
    if not records and all(stage.spec.compute.launcher != "slurm" for stage in plan.stages):
        remedy = "Ctrl-C stops a local run; give the same --set and --profile as the run had"
        raise PipelineError(Problem(f"no stage of {plan.recipe.file} has a Slurm job", remedy=remedy))
    slurm.check_tools()
    states = slurm.states([record["job"] for record in records.values()])
    active = {name: record["job"] for name, record in records.items() if states[record["job"]].is_active}
    slurm.cancel(list(active.values()))
    return active


def check_unchanged(plan: Plan, fingerprint: str) -> None:
    """Check, inside a job, that the stage is the one that was submitted.

    Raises:
        PipelineError: the recipe or its data changed since the submission.
    """
    (planned,) = plan.stages
    if planned.fingerprint != fingerprint:
        statement = "the recipe or its data changed after the job was submitted"
        raise PipelineError(Problem(statement, remedy="run the recipe again", stage=planned.spec.name))


class ProgressRecorder:
    """A view used inside a job: it also writes the progress to a file, for the command that follows the job."""

    def __init__(self, view: View, folder: Path) -> None:
        self._view, self._file = view, folder / PROGRESS_FILE
        self._written_at = 0.0

    def __getattr__(self, name: str) -> Any:
        """Delegate every other method to the view."""
        return getattr(self._view, name)

    def stage_event(self, stage: PlannedStage, event: Event) -> None:
        """Show the event; write progress to the file, once a second and at the last step."""
        self._view.stage_event(stage, event)
        now = time.monotonic()
        if event.kind == "progress" and (now - self._written_at > 1 or event.step == event.total):
            self._written_at = now
            part = self._file.with_suffix(".part")
            fields = {"step": event.step, "total": event.total, "metrics": dict(event.metrics)}
            part.write_text(json.dumps(fields), encoding="utf-8")
            part.replace(self._file)


def _submit_missing(plan: Plan, store: Store, request: Request, run_dir: Path) -> dict[str, StageInQueue]:
    """Submit the pending stages that have no active job, each after those it needs; return all with their jobs."""
    queue: dict[str, StageInQueue] = {}
    submitted: list[str] = []
    with locked(store.root / ".jobs" / ".lock"):
        try:
            for planned in plan.pending:
                name = planned.spec.name
                record = _active(_record(store, planned))
                if record is None and FORCED not in planned.why and store.find(name, planned.fingerprint) is not None:
                    continue  # committed since the plan was made
                if record is None:
                    after = [queue[need].job for need in _needs(planned) if need in queue]
                    record = _submit(plan, planned, store, request, run_dir / name, after)
                    submitted.append(record["job"])
                queue[name] = StageInQueue(planned, record["job"], store.root / ".runs" / record["folder"])
        except PipelineError:
            slurm.cancel(submitted)  # a part of the chain is of no use
            raise
    return queue


def _submit(
    plan: Plan, planned: PlannedStage, store: Store, request: Request, folder: Path, after: Sequence[str]
) -> dict[str, str]:
    spec = planned.spec
    compute = spec.effective_compute
    try:
        job = slurm.submit(
            f"{plan.recipe.name}-{spec.name}", folder, request.command(planned, store, folder), compute, after
        )
    except PipelineError as error:
        raise PipelineError(
            *(Problem(p.found, p.expected, p.remedy, spec.where, spec.name) for p in error.problems)
        ) from None
    record = {"job": job, "folder": folder.relative_to(store.root / ".runs").as_posix()}
    write_durably(_record_file(store, planned), json.dumps(record).encode())
    return record


def _record_file(store: Store, planned: PlannedStage) -> Path:
    return store.root / ".jobs" / f"{planned.spec.name}-{planned.fingerprint[:SHORT]}.json"


def _record(store: Store, planned: PlannedStage) -> dict[str, str] | None:
    try:
        record: dict[str, str] = json.loads(_record_file(store, planned).read_bytes())
    except (OSError, ValueError):
        return None
    return record


def _active(record: dict[str, str] | None) -> dict[str, str] | None:
    """Return the record if its job is active; waits for a COMPLETING job to leave the queue."""
    deadline = time.monotonic() + SETTLE_S
    while record is not None:
        state = slurm.states([record["job"]])[record["job"]]
        if state.state != "COMPLETING" or time.monotonic() > deadline:
            return record if state.is_active else None
        time.sleep(LOOK_S)
    return None


def _needs(planned: PlannedStage) -> list[str]:
    needs = [item.ref for items in planned.inputs.values() for item in items]
    return [*needs, *(item.input.ref for item in planned.data.values() if item.input is not None)]


class _Follower:
    """Shows jobs one after the other, in the plan's order, while it monitors all of them for failures."""

    def __init__(self, queue: Mapping[str, StageInQueue], store: Store, view: View, stop: StopRequest) -> None:
        self.queue, self.store, self.view, self.stop = queue, store, view, stop
        self.asked = 0.0

    def follow(self, item: StageInQueue) -> Artifact:
        """Show a job from its present state to its end, and return its artifact."""
        self.view.stage_started(item.planned, resumed=item.planned.resumable)
        self._say(item, f"job {item.job} is in the queue")
        while item.artifact is None:
            for line in item.news():
                self._show(item, line)
            if (progress := item.progress()) is not None:
                self.view.stage_event(item.planned, progress)
            self._check_failures()
            if item.artifact is None:
                if self.stop.asked:
                    raise self._detached()
                if time.monotonic() - self.asked > ASK_EVERY_S:
                    self._ask(item)
                time.sleep(LOOK_S)
        self.view.stage_done(item.planned, item.artifact, item.artifact.manifest.seconds)
        return item.artifact

    def _show(self, item: StageInQueue, line: JournalLine) -> None:
        """Apply a line of the journal to the stage's state and show it."""
        self._take(item, line)
        if line["event"] == "stage_note":
            self.view.stage_event(item.planned, Event(line["kind"], text=line["text"]))
        elif line["event"] == "stage_started":
            self._say(item, f"{'resuming' if line['resumed'] else 'starting'} in job {item.job}")
        elif line["event"] == "stage_failed" and line["stopped"]:
            self._say(item, f"job {item.job} was stopped and has saved its state")

    def _take(self, item: StageInQueue, line: JournalLine) -> None:
        """Apply a line of the journal to the stage's state."""
        if line["event"] == "stage_started":
            item.failed, item.stopped, item.shown = [], False, (0, 0)
        elif line["event"] == "stage_failed":
            texts = [text.removeprefix(f"stage {item.name}: ") for text in line["problems"]]
            item.failed, item.stopped = [Problem(text, stage=item.name) for text in texts], line["stopped"]
            item.exit_code = ExitCode(line.get("exit_code", ExitCode.FAILED))
        elif line["event"] in ("stage_done", "stage_cached"):
            item.artifact = self._find(item)

    def _find(self, item: StageInQueue) -> Artifact:
        """Return the artifact of a job; waits up to `SETTLE_S` for a network file system to show it."""
        deadline = time.monotonic() + SETTLE_S
        while (artifact := self.store.find(item.name, item.planned.fingerprint)) is None:
            if time.monotonic() > deadline:
                problem = Problem(f"job {item.job} made an artifact, but this machine's store has it not")
                remedy = f"share {self.store.root} with the nodes"
                raise StageFailed(Problem(problem.found, remedy=remedy, stage=item.name))
            time.sleep(LOOK_S)
        return artifact

    def _ask(self, shown: StageInQueue) -> None:
        """Query Slurm for the states of all jobs; show what the ``shown`` one is waiting for."""
        open_items = [item for item in self.queue.values() if item.artifact is None]
        states = slurm.states([item.job for item in open_items])
        self.asked = time.monotonic()
        for item in open_items:
            state = states[item.job]
            item.ending = state.state == "COMPLETING"
            if state.is_active:
                item.ended = None
            elif item.ended is None:
                item.ended = time.monotonic()
            item.said = item.said if item is not shown else self._queued(item, state)

    def _queued(self, item: StageInQueue, state: slurm.QueueState) -> str:
        text = f"{state.state} {state.reason}"
        if text != item.said and state.state == "PENDING":
            waits = [need for need in _needs(item.planned) if need in self.queue and not self.queue[need].artifact]
            reason = f"waits for {', '.join(waits)}" if state.reason == "Dependency" and waits else state.reason
            self._say(item, f"queued as job {item.job}" + (f" ({reason})" if reason not in ("", "None") else ""))
        return text

    def _check_failures(self) -> None:
        """Raise when any job has ended without an artifact; a job that never started gets two more queries.

        When two jobs are cancelled together, the pending one leaves the queue before the running one it needs, which
        saves its state first. The delay lets the running one be reported.
        """
        for item in self.queue.values():
            if item.artifact is not None or item.ended is None:
                continue
            for line in item.news():
                self._take(item, line)
            grace = 2 * LOOK_S if item.failed else ASK_EVERY_S if item.has_begun else 2 * ASK_EVERY_S + LOOK_S
            if item.artifact is None and time.monotonic() - item.ended > grace:
                self._fail(item)

    def _fail(self, item: StageInQueue) -> None:
        """Cancel the jobs that need a failed one, and raise its problems."""
        needs = [self.queue[need] for need in _needs(item.planned) if need in self.queue]
        if any((need.ended or need.ending) and need.artifact is None for need in needs):
            return  # cancelled because of, or with, a stage it needs: that one is reported
        lost = self._dependents(item.name)
        slurm.cancel([each.job for each in lost])
        log = item.folder / f"{item.name}.log"
        if item.failed and not item.stopped:
            problems, code = item.failed, item.exit_code
        else:
            word = "was cancelled" if item.stopped or not item.has_begun else "died"
            problems = [Problem(f"job {item.job} {word}", remedy="run again to resume", stage=item.name)]
            code = ExitCode.FAILED
        others = [each.name for each in self.queue.values() if each.ended is None and each.artifact is None]
        others = [name for name in others if name not in {each.name for each in lost}]
        notes = [f"log: {log}"] if log.exists() else [f"log: {next(iter(item.folder.glob('*.out')), item.folder)}"]
        notes += [f"cancelled: {', '.join(each.name for each in lost)}"] if lost else []
        notes += [f"still in the queue: {', '.join(others)}"] if others else []
        self.view.stage_failed(item.planned, tuple(problems), code)
        first = replace(problems[0], remedy="; ".join(filter(None, [problems[0].remedy, *notes])))
        raise StageFailed(first, *problems[1:], exit_code=code)

    def _dependents(self, name: str) -> list[StageInQueue]:
        """Return the jobs that need a stage, directly or transitively."""
        lost: dict[str, StageInQueue] = {}
        for item in self.queue.values():  # in the plan's order: dependencies come first
            if any(need == name or need in lost for need in _needs(item.planned)):
                lost[item.name] = item
        return list(lost.values())

    def _detached(self) -> Interrupted:
        going = [item for item in self.queue.values() if item.artifact is None and item.ended is None]
        jobs = ", ".join(f"{item.name} ({item.job})" for item in going)
        remedy = "the same command follows them again, `trueup cancel` with the same recipe ends them"
        return Interrupted(Problem(f"no longer following; the jobs go on: {jobs}", remedy=remedy))

    def _say(self, item: StageInQueue, text: str) -> None:
        self.view.stage_event(item.planned, Event("phase", text=text))
