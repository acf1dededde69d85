"""Executes a plan: takes cached stages from the store, runs or resumes the others, and writes a journal.

Owns the order of a run, its signals, its journal and the manifest of each stage. Knows nothing of how a stage trains,
and prints nothing: a `View` shows the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from pipeline.artifacts import Artifact, Store
from pipeline.artifacts.responses import responses_folder
from pipeline.errors import ExitCode, Interrupted, PipelineError, Problem, StageFailed
from pipeline.launch.job import DataJob, Job, Outcome
from pipeline.launch.local import run_job, temporary_folder, warm_up
from pipeline.machine.disk import CannotWrite, writing
from pipeline.plain_data import JsonObject
from pipeline.plan import FORCED, Plan, PlannedInput, PlannedStage
from pipeline.plan.overlap import overlap_warnings
from pipeline.run.coordinator import Coordinator, hosting
from pipeline.run.journal import Journal, new_run_dir
from pipeline.run.manifests import manifest_fields
from pipeline.stage import Event, ResolvedInput


class View(Protocol):
    """Shows a run to the user; every method is called in the runner's process."""

    def run_started(self, plan: Plan, run_dir: Path) -> None:
        """Show the plan before anything runs."""

    def stage_cached(self, stage: PlannedStage, artifact: Artifact) -> None:
        """Show that a stage is taken from the store."""

    def stage_started(self, stage: PlannedStage, *, resumed: bool) -> None:
        """Show that a stage runs now."""

    def stage_waiting(self, stage: PlannedStage) -> None:
        """Show that this run waits for another process, which runs the stage."""

    def stage_event(self, stage: PlannedStage, event: Event) -> None:
        """Show progress, a phase or a note."""

    def stage_stopping(self, stage: PlannedStage) -> None:
        """Show, once, that the run was asked to stop and the stage is saving its state."""

    def stage_done(self, stage: PlannedStage, artifact: Artifact, seconds: float) -> None:
        """Show that a stage was committed."""

    def stage_failed(self, stage: PlannedStage, problems: tuple[Problem, ...], exit_code: int) -> None:
        """Show that a stage failed or was stopped."""


@dataclass(frozen=True)
class StageDone:
    """One finished stage of a run."""

    stage: PlannedStage
    artifact: Artifact
    cached: bool
    seconds: float


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Attributes:
        run_dir: folder of the journal and of the stages' logs.
        stages: finished stages in order.
        seconds: wall time of the run.
    """

    run_dir: Path
    stages: tuple[StageDone, ...]
    seconds: float


@dataclass
class StopRequest:
    """A request to stop, set by SIGINT and SIGTERM; a second SIGINT raises KeyboardInterrupt.

    Attributes:
        asked: whether the run was asked to stop.
        told: whether the view has shown it.
        signals: the signals received, in order.
    """

    asked: bool = False
    told: bool = False
    signals: list[int] = field(default_factory=list)

    def is_asked(self) -> bool:
        """Return whether the run was asked to stop."""
        return self.asked

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle SIGINT and SIGTERM while the block runs, then restore the previous handlers."""

        def handle(number: int, frame: object) -> None:
            if self.asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.asked = True
            self.signals.append(number)

        old: dict[int, Any] = {}
        with contextlib.suppress(ValueError):  # not the main thread: the caller handles signals
            old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        except Interrupted as error:  # as in shells: 130 after Ctrl-C, 143 after SIGTERM
            error.exit_code = ExitCode(128 + self.signals[0]) if self.signals else error.exit_code
            raise
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def run(plan: Plan, store: Store, view: View, run_dir: Path | None = None) -> RunReport:
    """Execute the pending stages of ``plan``; journal and logs go to ``run_dir``, by default a new folder.

    Raises:
        StageFailed: a stage failed; its checkpoints are kept and the next run resumes from them.
        Interrupted: the run was asked to stop.
        PipelineError: a stage's input was invalid.
    """
    started = time.perf_counter()
    if plan.pending:
        temporary_folder()  # raises when it cannot hold the sockets of the processes
    with writing(store.root):  # before the libraries are loaded: an unwritable store fails at once
        run_dir = run_dir or new_run_dir(store.root / ".runs", plan.recipe.name)
        journal = Journal(run_dir)
    done: dict[str, StageDone] = {}
    try:
        pending = [stage.spec.name for stage in plan.pending]
        journal.write("run_started", recipe=str(plan.recipe.file), pid=os.getpid(), pending=pending)
        if plan.pending:
            warm_up()
        view.run_started(plan, run_dir)
        with StopRequest().listening() as stop, hosting(plan, store.root, run_dir, stop.is_asked) as coordinator:
            execution = _Execution(plan, store, view, journal, run_dir, stop, coordinator, done)
            for planned in plan.stages:
                with writing(store.root):
                    done[planned.spec.name] = _run_stage(execution, planned)
    finally:
        journal.write("run_ended", seconds=round(time.perf_counter() - started, 3), finished=list(done))
        journal.close()
    return RunReport(run_dir, tuple(done.values()), time.perf_counter() - started)


