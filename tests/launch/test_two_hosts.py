"""Two machines train one stage: two network namespaces joined by a cable that can be cut.

Each runs the real command; they share nothing but the folder of the store and the cable.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import living, until

pytestmark = pytest.mark.xdist_group("two hosts")

ROOT = Path(__file__).resolve().parents[2]
ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = 29517
SHARED = ("--set", "stages.base.compute.nodes=2", "--set", f"stages.base.compute.rendezvous={ADDRESSES[0]}:{PORT}")


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True)


@dataclass
class Hosts:
    """Two namespaces and what runs in them."""

    names: tuple[str, str]
    cables: tuple[str, str]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, host: int, *args: str | Path, cwd: Path) -> subprocess.Popen[str]:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.names[host], sys.executable, "-m", "pipeline.cli", *map(str, args)],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def cut(self) -> None:
        """Packets vanish both ways; nothing is closed."""
        for name, cable in zip(self.names, self.cables, strict=True):
            _ip("-n", name, "link", "set", cable, "down")

    def mend(self) -> None:
        for name, cable, address in zip(self.names, self.cables, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "replace", f"{address}/24", "dev", cable)
            _ip("-n", name, "link", "set", cable, "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def members(self) -> list[psutil.Process]:
        """Return the living processes of all commands."""
        return living(*(process.pid for process in self.processes))


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("needs the command `ip` (Debian's iproute2)")
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes network namespaces")
    tag = f"{os.getpid() % 100000}"
    made = Hosts((f"tu{tag}a", f"tu{tag}b"), (f"tu{tag}va", f"tu{tag}vb"))
    try:
        try:
            for name in made.names:
                _ip("netns", "add", name)
            _ip("link", "add", made.cables[0], "type", "veth", "peer", "name", made.cables[1])
            for name, cable in zip(made.names, made.cables, strict=True):
                _ip("link", "set", cable, "netns", name)
            made.mend()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine allows no network namespaces: {error.stderr.strip()}")
        yield made
    finally:
        for member in made.members():
            member.kill()
        for process in made.processes:
            process.communicate()
        for name in made.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.mark.whole
def test_two_machines_train_a_stage_together(tmp_path: Path, tiny_recipe: Path, hosts: Hosts) -> None:
    store = tmp_path / "store"
    line = ("run", tiny_recipe, "--store", store, *SHARED, "--until", "base", "--set", "stages.base.train.max_steps=5")
    second = hosts.start(1, *line, "--node-rank", "1", cwd=tmp_path)
    first = hosts.start(0, *line, cwd=tmp_path)
    outs = [process.communicate(timeout=800)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), "\n".join(outs)
    assert "2 processes" in outs[0]
    assert hosts.members() == []
    assert len(list(store.glob("base/*/manifest.json"))) == 1


@pytest.mark.parametrize(
    "goes_on", [pytest.param(False, id="ends"), pytest.param(True, id="and goes on", marks=pytest.mark.whole)]
)
def test_a_cut_link_is_a_clear_error_on_both_and_the_rerun_resumes(
    goes_on: bool, tmp_path: Path, tiny_recipe: Path, hosts: Hosts
) -> None:
    store = tmp_path / "store"
    line = ("run", tiny_recipe, "--store", store, *SHARED, "--until", "base")
    line = (*line, "--set", "stages.base.train.max_steps=3000")
    pair = [hosts.start(0, *line, cwd=tmp_path), hosts.start(1, *line, "--node-rank", "1", cwd=tmp_path)]
    until(lambda: list(store.glob(".work/base-*/work/checkpoints/*/whole.json")), "a checkpoint")
    hosts.cut()
    outs = [process.communicate(timeout=800)[0] for process in pair]
    assert [process.returncode for process in pair] == [1, 1], "\n".join(outs)
    last = [out.strip().splitlines()[-1] for out in outs]
    assert "stage base: node 1 has not answered for" in last[0] and "run again" in last[0].lower(), outs[0]
    assert "stage base: node 0 has not answered for" in last[1], outs[1]
    assert not any("Traceback" in out for out in outs)
    until(lambda: not hosts.members(), "the end of every process")
    if not goes_on:
        return
    hosts.mend()
    steps = [int(folder.name.rpartition("-")[2]) for folder in store.glob(".work/base-*/work/checkpoints/checkpoint-*")]
    again = [hosts.start(0, *line, cwd=tmp_path), hosts.start(1, *line, "--node-rank", "1", cwd=tmp_path)]
    until(lambda: list(store.glob(".work/base-*/work/ranks/1/pid-0")), "the rerun")
    until(
        lambda: (
            max(int(f.name.rpartition("-")[2]) for f in store.glob(".work/base-*/work/checkpoints/checkpoint-*"))
            > max(steps)
        ),
        "a later checkpoint",
    )
    again[1].send_signal(signal.SIGTERM)  # either may be asked: all stop at the same step
    outs = [process.communicate(timeout=800)[0] for process in again]
    assert f"resumes at step {max(steps)} of 3000" in outs[0], outs[0]
    assert all("stopped as asked" in out for out in outs), "\n".join(outs)


@pytest.mark.whole
def test_a_rank_that_dies_is_named_on_both_machines(tmp_path: Path, tiny_recipe: Path, hosts: Hosts) -> None:
    store = tmp_path / "store"
    line = ("run", tiny_recipe, "--store", store, *SHARED, "--until", "base")
    line = (*line, "--set", "stages.base.train.max_steps=3000")
    pair = [hosts.start(0, *line, cwd=tmp_path), hosts.start(1, *line, "--node-rank", "1", cwd=tmp_path)]
    until(lambda: list(store.glob(".work/base-*/work/checkpoints/*/whole.json")), "a checkpoint")
    (file,) = store.glob(".work/base-*/work/ranks/1/pid-0")
    os.kill(int(file.read_text()), signal.SIGKILL)
    outs = [process.communicate(timeout=800)[0] for process in pair]
    assert [process.returncode for process in pair] == [1, 1], "\n".join(outs)
    assert "stage base: rank 1 was killed by signal 9" in outs[1], outs[1]
    assert "stage base: node 1: rank 1 was killed by signal 9" in outs[0], outs[0]
    until(lambda: not hosts.members(), "the end of every process")


def test_a_machine_that_reads_another_recipe_is_refused_on_both(
    tmp_path: Path, tiny_recipe: Path, hosts: Hosts
) -> None:
    line = ("run", tiny_recipe, "--store", tmp_path / "store", *SHARED, "--until", "base")
    other = (*line, "--node-rank", "1", "--set", "stages.base.train.max_steps=7")
    pair = [hosts.start(0, *line, cwd=tmp_path), hosts.start(1, *other, cwd=tmp_path)]
    outs = [process.communicate(timeout=800)[0] for process in pair]
    assert [process.returncode for process in pair] == [2, 2], "\n".join(outs)
    assert "stage base: node 1 cannot take part: it reads another recipe or other data than node 0" in outs[0]
    assert "stage base: this machine reads another recipe or other data than node 0" in outs[1]


@pytest.mark.parametrize(
    ("options", "waits"),
    [
        ((), "waits for node 1"),
        pytest.param(("--node-rank", "1"), "waits for node 0", marks=pytest.mark.whole),
    ],
)
def test_a_machine_that_is_stopped_while_it_waits_ends_at_once(
    options: tuple[str, ...], waits: str, tmp_path: Path, tiny_recipe: Path, hosts: Hosts
) -> None:
    line = ("run", tiny_recipe, "--store", tmp_path / "store", *SHARED, "--until", "base")
    process = hosts.start(0, *line, *options, cwd=tmp_path)
    out = ""
    while waits not in out:
        assert process.stdout is not None
        row = process.stdout.readline()
        assert row, out
        out += row
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=800)
    assert process.returncode == 143 and "stopped" in rest and "Traceback" not in rest


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--node-rank", "1"), "--node-rank 1, but no stage runs on more than 1 machine"),
        (("--node-rank", "2", *SHARED), "--node-rank 2, but no stage runs on more than 2 machines; expected at most 1"),
    ],
)
def test_a_machine_too_many_is_one_line(
    options: tuple[str, ...], said: str, tmp_path: Path, tiny_recipe: Path, call: Any
) -> None:
    ended = call("run", tiny_recipe, "--store", tmp_path / "store", *options, cwd=tmp_path)
    assert ended.returncode == 2
    assert said in ended.stderr
