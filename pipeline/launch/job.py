"""One stage as a job: the input a child process needs to run it, and the outcome it sends back.

Owns the boundary between the runner's process (no torch) and the process a stage runs in. Knows nothing of the store.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import multiprocessing.process
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol

from pipeline.artifacts.files import has_files, payload_bytes
from pipeline.errors import ExitCode, Interrupted, PipelineError, Problem, agreeing, counted
from pipeline.machine.disk import disk_problem, exit_code_of
from pipeline.plain_data import JsonObject, KeywordArguments
from pipeline.recipe import Compute, DataSource, load_function
from pipeline.records import load
from pipeline.stage import Data, Event, Rejected, ResolvedInput, Rows, StageContext, StageResult, kind_of

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a run to stop."""


@dataclass(frozen=True)
class DataJob:
    """A data source a job reads.

    Attributes:
        name: name of the source in the recipe.
        source: path, hub id or artifact of the rows.
        artifact: payload directory when the source is an artifact.
        rejects: file that bad rows are written to when the source skips them.
    """

    name: str
    source: DataSource
    artifact: Path | None
    rejects: Path


@dataclass(frozen=True)
class Job:
    """Everything a child process needs to run one stage; plain and picklable.

    Attributes:
        fingerprint: fingerprint of the stage; part of the rendezvous id of its ranks.
        rank: global rank of the process that runs the job.
        node_rank: rank of this machine.
        token: id of node 0's run, when several machines run the stage.
        warnings: warnings of the plan that the stage's report repeats.
        responses: folder where sampled responses are kept for every stage; None keeps them for this stage only.
    """

    name: str
    kind: str
    config: JsonObject
    seed: int
    out: Path
    work: Path
    log: Path
    inputs: dict[str, list[ResolvedInput]]
    data: dict[str, DataJob]
    compute: Compute
    trust_remote_code: bool = False
    code_dirs: tuple[Path, ...] = ()
    fingerprint: str = ""
    rank: int = 0
    node_rank: int = 0
    token: str = ""
    warnings: tuple[str, ...] = ()
    responses: Path | None = None

    @property
    def nodes(self) -> int:
        """Number of machines that run the job."""
        return self.compute.nodes

    @property
    def ranks(self) -> int:
        """World size: number of processes over all machines."""
        return self.compute.processes * self.nodes

    @property
    def is_distributed(self) -> bool:
        """Whether the job needs a process group: it has several ranks, or shards with ZeRO or FSDP."""
        return self.ranks > 1 or bool(self.compute.zero) or self.compute.fsdp


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        result: result of the stage; None when it failed or was stopped.
        problems: the failures, ready to print.
        trace: traceback for the log and for ``--debug``.
        stopped: whether the job ended because it was asked to stop.
        seconds: wall time of the job.
        peak_memory_mib: largest resident set of the process.
        rejected: number of bad rows skipped, by source.
        outside: number of rows that the part of a source leaves to others, by source.
        environment: device and number of threads, known only inside the process.
        runtime_report: what the stage reported on how it ran (`StageContext.runtime_report`).
        ended: Unix time of the end.
        exit_code: exit code of the command when there are problems.
    """

    result: StageResult | None = None
    problems: tuple[Problem, ...] = ()
    trace: str = ""
    stopped: bool = False
    exit_code: int = ExitCode.FAILED
    seconds: float = 0.0
    peak_memory_mib: float = 0.0
    rejected: dict[str, int] = field(default_factory=dict)
    outside: dict[str, int] = field(default_factory=dict)
    environment: JsonObject = field(default_factory=dict)
    runtime_report: JsonObject = field(default_factory=dict)
    ended: float = 0.0

    @property
    def bad_input(self) -> bool:
        """Whether the job failed because its input was invalid."""
        return self.exit_code == ExitCode.BAD_INPUT

    @property
    def is_broken(self) -> bool:
        """Whether the job failed: it has no result and was not asked to stop."""
        return self.result is None and not self.stopped


class Channel(Protocol):
    """The sending end of a pipe."""

    def send(self, obj: object, /) -> None:
        """Send one picklable object."""
        ...


class RowsLeft(NamedTuple):
    """Rows that a job does not use, by source.

    Attributes:
        rejected: number of bad rows skipped.
        outside: number of rows that the part of a source leaves to others.
    """

    rejected: dict[str, int]
    outside: dict[str, int]


def context_of(job: Job, send: Callable[[Event], None], stopping: Callable[[], bool]) -> tuple[StageContext, RowsLeft]:
    """Build the context of a job, and the counts of rows left out by source, which the context fills."""
    left = RowsLeft({}, {})
    rejected = left.rejected
    config_class = kind_of(job.kind).config

    def load_rows(field_name: str) -> Rows:
        data = job.data[field_name]
        marker: Data = config_class.markers(Data)[field_name]
        rejects = data.rejects if job.rank == 0 else job.out / "rejects" / data.rejects.name
        rejects.parent.mkdir(parents=True, exist_ok=True)
        rows = load(
            data.source,
            marker.shape,
            seed=job.seed,
            name=data.name,
            artifact=data.artifact,
            rejects=rejects,
        )
        rejected[data.name], left.outside[data.name] = rows.rejected, rows.outside
        if not rows.rejected:
            with contextlib.suppress(OSError):  # the folder may hold the bad rows of another source
                rejects.parent.rmdir()
        else:
            text = f"{counted(rows.rejected, 'bad row')} of {data.name} skipped, kept in {data.rejects.name}"
            send(Event("note", text=text))
        return rows

    def set_aside(field_name: str, rows: Sequence[Rejected]) -> bool:
        data = job.data[field_name]
        if data.source.on_bad_row == "stop":
            return False
        others = rejected.get(data.name, 0)
        rejected[data.name] = others + len(rows)
        if job.rank == 0:
            _keep_rejected(rows, data.rejects, is_first=not others)
        fate = f"{agreeing(len(rows), 'was', 'were')} skipped, kept in {data.rejects.name}"
        text = f"{counted(len(rows), 'row')} of {data.name} cannot be rendered and {fate}"
        send(Event("note", text=text))
        return True

    return StageContext(
        name=job.name,
        seed=job.seed,
        out=job.out,
        work=job.work,
        inputs=job.inputs,
        load_rows=load_rows,
        compute=job.compute.settings,
        dims=job.compute.dims,
        emit=send,
        stopping=stopping,
        trust_remote_code=job.trust_remote_code,
        functions=lambda spec: load_function(spec, list(job.code_dirs)),
        rank=job.rank,
        warnings=job.warnings,
        responses=job.responses,
        set_aside=set_aside,
    ), left


def _keep_rejected(rows: Sequence[Rejected], file: Path, *, is_first: bool) -> None:
    """Append rows that a stage cannot use to the file of their source's bad rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w" if is_first else "a", encoding="utf-8") as out:
        out.writelines(json.dumps(row._asdict(), default=str) + "\n" for row in rows)