@dataclass(frozen=True)
class _Execution:
    """What the stages of one run share.

    Attributes:
        plan: the plan of the run.
        store: where finished stages are taken from and committed to.
        view: shows the run to the user.
        journal: the run's journal.
        run_dir: folder of the journal and of the stages' logs.
        stop: whether the run was asked to stop.
        coordinator: starts stages on other nodes; None if no stage runs on several.
        done: finished stages by name; grows with the run.
    """

    plan: Plan
    store: Store
    view: View
    journal: Journal
    run_dir: Path
    stop: StopRequest
    coordinator: Coordinator | None
    done: Mapping[str, StageDone]


def _run_stage(run: _Execution, planned: PlannedStage) -> StageDone:
    """Take a stage from the store, or run it and commit its artifact."""
    name = planned.spec.name
    if planned.artifact is not None and planned.status == "cached":
        return _take_cached(run, planned, planned.artifact)
    if run.stop.asked:
        raise _interrupted(name)
    started = time.perf_counter()
    with run.store.work(
        name, planned.fingerprint, waiting=lambda: run.view.stage_waiting(planned), stopping=run.stop.is_asked
    ) as area:
        cached = None if FORCED in planned.why else run.store.find(name, planned.fingerprint)
        if cached is not None:
            return _take_cached(run, planned, cached)
        resumed = run.store.resumable(name, planned.fingerprint)
        run.journal.write(
            "stage_started", stage=name, fingerprint=planned.fingerprint, resumed=resumed, why=planned.why
        )
        run.view.stage_started(planned, resumed=resumed)
        job = job_of(run.plan, planned, run.done, area.payload, area.scratch, run.run_dir)
        job = replace(job, responses=reusable_responses(run.store, planned))
        job = replace(job, warnings=overlap_warnings(run.plan, planned, run.store))
        outcome = _run_job(run, planned, job)
        if outcome.result is None:
            _tell_failure(run, planned, outcome)
            raise failure_of(name, outcome, stopped=outcome.stopped or run.stop.asked)
        fields = manifest_fields(run.plan, planned, job, outcome, outcome.result)
        try:
            with writing(area.folder):
                artifact = area.commit(replace=FORCED in planned.why, **fields)
        except PipelineError as error:
            raise _refused_commit(run, planned, error) from None
    if run.coordinator is not None and job.nodes > 1:
        run.coordinator.done(name)
    seconds = time.perf_counter() - started
    run.journal.write("stage_done", stage=name, artifact=str(artifact.path), seconds=round(seconds, 3))
    run.view.stage_done(planned, artifact, seconds)
    return StageDone(planned, artifact, cached=False, seconds=seconds)


def _take_cached(run: _Execution, planned: PlannedStage, artifact: Artifact) -> StageDone:
    """Take a stage from the store."""
    run.journal.write("stage_cached", stage=planned.spec.name, fingerprint=planned.fingerprint)
    run.view.stage_cached(planned, artifact)
    return StageDone(planned, artifact, cached=True, seconds=0.0)


def _run_job(run: _Execution, planned: PlannedStage, job: Job) -> Outcome:
    """Run the processes of a stage, on the other nodes too if it has several."""

    def show(event: Event) -> None:
        if event.kind != "progress":
            run.journal.write("stage_note", stage=planned.spec.name, kind=event.kind, text=event.text)
        run.view.stage_event(planned, event)

    outcome = Outcome()
    if run.coordinator is not None and job.nodes > 1:
        job = replace(job, token=run.coordinator.token)
        outcome = run.coordinator.start_stage(job, show, run.stop.is_asked)
    return outcome if outcome.problems else run_job(job, show, lambda: _stopping(run, planned))


