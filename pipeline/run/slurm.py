"""Stages as Slurm jobs: submitit writes and submits the batch script, catches the signals and requeues.

Owns the process that starts a stage inside a job, and the calls of `squeue`, `scancel` and `scontrol`. A job runs a
command of the CLI, so its lock, journal, checkpoints and commit are those of any run. Knows nothing of plans.

A job saves a checkpoint and is requeued when it reaches its time limit (USR2, which submitit requests from Slurm) and
when it is preempted (SIGTERM, while its state is still RUNNING). A cancelled job saves a checkpoint and ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import ExitCode, PipelineError, Problem
from pipeline.plain_data import JsonObject
from pipeline.recipe.schema import Compute

MOST_REQUEUES = 1000
"""How often a job that reaches its time limit is requeued."""
FIRST_PORT, PORTS = 20_000, 20_000
"""Range of rendezvous ports on a job's first node; the job's number selects the port."""
ASK_S = 30
"""Timeout of a Slurm command, in seconds."""
MPI = ("PMI", "SLURM_MPI")
"""Prefixes of `srun`'s MPI variables, removed from the environment: accelerate would take a node for a rank."""

ACTIVE = frozenset(
    [
        "PENDING",
        "RUNNING",
        "SUSPENDED",
        "COMPLETING",
        "CONFIGURING",
        "REQUEUED",
        "REQUEUE_FED",
        "REQUEUE_HOLD",
        "RESIZING",
        "SIGNALING",
        "SPECIAL_EXIT",
        "STAGE_OUT",
        "STOPPED",
    ]
)


@dataclass(frozen=True)
class QueueState:
    """State of a job in Slurm's queue.

    Attributes:
        state: e.g. ``PENDING``; ``GONE`` when Slurm no longer knows the job.
        reason: why the job is pending.
    """

    state: str
    reason: str = ""

    @property
    def is_active(self) -> bool:
        """Whether the job is running or will run."""
        return self.state in ACTIVE


def check_tools() -> None:
    """Check that jobs can be submitted.

    Raises:
        PipelineError: Slurm's commands or submitit are missing.
    """
    problems = tool_problems()
    if problems:
        raise PipelineError(*problems)


def tool_problems() -> list[Problem]:
    """Return the problems that prevent submission: missing Slurm commands, missing submitit."""
    problems = []
    missing = [name for name in ("sbatch", "squeue", "scancel", "srun") if shutil.which(name) is None]
    if missing:
        statement = f"compute.launcher is slurm, but this machine has no {', '.join(missing)}"
        problems.append(Problem(statement, remedy="run it on a login node of the cluster, or use launcher: local"))
    if find_spec("submitit") is None:
        statement = "compute.launcher is slurm, but submitit is missing"
        problems.append(Problem(statement, remedy="pip install 'trueup[slurm]'"))
    return problems


def submit(name: str, folder: Path, command: Sequence[str], compute: Compute, after: Iterable[str]) -> str:
    """Submit a command as a job and return its number.

    Args:
        name: name of the job in the queue.
        folder: folder for the batch script and the job's own log, visible to all nodes.
        command: command each node runs.
        compute: number of nodes and the resources requested from Slurm.
        after: jobs that must succeed before this one starts (``afterok``).

    Raises:
        PipelineError: Slurm refused the job.
    """
    import submitit  # optional extra `slurm`

    asked = compute.slurm
    folder.mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=MOST_REQUEUES)
    options: JsonObject = {"requeue": True, "kill-on-invalid-dep": "yes", **asked.options}
    fields = {
        "job_name": name,
        "nodes": compute.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": asked.cpus_per_task or compute.processes * (compute.threads or 1),
        "time": asked.minutes,
        "signal_delay_s": asked.grace_s,
        "mem": f"{int(asked.mem_gb * 1024)}M" if asked.mem_gb else None,
        "dependency": f"afterok:{':'.join(after)}" if (after := list(after)) else None,
        "setup": asked.setup or None,
        "stderr_to_stdout": True,
        "additional_parameters": options,
    }
    fields |= {key: getattr(asked, key) for key in ("partition", "account", "qos", "gpus_per_node", "constraint")}
    fields |= {key: getattr(asked, key) for key in ("nodelist", "exclude")}
    executor.update_parameters(**{key: value for key, value in fields.items() if value is not None})
    try:
        job = executor.submit(StageJob(tuple(command)))
    except (submitit.core.utils.FailedSubmissionError, submitit.core.utils.FailedJobError) as error:
        messages = (
            [line for line in str(error).splitlines() if "error:" in line] or str(error).splitlines() or ["no word"]
        )
        remedy = "see compute.slurm, and `sinfo` for what the cluster has"
        raise PipelineError(Problem(f"Slurm refused the job: {messages[-1].strip()}", remedy=remedy)) from None
    return str(job.job_id)


