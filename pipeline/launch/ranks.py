"""One stage in several ranks: torch's elastic agent starts them, monitors them, and stops all when one fails.

The agent runs in the stage's child process (`child.py`); every rank is a process of its own. The ranks of a machine
communicate with its agent through files in the stage's scratch folder:

    events.jsonl      rank 0's events for the runner, read by the agent
    outcome-N.json    outcome of the machine's rank N
    stop              exists once the run was asked to stop; the ranks agree on the step to stop at

Knows nothing of what a stage does, or of how it shards weights.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import pipeline.stages
from pipeline.errors import Problem
from pipeline.launch.heartbeat import CONNECT_S, Heartbeat, interface_towards
from pipeline.launch.job import STOP_SIGNALS, Channel, Job, Outcome, broken, die_with_parent, execute
from pipeline.launch.logs import opened_log, write_trace
from pipeline.launch.rank_monitor import SHUTDOWN_S, ExitCodes, RankFiles, RankMonitor
from pipeline.parallel.ranks import any_reduce
from pipeline.stage import Event


def run_ranks(job: Job, channel: Channel, asked: Callable[[], bool]) -> Outcome:
    """Run a job's ranks on this machine and return their joint outcome; never raises.

    Args:
        job: a job with more than one process, or with sharding.
        channel: sends events to the runner.
        asked: returns whether the run was asked to stop.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # the agent must not touch the device before the fork
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    started = time.perf_counter()
    files = RankFiles(job.work / "ranks" / str(job.node_rank))
    shutil.rmtree(files.path, ignore_errors=True)
    try:
        files.path.mkdir(parents=True)
    except OSError as error:
        return broken(job, error)
    monitor = RankMonitor(files, channel.send, asked)
    monitor.start()
    heartbeat = _heartbeat(job, files, channel) if job.nodes > 1 else None
    failure: Problem | None = None
    codes: dict[int, int] = {}
    try:
        elastic_launch(_launch_config(job, files), rank_main)(job)
    except ChildFailedError as error:
        failure = Problem("its processes broke")
        codes = {rank: one.exitcode for rank, one in error.failures.items()}
    except Exception as error:  # the agent itself failed: the other machines were not found, a port was taken
        failure = _not_started(job, error)
    finally:
        monitor.finish()
    for local, code in monitor.exit_codes.codes.items():
        if code is None:  # only the agent has the exit code
            monitor.exit_codes.codes[local] = codes.get(job.node_rank * job.compute.processes + local)
    outcome = _outcome(job, files, monitor.exit_codes, failure, time.perf_counter() - started)
    return heartbeat.finish(outcome) if heartbeat is not None else outcome


def _heartbeat(job: Job, files: RankFiles, channel: Channel) -> Heartbeat:
    """Start the heartbeat; when a machine is lost, kill this machine's ranks, and end this process if the agent hangs.

    `GLOO_SOCKET_IFNAME` is set to the interface that routes to the rendezvous: gloo's default is the interface that the
    host name resolves to.
    """
    endpoint = str(job.compute.rendezvous)
    interface = interface_towards(endpoint)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)

    def give_up(problem: Problem) -> None:
        for pid in files.pids().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(SHUTDOWN_S)  # the agent sees its ranks end and returns, unless it waits for the lost machine
        with contextlib.suppress(OSError):
            channel.send(Outcome(problems=(problem,)))
        os._exit(1)

    heartbeat = Heartbeat(endpoint, _session(job), job.node_rank, job.nodes, give_up)
    heartbeat.start()
    return heartbeat


def _session(job: Job) -> str:
    return f"{job.name}-{job.fingerprint[:12]}-{job.token}"


def _not_started(job: Job, error: Exception) -> Problem:
    if job.nodes > 1:
        return Problem(
            f"node {job.node_rank} and the others could not meet at {job.compute.rendezvous}: {_one_line(error)}",
            "an address and a free port of node 0 that all machines reach",
            "see compute.rendezvous and the firewall between them",
        )
    return Problem(f"its processes could not be started: {_one_line(error)}")


