"""A real Slurm of one node, started here: a chain as jobs, cancelled, preempted, out of time, failed, and the same bits.

Debian's slurm-wlm and munge; no accounting, processes tracked by their parents, no task plugin: no cgroup is needed.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Store

pytestmark = pytest.mark.xdist_group("slurm")

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel", "scontrol", "srun")
SLURM = ("--set", "compute.launcher=slurm", "--set", "compute.slurm.time=10")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,defer_batch=0
ReturnToService=2
MpiDefault=none
KillWait=30
MinJobAge=300
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@dataclass
class Cluster:
    """A running Slurm and what reaches it."""

    folder: Path
    environment: dict[str, str]
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __call__(self, *line: str) -> str:
        ended = subprocess.run(line, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def start(self, *args: str | Path, cwd: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", *map(str, args)],
            cwd=cwd,
            env=self.environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def trueup(self, *args: str | Path, cwd: Path, timeout_s: float = 240) -> tuple[int, str]:
        process = self.start(*args, cwd=cwd)
        try:
            out, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
            raise AssertionError(f"no end in {timeout_s} s:\n{out}\n{self.jobs()}") from None
        return process.returncode, out

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Return number and state of the newest job of each name."""
        rows = [
            row.split("|") for row in self("squeue", "--noheader", "--states=all", "--format=%j|%A|%T").splitlines()
        ]
        return {name: (number, state) for name, number, state in sorted(rows, key=lambda row: int(row[1]))}


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("submitit", reason="launcher: slurm needs submitit: pip install 'trueup[slurm]'")
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no Slurm here: {', '.join(missing)} missing (Debian: apt install slurm-wlm munge)")
    if os.geteuid() != 0:
        pytest.skip("needs root: slurmd starts jobs as another user would")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host, user = socket.gethostname().partition(".")[0], pwd.getpwuid(os.geteuid()).pw_name
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, host=host, user=user, ports=_free_ports(2)))
    (folder / "cgroup.conf").write_text("")
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "SLURM_CONF": str(configuration), "PYTHONPATH": path, "NO_COLOR": "1"}
    made = Cluster(folder, {**environment, "OMP_NUM_THREADS": "1", "COLUMNS": "200"})
    try:
        _start_daemons(made, key)
        yield made
    finally:
        if len(made.daemons) > 1:
            subprocess.run(["scancel", "--user", user], env=made.environment, check=False, timeout=30)
            time.sleep(1)
        for daemon in reversed(made.daemons):
            daemon.terminate()
        for daemon in made.daemons:
            daemon.wait(timeout=30)


def _start_daemons(cluster: Cluster, key: Path) -> None:
    folder = cluster.folder
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"]
    for line in (munge, ["slurmctld", "-D", "-c"], ["slurmd", "-D"]):
        with (folder / f"{line[0]}.out").open("wb") as out:
            cluster.daemons.append(subprocess.Popen(line, env=cluster.environment, stdout=out, stderr=out))
        if line is munge:
            _until((folder / "munge.socket").exists, "munge's socket", 20)

    def idle() -> bool:
        line = ["sinfo", "--noheader", "--format=%T"]
        ended = subprocess.run(line, env=cluster.environment, capture_output=True, text=True, timeout=30, check=False)
        return ended.stdout.strip() == "idle"

    try:
        _until(idle, "an idle node", 60)
    except AssertionError:
        logs = "\n".join(file.read_text(errors="replace")[-1500:] for file in sorted(folder.glob("*.log")))
        raise AssertionError(f"Slurm did not start:\n{logs}") from None


def _until(condition: Callable[[], Any], what: str, timeout_s: float = 120) -> Any:
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not happen in {timeout_s:g} s")


def _digests(store: Path) -> dict[str, str]:
    return {artifact.manifest.name: artifact.manifest.digest for artifact in Store(store).artifacts()}


def test_a_chain_of_jobs_makes_the_bits_of_a_local_run(
    tmp_path: Path, tiny_recipe: Path, chain: Any, cluster: Cluster
) -> None:
    store = tmp_path / "store"
    code, out = cluster.trueup("run", tiny_recipe, "--store", store, *SLURM, cwd=tmp_path)
    assert code == 0, out
    assert _digests(store) == chain.digests
    assert "waits for base" in out and "starting in job" in out and "6 made, 0 from the store" in out


def _steps(store: Path) -> list[int]:
    """Return the steps of the whole checkpoints of `base`."""
    files = store.glob(".work/base-*/work/checkpoints/checkpoint-*/whole.json")
    return sorted(int(file.parent.name.rpartition("-")[2]) for file in files)


def _is_training(store: Path, after: int = 0) -> Callable[[], bool]:
    return lambda: any(step > after for step in _steps(store))


def _requeued(cluster: Cluster, job: str) -> Callable[[], bool]:
    return lambda: cluster.jobs()["tiny-base"] == (job, "PENDING")


def test_jobs_outlive_the_command_lose_their_node_and_are_cancelled_and_the_bits_are_those_of_a_local_run(
    tmp_path: Path, tiny_recipe: Path, command: Any, journal: Any, cluster: Cluster
) -> None:
    long = ("--until", "sft", "--set", "stages.base.train.max_steps=1500")
    ended = command("run", tiny_recipe, "--store", tmp_path / "local", *long, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    store = tmp_path / "store"
    line = ("run", tiny_recipe, "--store", store, *long, *SLURM)

    # Ctrl-C leaves the jobs alone.
    process = cluster.start(*line, cwd=tmp_path)
    _until(_is_training(store), "the first checkpoint")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 1 and "no longer following; the jobs go on: base (" in out, out
    job, state = cluster.jobs()["tiny-base"]
    assert state == "RUNNING"

    # The node is needed for something else, then the time is over: saved, back in the queue, resumed, each time.
    for sent in ("TERM", "USR2"):
        before = _steps(store)[-1]
        cluster("scancel", f"--signal={sent}", job)
        _until(_requeued(cluster, job), f"the requeue after {sent}", 60)
        saved = _steps(store)[-1]
        assert saved >= before
        _until(_is_training(store, after=saved), "training again", 120)

    # The same command finds the job; cancelled, it is an error, and what it did is kept.
    process = cluster.start(*line, cwd=tmp_path)
    saved = _steps(store)[-1]
    _until(_is_training(store, after=saved), "more training")
    code, said = cluster.trueup("cancel", tiny_recipe, "--store", store, *long, *SLURM, cwd=tmp_path)
    assert code == 0 and f"cancelled base (job {job})" in said and "cancelled sft" in said, said
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and f"stage base: job {job} was cancelled; run again to resume" in out, out
    assert "Traceback" not in out
    assert not (store / "base").exists()

    code, out = cluster.trueup(*line, cwd=tmp_path)
    assert code == 0, out
    assert "resumes at step" in out
    assert cluster.jobs()["tiny-base"][0] != job
    assert _digests(store) == _digests(tmp_path / "local")
    resumed = [event for event in journal(store) if event["event"] == "stage_started" and event["stage"] == "base"]
    print([event["resumed"] for event in resumed])