def execute(job: Job, send: Callable[[Event], None], stopping: Callable[[], bool]) -> Outcome:
    """Run a job in this process and return its outcome; never raises."""
    started = time.perf_counter()
    left = RowsLeft({}, {})
    outcome: KeywordArguments = {}
    try:
        context, left = context_of(job, send, stopping)
        outcome["runtime_report"] = context.runtime_report
        kind = kind_of(job.kind)
        outcome["result"] = kind.load_run()(context, kind.config.model_validate(job.config))
    except Interrupted as error:
        outcome.update(stopped=True, problems=error.problems)
    except PipelineError as error:
        outcome.update(problems=error.problems, trace=traceback.format_exc(), exit_code=int(error.exit_code))
    except MemoryError:
        outcome.update(
            problems=(Problem("out of memory", remedy="lower train.batch_size, max_length or compute.micro_batch"),),
            trace=traceback.format_exc(),
        )
    except Exception as error:  # a stage may raise anything: the user gets one line, the log the traceback
        ended = broken(job, error)
        outcome.update(problems=ended.problems, exit_code=ended.exit_code, trace=traceback.format_exc())
    return Outcome(
        seconds=time.perf_counter() - started,
        peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        rejected=left.rejected,
        outside=left.outside,
        environment=_process_environment(),
        ended=time.time(),
        **outcome,
    )


def broken(job: Job, error: Exception) -> Outcome:
    """Return the outcome of a job that raised an unexpected error; a full or failing disk gets its own problem."""
    problem = disk_problem(error, job.work, needed=_checkpoint_bytes(job.work))
    if problem is None:
        problem = Problem(f"{type(error).__name__}: {_first_line(error)}", remedy=f"details in {job.log}")
        return Outcome(problems=(problem,))
    resume_hint = "; it goes on from the last whole checkpoint" if has_files(job.work) else ""
    problem = replace(problem, remedy=problem.remedy + resume_hint)
    return Outcome(problems=(problem,), exit_code=int(exit_code_of(error, job.work)))


def _checkpoint_bytes(work: Path) -> int | None:
    """Return the bytes of the largest checkpoint so far, as the estimate for the next; None without one."""
    with contextlib.suppress(OSError):
        return max((payload_bytes(folder) for folder in work.rglob("checkpoint-*") if folder.is_dir()), default=None)
    return None


def die_with_parent() -> None:
    """Kill this process when the process that requested it ends, since nothing is left to receive its result.

    The operating system's parent of a stage's process is the forkserver, which lives as long as its children do. So a
    thread waits for the runner to end, and `PR_SET_PDEATHSIG` covers the end of the forkserver.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_after, args=(parent,), daemon=True).start()
    with contextlib.suppress(OSError, AttributeError):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _die_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _process_environment() -> JsonObject:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return {"device": device, "threads": torch.get_num_threads()}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"