def rank_main(job: Job) -> None:
    """Run one rank: log to its own file, run the stage, write its outcome; after a failure exit with code 1."""
    die_with_parent()
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    files = RankFiles(job.work / "ranks" / str(job.node_rank))
    files.pid(local).write_text(str(os.getpid()), encoding="utf-8")
    files.reserve(local)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    log = job.log if rank == 0 else job.log.with_suffix(f".rank{rank}.log")
    with opened_log(log) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

        pipeline.stages.load_all()
        own = replace(job, rank=rank, out=job.out if rank == 0 else job.work / "ranks" / f"out-{rank}")
        if rank:
            shutil.rmtree(own.out, ignore_errors=True)  # files of an earlier attempt that was cut off
        own.out.mkdir(parents=True, exist_ok=True)
        outcome = execute(own, files.tell if rank == 0 else _tell_nobody, _stopping(files, asked))
        files.leave(local, outcome)
        write_trace(outcome)
        if outcome.is_broken:
            os._exit(1)  # at once: other ranks may wait in a collective, and a destructor here could too
    end_as_a_fork_does()


def end_as_a_fork_does() -> None:
    """Make this process exit with code 0 as soon as its work is done, without finalizing the interpreter.

    A forked child does so by itself. A spawned one (with CUDA) finalizes the interpreter first. A thread of torch or
    gloo that still holds a Python object then aborts the process, and a successful rank would be reported as a crash.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    atexit.register(os._exit, 0)  # called first: exit handlers run in reverse order


def _stopping(files: RankFiles, asked: list[int]) -> Callable[[], bool]:
    """Return the stage's stop predicate; it is a collective, so all ranks get the same answer to the same call."""
    return lambda: any_reduce(bool(asked) or files.stop.exists())


def _tell_nobody(event: Event) -> None:
    """Drop an event: only rank 0's events reach the runner."""


def _launch_config(job: Job, files: RankFiles) -> Any:
    """Return the agent's configuration; several machines use `compute.rendezvous`, one machine a port of its own."""
    nodes = job.nodes
    return LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=job.compute.processes,
        run_id=_session(job),
        rdzv_backend="c10d" if nodes == 1 else "static",  # static: rank 0 is on node 0
        rdzv_endpoint="localhost:0" if nodes == 1 else str(job.compute.rendezvous),
        rdzv_configs={"timeout": int(CONNECT_S), **({"rank": job.node_rank} if nodes > 1 else {})},
        max_restarts=0,
        monitor_interval=0.1,
        # A fork inherits the imported libraries. With CUDA they may have initialized the driver, which forbids a fork.
        start_method="fork" if torch.version.cuda is None else "spawn",
        local_addr="localhost" if nodes == 1 else None,
        signals_to_handle="SIGQUIT",  # a stop request reaches the ranks through a file
        logs_specs=DefaultLogsSpecs(log_dir=str(files.path)),
    )


def _outcome(job: Job, files: RankFiles, exit_codes: ExitCodes, failure: Problem | None, seconds: float) -> Outcome:
    """Combine the outcomes of this machine's ranks: the failure that came first, else the outcome of its rank 0."""
    outcomes = {rank: outcome for rank in range(job.compute.processes) if (outcome := files.read(rank))}
    broken = [rank for rank, outcome in outcomes.items() if outcome.is_broken]
    before = job.node_rank * job.compute.processes  # ranks on the machines before this one
    peak = max((outcome.peak_memory_mib for outcome in outcomes.values()), default=0.0)
    dead = exit_codes.first_by_signal()
    if dead is not None and exit_codes.was_before(dead, broken):
        problem = _killed(before + dead, exit_codes.codes[dead], job)
        return Outcome(problems=(problem,), seconds=seconds, peak_memory_mib=peak)
    if broken:
        first = min(broken, key=lambda rank: outcomes[rank].ended)
        problems = tuple(replace(p, found=f"rank {before + first}: {p.found}") for p in outcomes[first].problems)
        return replace(outcomes[first], problems=problems, seconds=seconds, peak_memory_mib=peak)
    if 0 in outcomes and failure is None:
        return replace(outcomes[0], seconds=seconds, peak_memory_mib=peak)
    return Outcome(problems=(failure or Problem("its processes ended without a word"),), seconds=seconds)


def _killed(rank: int, code: int | None, job: Job) -> Problem:
    hint = f"details in {job.log}" if code not in (None, -signal.SIGKILL) else "the system may have run out of memory"
    end = f"was killed by signal {-code}" if code is not None else "ended without a word"
    return Problem(f"rank {rank} {end}", remedy=f"{hint}; run again to resume")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