def states(jobs: Sequence[str]) -> dict[str, QueueState]:
    """Query Slurm for the states of jobs.

    Raises:
        PipelineError: Slurm's controller does not answer.
    """
    if not jobs:
        return {}
    # Query all jobs of this user: with --jobs, one number that Slurm has forgotten makes squeue fail for all.
    line = ["squeue", "--noheader", "--me", "--states=all", "--format=%A|%T|%r"]
    ended = _ask(line)
    if ended.returncode:
        raise PipelineError(
            Problem(f"Slurm does not answer: {_last_line(ended.stderr)}", remedy="the jobs are not touched; try again"),
            exit_code=ExitCode.FAILED,
        )
    rows = (row.split("|", 2) for row in ended.stdout.splitlines() if row.count("|") >= 2)
    known = {number: QueueState(state, reason) for number, state, reason in rows}
    return {job: known.get(job, QueueState("GONE")) for job in jobs}


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs; a running job may still save a checkpoint before Slurm kills it."""
    if jobs:
        _ask(["scancel", *jobs])


@dataclass(frozen=True)
class StageJob:
    """The callable that submitit runs on each node of a job: it runs a command and handles Slurm's signals.

    Attributes:
        command: the command; a job of several nodes appends ``--node-rank`` and ``--rendezvous``.
    """

    command: tuple[str, ...]

    def __call__(self) -> None:
        """Run the command to its end; when it fails or was stopped, exit with code 1."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(MPI)}
        child = subprocess.Popen([*self.command, *_place(os.environ)], env=environment, preexec_fn=_ignore_notice)
        _children.append(child.pid)
        terminated: list[int] = []

        def terminate(number: int, frame: object) -> None:
            terminated.append(number)
            _tell(child.pid)

        signal.signal(signal.SIGTERM, terminate)
        while child.poll() is None:
            time.sleep(0.2)
        if terminated and child.returncode and _is_preempted():
            print("preempted: its state is saved, it goes back into the queue", flush=True)
            _ask(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]])
        if child.returncode:
            sys.exit(1)  # Slurm takes the job as failed; submitit would print a traceback of an exception

    def checkpoint(self) -> Any:
        """Save the stage's state; submitit calls this shortly before the time limit and requeues the return value."""
        from submitit.helpers import DelayedSubmission  # optional extra `slurm`

        for pid in _children:
            _tell(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(StageJob(self.command))


_children: list[int] = []
"""Process ids of the command this job runs: global, so that `checkpoint`, called from a signal handler, has them."""


def _ignore_notice() -> None:
    """Ignore USR2 in the command: Slurm signals every process of a job step, and only submitit handles it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _tell(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def _place(environment: Mapping[str, str]) -> list[str]:
    """Return the node rank and rendezvous options of the command; empty for a job of one node."""
    if int(environment.get("SLURM_JOB_NUM_NODES", 1)) == 1:
        return []
    import submitit  # optional extra `slurm`

    first = submitit.JobEnvironment().hostnames[0]
    port = FIRST_PORT + int(environment["SLURM_JOB_ID"]) % PORTS
    return ["--node-rank", environment["SLURM_NODEID"], "--rendezvous", f"{first}:{port}"]


def _is_preempted() -> bool:
    """Return whether this process must requeue the job: Slurm has neither cancelled nor requeued it."""
    if int(os.environ.get("SLURM_PROCID", 0)):
        return False
    shown = _ask(["scontrol", "--oneliner", "show", "job", os.environ["SLURM_JOB_ID"]]).stdout
    return "JobState=RUNNING" in shown.split()


def _ask(line: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(line, capture_output=True, text=True, timeout=ASK_S, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(line, 1, "", f"no answer within {ASK_S} s")


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no word"])[-1]
