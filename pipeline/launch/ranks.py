"""One stage in several processes: torch's elastic agent starts them, watches them, and stops all when one breaks.

The agent runs in the stage's child process (`job.py`); every rank is a process of its own. Ranks talk to the agent
through files in the stage's scratch folder, so that it does not matter on which machine rank 0 is:

    events.jsonl      what rank 0 tells the runner, followed by the agent
    outcome-N.json    how rank N ended
    stop              there once the run was asked to stop; the ranks agree on the step to stop at

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

from pipeline.errors import Problem
from pipeline.launch.heartbeat import CONNECT_S, Heartbeat, interface_towards
from pipeline.launch.job import STOP_SIGNALS, Channel, Job, Outcome, broken, die_with_parent, execute
from pipeline.launch.logs import opened_log, write_trace
from pipeline.launch.rank_monitor import SHUTDOWN_S, ExitCodes, RankFiles, RankMonitor
from pipeline.parallel.ranks import any_rank
from pipeline.stage import Event


def run_ranks(job: Job, channel: Channel, asked: Callable[[], bool]) -> Outcome:
    """Run a job's ranks on this machine and return how they ended; never raises.

    Args:
        job: with more than one process, or with sharding.
        channel: to the runner.
        asked: whether the run was asked to stop.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # the agent must not touch the device before the fork
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    started = time.perf_counter()
    folder = RankFiles(job.work / "ranks" / str(job.node_rank))
    shutil.rmtree(folder.path, ignore_errors=True)
    try:
        folder.path.mkdir(parents=True)
    except OSError as error:
        return broken(job, error)
    follower = RankMonitor(folder, channel.send, asked)
    follower.start()
    heartbeat = _heartbeat(job, folder, channel) if job.nodes > 1 else None
    failure: Problem | None = None
    codes: dict[int, int] = {}
    try:
        elastic_launch(_launch_config(job, folder), rank_main)(job)
    except ChildFailedError as error:
        failure = Problem("its processes broke")
        codes = {rank: one.exitcode for rank, one in error.failures.items()}
    except Exception as error:  # the agent itself broke: the other machines were not found, a port was taken
        failure = _not_started(job, error)
    finally:
        follower.finish()
    for local, code in follower.deaths.codes.items():
        if code is None:  # the agent alone has seen it
            follower.deaths.codes[local] = codes.get(job.node_rank * int(job.compute["processes"]) + local)
    outcome = _outcome(job, folder, follower.deaths, failure, time.perf_counter() - started)
    return heartbeat.finish(outcome) if heartbeat is not None else outcome


def _heartbeat(job: Job, folder: RankFiles, channel: Channel) -> Heartbeat:
    """Start listening to the other machines; when one is lost, end this machine's ranks, and this process if need be.

    gloo, too, is told the interface the machines meet on: by itself it takes the one that the host's name stands for.
    """
    endpoint = str(job.compute["rendezvous"])
    interface = interface_towards(endpoint)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)

    def give_up(problem: Problem) -> None:
        for pid in folder.pids().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(SHUTDOWN_S)  # the agent sees its ranks end and comes back, unless it waits for the lost machine
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
            f"node {job.node_rank} and the others could not meet at {job.compute['rendezvous']}: {_one_line(error)}",
            "an address and a free port of node 0 that all machines reach",
            "see compute.rendezvous and the firewall between them",
        )
    return Problem(f"its processes could not be started: {_one_line(error)}")


def rank_main(job: Job) -> None:
    """Be one rank: log to a file of its own, run the stage, leave the outcome; a failure ends the process with 1."""
    die_with_parent()
    rank, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    folder = RankFiles(job.work / "ranks" / str(job.node_rank))
    folder.pid(local).write_text(str(os.getpid()), encoding="utf-8")
    folder.reserve(local)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    log = job.log if rank == 0 else job.log.with_suffix(f".rank{rank}.log")
    with opened_log(log) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        import pipeline.stages

        pipeline.stages.load_all()
        own = replace(job, rank=rank, out=job.out if rank == 0 else job.work / "ranks" / f"out-{rank}")
        if rank:
            shutil.rmtree(own.out, ignore_errors=True)  # what an attempt left that ended while it wrote
        own.out.mkdir(parents=True, exist_ok=True)
        outcome = execute(own, folder.tell if rank == 0 else _tell_nobody, _stopping(folder, asked))
        folder.leave(local, outcome)
        write_trace(outcome)
        if outcome.is_broken:
            os._exit(1)  # at once: the others may be waiting in a collective, and so might a destructor here
    end_as_a_fork_does()


def end_as_a_fork_does() -> None:
    """See to it that this process ends at once when its work is done, with its exit code 0.

    A forked child does so by itself. A spawned one (where there is CUDA) takes the interpreter down first, and a thread
    of torch or gloo that still holds a Python object then aborts the process: good work would be told as a crash.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    atexit.register(os._exit, 0)  # the first to be called: what was registered last is


def _stopping(folder: RankFiles, asked: list[int]) -> Callable[[], bool]:
    """Return what tells the stage to stop: all ranks get the same answer to the same call."""
    return lambda: any_rank(bool(asked) or folder.stop.exists())


def _tell_nobody(event: Event) -> None:
    """Rank 0 speaks for all."""


def _launch_config(job: Job, folder: RankFiles) -> Any:
    """Return the agent's configuration: one machine finds itself, several meet at `compute.rendezvous`."""
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    nodes = job.nodes
    return LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=int(job.compute["processes"]),
        run_id=_session(job),
        rdzv_backend="c10d" if nodes == 1 else "static",  # static: rank 0 is on node 0
        rdzv_endpoint="localhost:0" if nodes == 1 else str(job.compute["rendezvous"]),
        rdzv_configs={"timeout": int(CONNECT_S), **({"rank": job.node_rank} if nodes > 1 else {})},
        max_restarts=0,
        monitor_interval=0.1,
        # A fork of this process has the libraries already; where there is CUDA they may have started a driver.
        start_method="fork" if torch.version.cuda is None else "spawn",
        local_addr="localhost" if nodes == 1 else None,
        signals_to_handle="SIGQUIT",  # a wish to stop goes to the ranks through a file
        logs_specs=DefaultLogsSpecs(log_dir=str(folder.path)),
    )


def _outcome(job: Job, folder: RankFiles, deaths: ExitCodes, failure: Problem | None, seconds: float) -> Outcome:
    """Join what the ranks of this machine left: the first one's result, or the first one's failure."""
    outcomes = {rank: outcome for rank in range(int(job.compute["processes"])) if (outcome := folder.read(rank))}
    broken = [rank for rank, outcome in outcomes.items() if outcome.is_broken]
    before = job.node_rank * int(job.compute["processes"])  # ranks of the machines before this one
    peak = max((outcome.peak_memory_mib for outcome in outcomes.values()), default=0.0)
    dead = deaths.first_by_signal()
    if dead is not None and deaths.was_before(dead, broken):
        problem = _killed(before + dead, deaths.codes[dead], job)
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
    how = f"was killed by signal {-code}" if code is not None else "ended without a word"
    return Problem(f"rank {rank} {how}", remedy=f"{hint}; run again to resume")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