def _refused_commit(run: _Execution, planned: PlannedStage, error: PipelineError) -> PipelineError:
    """Report that a stage's artifact could not be committed, and return the error the run ends with."""
    code = error.exit_code if isinstance(error, CannotWrite) else ExitCode.FAILED
    refused = Outcome(problems=error.problems, exit_code=int(code))
    _tell_failure(run, planned, refused)
    return failure_of(planned.spec.name, refused, stopped=False)


def _tell_failure(run: _Execution, planned: PlannedStage, outcome: Outcome) -> None:
    messages = [str(problem) for problem in outcome.problems]
    run.journal.write(
        "stage_failed",
        stage=planned.spec.name,
        problems=messages,
        stopped=outcome.stopped,
        exit_code=int(outcome.exit_code),
    )
    run.view.stage_failed(planned, outcome.problems, outcome.exit_code)


def _stopping(run: _Execution, planned: PlannedStage) -> bool:
    """Return whether the run was asked to stop; show it to the user the first time."""
    if run.stop.asked and not run.stop.told:
        run.stop.told = True
        run.view.stage_stopping(planned)
    return run.stop.asked


def job_of(
    plan: Plan, planned: PlannedStage, done: Mapping[str, StageDone], payload: Path, scratch: Path, run_dir: Path
) -> Job:
    """Build the job of a stage; ``done`` has the finished stages whose artifacts it reads."""
    spec = planned.spec
    inputs = {name: [_resolve(item, done) for item in items] for name, items in planned.inputs.items()}
    data = {
        name: DataJob(
            name=item.source_name,
            source=plan.recipe.data[item.source_name],
            artifact=_data_artifact(plan, item.source_name, done),
            rejects=payload / "rejects" / f"{item.source_name}.jsonl",
        )
        for name, item in planned.data.items()
    }
    return Job(
        name=spec.name,
        kind=spec.kind,
        config=spec.config.model_dump(),
        seed=spec.seed,
        out=payload,
        work=scratch,
        log=run_dir / f"{spec.name}.log",
        inputs=inputs,
        data=data,
        compute=spec.effective_compute,
        trust_remote_code=plan.recipe.trust_remote_code,
        code_dirs=tuple(plan.recipe.search_dirs),
        fingerprint=planned.fingerprint,
    )


def reusable_responses(store: Store, planned: PlannedStage) -> Path | None:
    """Return the folder of responses that a stage may reuse; None for a forced stage, which samples anew."""
    return None if FORCED in planned.why else responses_folder(store.root)


def _resolve(item: PlannedInput, done: Mapping[str, StageDone]) -> ResolvedInput:
    """Resolve a planned input to the artifact of a stage of this run, a stored artifact, a folder or a hub id."""
    artifact = done[item.ref].artifact if item.ref in done else None
    if artifact is not None:
        manifest = artifact.manifest.model_dump(mode="json")
        return ResolvedInput(
            ref=item.ref,
            name=item.name,
            kind=item.kind,
            fingerprint=item.fingerprint,
            path=str(artifact.path),
            manifest=manifest,
        )
    return ResolvedInput(
        ref=item.ref,
        name=item.name,
        kind=item.kind,
        fingerprint=item.fingerprint,
        path=str(item.artifact) if item.artifact is not None else item.ref,
        manifest=_manifest_of(item.artifact),
    )


def _manifest_of(path: Path | None) -> JsonObject:
    file = path / "manifest.json" if path is not None else None
    if file is None or not file.is_file():
        return {}
    manifest: JsonObject = json.loads(file.read_text(encoding="utf-8"))
    return manifest


def _data_artifact(plan: Plan, source_name: str, done: Mapping[str, StageDone]) -> Path | None:
    ref = plan.recipe.data[source_name].artifact
    if ref is None:
        return None
    if ref in done:
        return done[ref].artifact.path
    return plan.data_artifact(ref)


def failure_of(name: str, outcome: Outcome, *, stopped: bool) -> PipelineError:
    """Return the error a stage's run ends with."""
    if stopped:
        return _interrupted(name)
    problems = tuple(
        problem
        if problem.stage
        else Problem(problem.found, problem.expected, problem.remedy, problem.where, stage=name)
        for problem in outcome.problems
    )
    return StageFailed(*problems, exit_code=ExitCode(outcome.exit_code))


def _interrupted(name: str) -> Interrupted:
    return Interrupted(Problem("stopped as asked", remedy="run the same command again to resume", stage=name))
