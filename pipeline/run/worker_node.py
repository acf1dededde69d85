"""A worker node runs its ranks of each stage that the coordinator on node 0 starts, until node 0's run ends.

It reads the same recipe as node 0 and shares the store. It plans, but follows node 0's commands. It writes its logs
beside node 0's and its ranks' state into the stage's scratch folder, and commits no artifact.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from pipeline.artifacts import Store
from pipeline.errors import Interrupted, PipelineError, Problem, StageFailed
from pipeline.launch.job import Outcome
from pipeline.launch.local import run_job, warm_up
from pipeline.plan import Plan, PlannedStage
from pipeline.recipe import Compute
from pipeline.run.coordinator import POLL_S, Command, Coordinator, coordinator_of, nodes_of
from pipeline.run.runner import RunReport, StageDone, StopRequest, View, failure_of, job_of, reusable_responses
from pipeline.stage import Event

VISIBLE_S = 30.0
"""Seconds a network file system may take to show a file that another machine wrote."""


def run_worker_node(plan: Plan, store: Store, view: View, node: int) -> RunReport:
    """Run this machine as node ``node`` (1 or more) of a run that node 0 coordinates.

    Raises:
        PipelineError: no stage runs on so many machines, or this machine's recipe or data differ from node 0's.
        StageFailed: a stage failed, on this machine or another; or node 0 is gone.
        Interrupted: this machine, or node 0, was asked to stop.
    """
    started = time.perf_counter()
    shared = [stage for stage in plan.pending if nodes_of(stage) > node]
    if not shared:
        raise PipelineError(_no_part(plan, node))
    coordinator = coordinator_of(plan, store.root, shared[0])
    warm_up()
    with StopRequest().listening() as stop:
        worker = _WorkerNode(plan, store, view, node, coordinator, stop)
        coordinator.find_host(worker.say, stop.is_asked)
        view.run_started(plan, coordinator.run_dir)
        worker.follow()
    return RunReport(coordinator.run_dir, tuple(worker.finished()), time.perf_counter() - started)


class _WorkerNode:
    """Executes the commands of node 0."""

    def __init__(
        self, plan: Plan, store: Store, view: View, node: int, coordinator: Coordinator, stop: StopRequest
    ) -> None:
        self.plan, self.store, self.view, self.node = plan, store, view, node
        self.coordinator, self.stop = coordinator, stop
        self.stages = {stage.spec.name: stage for stage in plan.stages}
        self.seconds: dict[str, float] = {}
        self.started = time.perf_counter()

    def say(self, text: str) -> None:
        """Show the user a line that concerns no stage: the view shows it at this node's first stage."""
        first = next(stage for stage in self.plan.pending if nodes_of(stage) > self.node)
        self.view.stage_started(first, resumed=False)
        self.view.stage_event(first, Event("note", text))

    def follow(self) -> None:
        """Execute the commands of node 0 until its run ends."""
        while True:
            command = self.coordinator.next_command() or self._last_command()
            if command is None:
                time.sleep(POLL_S)
            elif command.what == "stage":
                self._run_stage(command)
            elif command.what == "done":
                self._show_done(self.stages[command.stage])
            elif command.problems:
                raise StageFailed(Problem(f"node 0: {command.problems[0]}"))
            else:
                return

    def finished(self) -> list[StageDone]:
        """Return the stages whose artifacts are in the store."""
        artifacts = [(stage, self.store.find(stage.spec.name, stage.fingerprint)) for stage in self.plan.stages]
        return [
            StageDone(stage, artifact, stage.spec.name not in self.seconds, self.seconds.get(stage.spec.name, 0.0))
            for stage, artifact in artifacts
            if artifact is not None
        ]

    def _last_command(self) -> Command | None:
        """Return the command that node 0 wrote between the last look and its end; None while its run is on.

        Raises:
            StageFailed: node 0 ended without a last command.
            Interrupted: this machine was asked to stop.
        """
        if self.stop.asked:
            raise Interrupted(Problem("stopped as asked", remedy="node 0 waits for this machine at its next stage"))
        if self.coordinator.has_host():
            return None
        command = self.coordinator.next_command()  # node 0 writes its last command before it releases the lock
        if command is None:
            raise StageFailed(Problem("node 0 ended without a word", remedy="run again on all machines to resume"))
        return command

    def _run_stage(self, command: Command) -> None:
        """Run this machine's ranks of a stage."""
        planned = self.stages.get(command.stage)
        if planned is None or planned.fingerprint != command.fingerprint:
            statement = "reads another recipe or other data than node 0"
            self.coordinator.answer(self.node, command, f"it {statement}")
            raise PipelineError(
                Problem(f"this machine {statement}", "the same files on all", "compare them", stage=command.stage)
            )
        if nodes_of(planned) <= self.node:
            return
        started = time.perf_counter()
        self.view.stage_started(planned, resumed=self.store.resumable(command.stage, command.fingerprint))
        folder = self.store.work_folder(command.stage, command.fingerprint)
        done = {each.stage.spec.name: each for each in self._needs(planned)}
        job = job_of(self.plan, planned, done, folder / "payload", folder / "work", self.coordinator.run_dir)
        job = replace(job, node_rank=self.node, token=self.coordinator.token, log=self._log(command.stage))
        job = replace(job, responses=reusable_responses(self.store, planned))
        job = replace(job, compute=Compute(**{**command.compute, "rendezvous": job.compute.rendezvous}))
        self.coordinator.answer(self.node, command)
        outcome = run_job(job, lambda event: self.view.stage_event(planned, event), self.stop.is_asked)
        if outcome.result is None:
            self._fail(planned, outcome)
        self.seconds[command.stage] = time.perf_counter() - started
        self.view.stage_event(planned, Event("phase", "node 0 writes the artifact"))

    def _fail(self, planned: PlannedStage, outcome: Outcome) -> None:
        self.view.stage_failed(planned, outcome.problems, outcome.exit_code)
        raise failure_of(planned.spec.name, outcome, stopped=outcome.stopped or self.stop.asked)

    def _log(self, stage: str) -> Path:
        return self.coordinator.run_dir / f"{stage}.node{self.node}.log"

    def _needs(self, planned: PlannedStage) -> list[StageDone]:
        """Return the stages whose artifacts a stage reads; waits up to `VISIBLE_S` for a network file system."""
        refs = {item.ref for items in planned.inputs.values() for item in items}
        refs |= {item.input.ref for item in planned.data.values() if item.input is not None}
        needs = [self.stages[ref] for ref in refs if ref in self.stages]
        deadline = time.monotonic() + VISIBLE_S
        while True:
            finished = [each for each in self.finished() if each.stage in needs]
            if len(finished) == len(needs):
                return finished
            if time.monotonic() > deadline:
                missing = {stage.spec.name for stage in needs} - {each.stage.spec.name for each in finished}
                problem = Problem(f"node 0 made {', '.join(sorted(missing))}, but this machine's store has it not")
                raise PipelineError(replace(problem, remedy=f"share {self.store.root} between the machines"))
            time.sleep(POLL_S)

    def _show_done(self, planned: PlannedStage) -> None:
        artifact = self.store.find(planned.spec.name, planned.fingerprint)
        if artifact is not None and planned.spec.name in self.seconds:
            self.view.stage_done(planned, artifact, self.seconds[planned.spec.name])


def _no_part(plan: Plan, node: int) -> Problem:
    most = max((nodes_of(stage) for stage in plan.stages), default=1)
    if most > node:
        return Problem("nothing to run: every stage of several machines is in the store", remedy="see `trueup ls`")
    return Problem(
        f"--node-rank {node}, but no stage runs on more than {most} machine{'s' if most > 1 else ''}",
        f"at most {most - 1}" if most > 1 else "compute.nodes above 1",
        "set compute.nodes, or run without --node-rank",
    )
