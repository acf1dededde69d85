"""One stage as a job: what a child process needs to run it, and what it sends back.

Owns the crossing between the runner's process (no torch) and the process a stage runs in. Knows nothing of the store.
"""

from __future__ import annotations

import contextlib
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
from typing import Any, Protocol

from pipeline.artifacts.files import has_files, payload_bytes
from pipeline.disk import disk_problem, exit_code_of
from pipeline.errors import ExitCode, Interrupted, PipelineError, Problem
from pipeline.recipe import DataSource, load_function
from pipeline.records import load
from pipeline.stage import Data, Event, Rejected, ResolvedInput, Rows, StageContext, StageResult, kind_of

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Signals that ask a run to stop."""


@dataclass(frozen=True)
class DataJob:
    """A data source a job reads.

    Attributes:
        name: of the source in the recipe.
        source: where the rows are.
        artifact: payload directory when the source is an artifact.
        rejects: file that bad rows go to when the source skips them.
    """

    name: str
    source: DataSource
    artifact: Path | None
    rejects: Path


@dataclass(frozen=True)
class Job:
    """All a child process needs to run one stage; plain and picklable.

    Attributes:
        fingerprint: of the stage; what its processes call their meeting.
        rank: of the process it is given to, over all machines.
        node_rank: of this machine.
        token: of the attempt that several machines make together.
        warnings: what the plan knows that a reader of the result must know too.
    """

    name: str
    kind: str
    config: dict[str, Any]
    seed: int
    out: Path
    work: Path
    log: Path
    inputs: dict[str, list[ResolvedInput]]
    data: dict[str, DataJob]
    compute: dict[str, Any]
    trust_remote_code: bool = False
    code_dirs: tuple[Path, ...] = ()
    fingerprint: str = ""
    rank: int = 0
    node_rank: int = 0
    token: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def nodes(self) -> int:
        """Machines that run it together."""
        return int(self.compute.get("nodes", 1))

    @property
    def ranks(self) -> int:
        """Processes over all machines."""
        return int(self.compute.get("processes", 1)) * self.nodes

    @property
    def is_distributed(self) -> bool:
        """Whether processes have to find one another, if only to shard over one."""
        return self.ranks > 1 or bool(self.compute.get("zero")) or bool(self.compute.get("fsdp"))


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        result: what the stage reported; None when it broke.
        problems: what went wrong, ready to print.
        trace: traceback for the log and for ``--debug``.
        stopped: whether it ended because it was asked to.
        seconds: wall time of the job.
        peak_memory_mib: largest resident set of the process.
        rejected: bad rows skipped, by source.
        environment: device and thread facts known only inside the process.
        runtime_report: how the stage really ran (`StageContext.runtime_report`).
        ended: clock when it ended.
        exit_code: of the command, where there are problems.
    """

    result: StageResult | None = None
    problems: tuple[Problem, ...] = ()
    trace: str = ""
    stopped: bool = False
    exit_code: int = ExitCode.FAILED
    seconds: float = 0.0
    peak_memory_mib: float = 0.0
    rejected: dict[str, int] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    runtime_report: dict[str, Any] = field(default_factory=dict)
    ended: float = 0.0

    @property
    def bad_input(self) -> bool:
        """Whether what it was given was wrong."""
        return self.exit_code == ExitCode.BAD_INPUT

    @property
    def is_broken(self) -> bool:
        """Whether the job neither made its result nor stopped as asked."""
        return self.result is None and not self.stopped


class Channel(Protocol):
    """The sending end of a pipe."""

    def send(self, obj: Any, /) -> None:
        """Send one picklable object."""
        ...


