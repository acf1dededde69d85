"""A real Slurm, its two nodes this machine: what the tests of `launcher: slurm` send their jobs to.

Debian's slurm-wlm and munge; no accounting, processes tracked by their parents, no task plugin: no cgroup is needed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ports import free_port
from waiting import until

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scancel", "scontrol", "srun")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
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
SlurmdParameters=config_overrides
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 State=UNKNOWN
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=both Nodes={host},localhost MaxTime=INFINITE State=UP
"""


@dataclass
class Cluster:
    """A running Slurm and what reaches it."""

    folder: Path
    environment: dict[str, str]
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __call__(self, *line: str) -> str:
        ended = subprocess.run(line, env=self.environment, capture_output=True, text=True, timeout=800, check=False)
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

    def trueup(self, *args: str | Path, cwd: Path, timeout_s: float = 600) -> tuple[int, str]:
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

    def active(self, prefix: str) -> list[str]:
        """Return the names of the jobs that Slurm has not ended yet."""
        rows = self("squeue", "--noheader", "--format=%j").splitlines()
        return [row for row in rows if row.startswith(prefix)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("submitit", reason="launcher: slurm needs submitit: pip install 'trueup[slurm]'")
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no Slurm here: {', '.join(missing)} missing (Debian: apt install slurm-wlm munge)")
    if os.geteuid() != 0:
        pytest.skip("needs root: slurmd starts jobs as another user would")
    folder = tmp_path_factory.mktemp("slurm")
    host, user = socket.gethostname().partition(".")[0], pwd.getpwuid(os.geteuid()).pw_name
    for name in ("state", f"spool-{host}", "spool-localhost"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    configuration.write_text(
        CONFIGURATION.format(folder=folder, host=host, user=user, ports=[free_port() for _ in range(3)])
    )
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
        _end_daemons(made, user)


def _start_daemons(cluster: Cluster, key: Path) -> None:
    folder = cluster.folder
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed"]
    for line in (munge, ["slurmctld", "-D", "-c"], ["slurmd", "-D"], ["slurmd", "-D", "-N", "localhost"]):
        with (folder / f"{line[0]}.out").open("ab") as out:
            cluster.daemons.append(subprocess.Popen(line, env=cluster.environment, stdout=out, stderr=out))
        if line is munge:
            until((folder / "munge.socket").exists, "munge's socket")

    def idle() -> bool:
        line = ["sinfo", "--noheader", "--format=%T"]
        ended = subprocess.run(line, env=cluster.environment, capture_output=True, text=True, timeout=800, check=False)
        return set(ended.stdout.split()) == {"idle"}

    try:
        until(idle, "idle nodes")
    except AssertionError:
        logs = "\n".join(file.read_text(errors="replace")[-1500:] for file in sorted(folder.glob("*.log")))
        raise AssertionError(f"Slurm did not start:\n{logs}") from None


def _end_daemons(cluster: Cluster, user: str) -> None:
    """End the jobs, then the daemons: a job needs all of them to end."""
    if len(cluster.daemons) > 1:
        subprocess.run(["scancel", "--user", user], env=cluster.environment, check=False, timeout=800)
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            until(lambda: not cluster.active(""), "the end of the jobs")
    for daemon in reversed(cluster.daemons):
        daemon.terminate()
        try:
            daemon.wait(timeout=800)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
