"""Another machine of a run: comes to the stages that node 0 calls it to, one after the other, until node 0's run ends.

It reads the same recipe and shares the store. It plans, but decides nothing; it writes its logs beside node 0's and its
ranks' state into the stage's scratch folder, and commits nothing.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from pipeline.artifacts import Store
from pipeline.errors import Interrupted, PipelineError, Problem, StageFailed
from pipeline.launch.job import Outcome
from pipeline.launch.local import run_job, warm_up
from pipeline.launch.meeting import POLL_S, Call, Meeting, meeting_of, nodes_of
from pipeline.plan import Plan, PlannedStage
from pipeline.runner import RunReport, StageDone, StopRequest, View, failure_of, job_of
from pipeline.stage import Event

VISIBLE_S = 30.0
"""Seconds a network file system may take to show what another machine wrote."""


def take_part(plan: Plan, store: Store, view: View, node: int) -> RunReport:
    """Be node ``node`` (1 or more) of a run that another machine leads.

    Raises:
        PipelineError: no stage runs on so many machines, or this machine's recipe and data are not node 0's.
        StageFailed: a stage broke, here or elsewhere; or node 0 is gone.
        Interrupted: this machine, or node 0, was asked to stop.
    """
    started = time.perf_counter()
    shared = [stage for stage in plan.pending if nodes_of(stage) > node]
    if not shared:
        raise PipelineError(_no_part(plan, node))
    meeting = meeting_of(plan, store.root, shared[0])
    warm_up()
    with StopRequest().listening() as stop:
        partner = _Partner(plan, store, view, node, meeting, stop)
        meeting.find_host(partner.say, stop.is_asked)
        view.run_started(plan, meeting.run_dir)
        partner.follow()
    return RunReport(meeting.run_dir, tuple(partner.finished()), time.perf_counter() - started)


class _Partner:
    """Does what node 0 calls to."""

    def __init__(self, plan: Plan, store: Store, view: View, node: int, meeting: Meeting, stop: StopRequest) -> None:
        self.plan, self.store, self.view, self.node = plan, store, view, node
        self.meeting, self.stop = meeting, stop
        self.stages = {stage.spec.name: stage for stage in plan.stages}
        self.did: dict[str, float] = {}
        self.started = time.perf_counter()

    def say(self, text: str) -> None:
        """Tell the user a line about no stage in particular."""
        first = next(stage for stage in self.plan.pending if nodes_of(stage) > self.node)
        self.view.stage_started(first, resumed=False)
        self.view.stage_event(first, Event("note", text))

    def follow(self) -> None:
        """Come to every call until the end of node 0's run."""
        while True:
            call = self.meeting.next_call() or self._last_call()
            if call is None:
                time.sleep(POLL_S)
            elif call.what == "stage":
                self._come(call)
            elif call.what == "done":
                self._show_done(self.stages[call.stage])
            elif call.problems:
                raise StageFailed(Problem(f"node 0: {call.problems[0]}"))
            else:
                return

    def finished(self) -> list[StageDone]:
        """Return the stages whose artifacts are there."""
        found = [(stage, self.store.find(stage.spec.name, stage.fingerprint)) for stage in self.plan.stages]
        return [
            StageDone(stage, artifact, stage.spec.name not in self.did, self.did.get(stage.spec.name, 0.0))
            for stage, artifact in found
            if artifact is not None
        ]

    def _last_call(self) -> Call | None:
        """Return what node 0 said between the last look and its end; None while its run is on.

        Raises:
            StageFailed: it ended without a word.
            Interrupted: this machine is asked to stop.
        """
        if self.stop.asked:
            raise Interrupted(Problem("stopped as asked", remedy="node 0 waits for this machine at its next stage"))
        if self.meeting.has_host():
            return None
        call = self.meeting.next_call()  # node 0 writes its last words before it frees its lock
        if call is None:
            raise StageFailed(Problem("node 0 ended without a word", remedy="run again on all machines to resume"))
        return call

    def _come(self, call: Call) -> None:
        """Run this machine's part of a stage."""
        planned = self.stages.get(call.stage)
        if planned is None or planned.fingerprint != call.fingerprint:
            found = "reads another recipe or other data than node 0"
            self.meeting.answer(self.node, call, f"it {found}")
            raise PipelineError(
                Problem(f"this machine {found}", "the same files on all", "compare them", stage=call.stage)
            )
        if nodes_of(planned) <= self.node:
            return
        started = time.perf_counter()
        self.view.stage_started(planned, resumed=self.store.resumable(call.stage, call.fingerprint))
        folder = self.store.work_folder(call.stage, call.fingerprint)
        done = {each.stage.spec.name: each for each in self._needs(planned)}
        job = job_of(self.plan, planned, done, folder / "payload", folder / "work", self.meeting.run_dir)
        job = replace(job, node_rank=self.node, token=self.meeting.token, log=self._log(call.stage))
        job = replace(job, compute={**call.compute, "rendezvous": job.compute["rendezvous"]})
        self.meeting.answer(self.node, call)
        outcome = run_job(job, lambda event: self.view.stage_event(planned, event), self.stop.is_asked)
        if outcome.result is None:
            self._fail(planned, outcome)
        self.did[call.stage] = time.perf_counter() - started
        self.view.stage_event(planned, Event("phase", "node 0 writes the artifact"))

    def _fail(self, planned: PlannedStage, outcome: Outcome) -> None:
        self.view.stage_failed(planned, outcome.problems, outcome.exit_code)
        raise failure_of(planned.spec.name, outcome, stopped=outcome.stopped or self.stop.asked)

    def _log(self, stage: str) -> Path:
        return self.meeting.run_dir / f"{stage}.node{self.node}.log"

    def _needs(self, planned: PlannedStage) -> list[StageDone]:
        """Return what a stage reads; a network file system may show it a moment later."""
        refs = {item.ref for items in planned.inputs.values() for item in items}
        refs |= {item.input.ref for item in planned.data.values() if item.input is not None}
        needs = [self.stages[ref] for ref in refs if ref in self.stages]
        ends = time.monotonic() + VISIBLE_S
        while True:
            found = [each for each in self.finished() if each.stage in needs]
            if len(found) == len(needs):
                return found
            if time.monotonic() > ends:
                missing = {stage.spec.name for stage in needs} - {each.stage.spec.name for each in found}
                problem = Problem(f"node 0 made {', '.join(sorted(missing))}, but this machine's store has it not")
                raise PipelineError(replace(problem, remedy=f"share {self.store.root} between the machines"))
            time.sleep(POLL_S)

    def _show_done(self, planned: PlannedStage) -> None:
        artifact = self.store.find(planned.spec.name, planned.fingerprint)
        if artifact is not None and planned.spec.name in self.did:
            self.view.stage_done(planned, artifact, self.did[planned.spec.name])


def _no_part(plan: Plan, node: int) -> Problem:
    most = max((nodes_of(stage) for stage in plan.stages), default=1)
    if most > node:
        return Problem("nothing to run: every stage of several machines is in the store", remedy="see `trueup ls`")
    return Problem(
        f"--node-rank {node}, but no stage runs on more than {most} machine{'s' if most > 1 else ''}",
        f"at most {most - 1}" if most > 1 else "compute.nodes above 1",
        "set compute.nodes, or run without --node-rank",
    )