def context_of(
    job: Job, send: Callable[[Event], None], stopping: Callable[[], bool]
) -> tuple[StageContext, dict[str, int]]:
    """Build the context of a job and the counter of skipped rows it fills."""
    rejected: dict[str, int] = {}
    config_class = kind_of(job.kind).config

    def load_rows(field_name: str) -> Rows:
        data = job.data[field_name]
        marker: Data = config_class.markers(Data)[field_name]
        kept = data.rejects if job.rank == 0 else job.out / "rejects" / data.rejects.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        rows = load(
            data.source,
            marker.shape,
            seed=job.seed,
            name=data.name,
            artifact=data.artifact,
            rejects=kept,
        )
        rejected[data.name] = rows.rejected
        if not rows.rejected:
            with contextlib.suppress(OSError):  # other bad rows of this stage may be in it
                kept.parent.rmdir()
        else:
            send(Event("note", text=f"{rows.rejected} bad rows of {data.name} skipped, kept in {data.rejects.name}"))
        return rows

    def set_aside(field_name: str, rows: Sequence[Rejected]) -> bool:
        data = job.data[field_name]
        if data.source.on_bad_row == "stop":
            return False
        others = rejected.get(data.name, 0)
        rejected[data.name] = others + len(rows)
        if job.rank == 0:
            _keep_rejected(rows, data.rejects, is_first=not others)
        text = f"{len(rows)} rows of {data.name} cannot be rendered and were skipped, kept in {data.rejects.name}"
        send(Event("note", text=text))
        return True

    context = StageContext(
        name=job.name,
        seed=job.seed,
        out=job.out,
        work=job.work,
        inputs=job.inputs,
        load_rows=load_rows,
        compute=job.compute,
        emit=send,
        stopping=stopping,
        trust_remote_code=job.trust_remote_code,
        functions=lambda spec: load_function(spec, list(job.code_dirs)),
        rank=job.rank,
        ranks=job.ranks,
        warnings=job.warnings,
        set_aside=set_aside,
    )
    return context, rejected


def _keep_rejected(rows: Sequence[Rejected], file: Path, *, is_first: bool) -> None:
    """Write rows that a stage cannot use behind the bad rows of their source."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w" if is_first else "a", encoding="utf-8") as out:
        out.writelines(json.dumps(row._asdict(), default=str) + "\n" for row in rows)


def execute(job: Job, send: Callable[[Event], None], stopping: Callable[[], bool]) -> Outcome:
    """Run a job in this process and report how it ended; never raises."""
    started = time.perf_counter()
    rejected: dict[str, int] = {}
    outcome: dict[str, Any] = {}
    try:
        context, rejected = context_of(job, send, stopping)
        outcome["runtime_report"] = context.runtime_report
        kind = kind_of(job.kind)
        outcome["result"] = kind.run(context, kind.config.model_validate(job.config))
    except Interrupted as error:
        outcome.update(stopped=True, problems=error.problems)
    except PipelineError as error:
        outcome.update(problems=error.problems, trace=traceback.format_exc(), exit_code=int(error.exit_code))
    except MemoryError:
        outcome.update(
            problems=(Problem("out of memory", remedy="lower train.batch_size, max_length or compute.micro_batch"),),
            trace=traceback.format_exc(),
        )
    except Exception as error:  # a stage may break in any way; the user gets one line, the log the rest
        ended = broken(job, error)
        outcome.update(problems=ended.problems, exit_code=ended.exit_code, trace=traceback.format_exc())
    return Outcome(
        seconds=time.perf_counter() - started,
        peak_memory_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        rejected=rejected,
        environment=_process_environment(),
        ended=time.time(),
        **outcome,
    )


def broken(job: Job, error: Exception) -> Outcome:
    """Return how a job ended with an error that nobody expected, a disk's among them."""
    problem = disk_problem(error, job.work, needed=_checkpoint_bytes(job.work))
    if problem is None:
        problem = Problem(f"{type(error).__name__}: {_first_line(error)}", remedy=f"details in {job.log}")
        return Outcome(problems=(problem,))
    kept = "; it goes on from the last whole checkpoint" if has_files(job.work) else ""
    problem = replace(problem, remedy=problem.remedy + kept)
    return Outcome(problems=(problem,), exit_code=int(exit_code_of(error, job.work)))


def _checkpoint_bytes(work: Path) -> int | None:
    """Return the size of the largest checkpoint so far: what the next one needs."""
    with contextlib.suppress(OSError):
        return max((payload_bytes(folder) for folder in work.rglob("checkpoint-*") if folder.is_dir()), default=None)
    return None


def die_with_parent() -> None:
    """Kill this process when the one that asked for it ends, however it ends: nobody is left to take its result.

    The parent of a stage in the sense of the system is the warm process, which lives on as long as this one does; so a
    thread waits for the runner, and Linux is asked to watch the warm process too.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_after, args=(parent,), daemon=True).start()
    with contextlib.suppress(OSError, AttributeError):
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _die_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _process_environment() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return {"device": device, "threads": torch.get_num_threads()}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"
