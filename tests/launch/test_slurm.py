"""A real Slurm, its two nodes this machine: a chain as jobs, cancelled, preempted, out of time, failed; the same bits.

Debian's slurm-wlm and munge; no accounting, processes tracked by their parents, no task plugin: no cgroup is needed.
"""

from __future__ import annotations

import json
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
from waiting import until

from pipeline.artifacts import Store
from pipeline.plan import make_plan
from pipeline.recipe import inspect, load

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
    host, user = socket.gethostname().partition(".")[0], pwd.getpwuid(os.geteuid()).pw_name
    for name in ("state", f"spool-{host}", "spool-localhost"):
        (folder / name).mkdir()
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, host=host, user=user, ports=_free_ports(3)))
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
    for line in (munge, ["slurmctld", "-D", "-c"], ["slurmd", "-D"], ["slurmd", "-D", "-N", "localhost"]):
        with (folder / f"{line[0]}.out").open("ab") as out:
            cluster.daemons.append(subprocess.Popen(line, env=cluster.environment, stdout=out, stderr=out))
        if line is munge:
            until((folder / "munge.socket").exists, "munge's socket", 20)

    def idle() -> bool:
        line = ["sinfo", "--noheader", "--format=%T"]
        ended = subprocess.run(line, env=cluster.environment, capture_output=True, text=True, timeout=30, check=False)
        return set(ended.stdout.split()) == {"idle"}

    try:
        until(idle, "idle nodes", 60)
    except AssertionError:
        logs = "\n".join(file.read_text(errors="replace")[-1500:] for file in sorted(folder.glob("*.log")))
        raise AssertionError(f"Slurm did not start:\n{logs}") from None


def _digests(store: Path) -> dict[str, str]:
    return {artifact.manifest.name: artifact.manifest.digest for artifact in Store(store).artifacts()}


def test_a_chain_of_jobs_makes_the_bits_of_a_local_run(
    tmp_path: Path, tiny_recipe: Path, chain: Any, cluster: Cluster
) -> None:
    store = tmp_path / "store"
    code, out = cluster.trueup("run", tiny_recipe, "--store", store, *SLURM, cwd=tmp_path)
    assert code == 0, out
    assert _digests(store) == chain.digests
    assert "starting in job" in out and "6 made, 0 from the store" in out
    jobs = {name.removeprefix("tiny-"): number for name, (number, _) in cluster.jobs().items()}
    (script,) = store.glob(".runs/*/dpo/*_submission.sh")
    assert f"#SBATCH --dependency=afterok:{jobs['sft']}\n" in script.read_text()


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
    until(_is_training(store), "the first checkpoint")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 1 and "no longer following; the jobs go on: base (" in out, out
    job, state = cluster.jobs()["tiny-base"]
    assert state == "RUNNING"

    # The node is needed for something else, then the time is over: saved, back in the queue, resumed, each time.
    for sent in ("TERM", "USR2"):
        before = _steps(store)[-1]
        cluster("scancel", f"--signal={sent}", job)
        until(_requeued(cluster, job), f"the requeue after {sent}", 60)
        saved = _steps(store)[-1]
        assert saved >= before
        until(_is_training(store, after=saved), "training again", 120)

    # The same command finds the job; cancelled, it is an error, and what it did is kept.
    process = cluster.start(*line, cwd=tmp_path)
    saved = _steps(store)[-1]
    until(_is_training(store, after=saved), "more training")
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
    lines = [
        line for file in sorted(store.glob(".runs/*/base/journal.jsonl")) for line in file.read_text().splitlines()
    ]
    starts = [event["resumed"] for event in map(json.loads, lines) if event["event"] == "stage_started"]
    assert starts == [False, True, True, True]


def test_jobs_that_need_a_failed_one_are_cancelled_and_the_error_names_it_and_its_log(
    tmp_path: Path, tiny_recipe: Path, chain: Any, cluster: Cluster
) -> None:
    store = tmp_path / "store"
    shutil.copytree(chain.store.root, store, ignore=shutil.ignore_patterns(".runs"))
    line = ("run", tiny_recipe, "--store", store, *SLURM, "--set", "stages.sft.train.learning_rate=1.0e+30")
    code, out = cluster.trueup(*line, cwd=tmp_path)
    (last,) = [row for row in out.splitlines() if row.startswith("stage sft: ")]
    assert code == 1 and "Traceback" not in out, out
    assert "the loss is" in last and "log: " in last and "cancelled: rm, dpo, report" in last
    log = Path(last.partition("log: ")[2].partition(";")[0])
    assert "the loss is" in log.read_text()
    after = {name: state for name, (_, state) in cluster.jobs().items()}
    assert {after[f"tiny-{name}"] for name in ("rm", "dpo", "report")} == {"CANCELLED"}


def test_a_job_of_two_nodes_trains_one_stage(tmp_path: Path, tiny_recipe: Path, chain: Any, cluster: Cluster) -> None:
    store = tmp_path / "store"
    shutil.copytree(chain.store.root, store, ignore=shutil.ignore_patterns(".runs"))
    both = ("--set", "stages.base.compute.nodes=2", "--set", "compute.slurm.partition=both")
    steps = ("--set", "stages.base.train.max_steps=5", "--until", "base")
    code, out = cluster.trueup("run", tiny_recipe, "--store", store, *SLURM, *both, *steps, cwd=tmp_path)
    assert code == 0, out + "".join(file.read_text() for file in store.glob(".runs/*/base/*.out"))
    assert "8 rows × 2 processes = 16 rows" in out
    newest = Store(store).artifacts("base")[-1].manifest
    assert newest.version == 2 and newest.runtime["nodes"] == 2


def test_a_partition_that_is_not_there_is_one_line(tmp_path: Path, tiny_recipe: Path, cluster: Cluster) -> None:
    line = ("run", tiny_recipe, "--store", tmp_path / "store", *SLURM, "--set", "compute.slurm.partition=nowhere")
    code, out = cluster.trueup(*line, cwd=tmp_path)
    assert code == 2
    assert "stage tokenizer: Slurm refused the job: sbatch: error:" in out and "see compute.slurm" in out
    assert "Traceback" not in out


def test_a_machine_without_slurm_is_one_line(tmp_path: Path, tiny_recipe: Path, command: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ended = command("run", tiny_recipe, "--store", tmp_path / "store", *SLURM, cwd=tmp_path)
    assert ended.returncode == 2
    assert "compute.launcher is slurm, but this machine has no sbatch" in ended.stderr


@pytest.mark.parametrize(
    ("value", "minutes"), [("90", 90), ("01:30:00", 90), ("1-00:00:01", 1441), ("two", 0), ("0", 0)]
)
def test_times(value: str, minutes: int, tmp_path: Path, tiny_recipe: Path) -> None:
    found, problems = inspect(tiny_recipe, overrides=[f"compute.slurm.time={value}"])
    if minutes:
        assert found.compute.slurm.minutes == minutes and not problems
    else:
        assert "minutes, or [DAYS-]HH:MM:SS" in str(problems[0])


def test_where_a_stage_runs_leaves_its_fingerprint_alone(tiny_recipe: Path, chain: Any) -> None:
    one = make_plan(load(tiny_recipe), chain.store)
    other = make_plan(load(tiny_recipe, overrides=["compute.launcher=slurm", "compute.slurm.qos=low"]), chain.store)
    assert [stage.fingerprint for stage in one.stages] == [stage.fingerprint for stage in other.stages]
