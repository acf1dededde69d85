"""What a container is like, without one: trueup as the first process, no home, no compiler, no network, 64 KiB shared.

Linux's namespaces make such a place for one command.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.errors import ExitCode
from pipeline.launch.local import LONGEST_TEMPORARY

pytestmark = pytest.mark.xdist_group("kill")

ROOT = Path(__file__).resolve().parents[2]
UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--net", "--uts")
PLACE = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && ip link set lo up && hostname box && exec "$@"'


def _why_not() -> str:
    for tool in ("unshare", "ip"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    tried = subprocess.run([*UNSHARE, "sh", "-c", PLACE, "sh", "true"], capture_output=True, text=True, check=False)
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


@pytest.fixture(scope="module", autouse=True)
def place() -> None:
    """Skip where such a place cannot be made."""
    if reason := _why_not():
        pytest.skip(reason)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `trueup` as the first process of such a place."""
    started = []

    def begin(*args: str | Path, cwd: Path) -> subprocess.Popen[str]:
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS") if name in os.environ}
        nothing = {"HOME": "/proc/nowhere", "CXX": "/proc/nowhere/c++", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
        process = subprocess.Popen(
            [*UNSHARE, "sh", "-c", PLACE, "sh", sys.executable, "-m", "pipeline.cli", *map(str, args)],
            cwd=cwd,
            env={**kept, **nothing},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def _stop(process: subprocess.Popen[str]) -> None:
    """Send SIGTERM to the first process, as `docker stop` does."""
    (first,) = psutil.Process(process.pid).children()
    first.send_signal(signal.SIGTERM)


def _until(condition: Callable[[], Any], process: subprocess.Popen[str], timeout_s: float = 800) -> None:
    ends = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.parametrize(
    "goes_on", [pytest.param(False, id="saves"), pytest.param(True, id="and goes on", marks=pytest.mark.whole)]
)
def test_docker_stop_saves_and_the_rerun_goes_on(goes_on: bool, start: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    base = ("--set", "stages.base.train.max_steps=200", "--until", "base", "--set", "compute.processes=2")
    line = ("run", tiny_recipe, "--store", store, *base)
    process = start(*line, cwd=tmp_path)
    _until(lambda: list(store.glob(".work/base-*/work/seconds.json")), process)
    _stop(process)
    out, err = process.communicate(timeout=800)
    assert process.returncode == ExitCode.TERMINATED
    assert "saving a checkpoint" in out and "stage base: stopped as asked. Run the same command again" in err
    (checkpoint,) = store.glob(".work/base-*/work/checkpoints/checkpoint-*")
    step = int(checkpoint.name.rpartition("-")[2])
    assert step > 0
    if not goes_on:
        return
    again = start(*line, cwd=tmp_path)
    out, err = again.communicate(timeout=800)
    assert again.returncode == 0, err
    assert f"resumes at step {step} of 200" in out


def test_docker_stop_before_anything_runs_ends_at_once(start: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    os.mkfifo(recipe)  # the command waits for someone to write it

    writers: list[int] = []

    def is_reading() -> bool:
        with contextlib.suppress(OSError):  # nobody has opened it to read
            writers.append(os.open(recipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writers)

    process = start("check", recipe, cwd=tmp_path)
    _until(is_reading, process)
    _stop(process)
    _, err = process.communicate(timeout=800)
    os.close(writers[0])
    assert process.returncode == ExitCode.TERMINATED == 143
    assert err.strip() == "stopped"


@pytest.mark.parametrize("zero", [pytest.param(0, marks=pytest.mark.whole), 2])
def test_two_processes_need_no_home_no_compiler_no_network_and_hardly_shared_memory(
    zero: int, start: Any, tiny_recipe: Path, tmp_path: Path
) -> None:
    if zero:
        pytest.importorskip("deepspeed", reason="the extra `deepspeed` is not installed")
    settings = ["stages.base.train.max_steps=3", "compute.processes=2", f"compute.zero={zero}"]
    options = [word for setting in settings for word in ("--set", setting)]
    process = start("run", tiny_recipe, "--store", tmp_path / "store", "--until", "base", *options, cwd=tmp_path)
    out, err = process.communicate(timeout=800)
    assert process.returncode == 0, err
    assert "done base@v1" in out


def test_doctor_says_what_a_place_lacks(start: Any, tmp_path: Path) -> None:
    process = start("doctor", "--json", cwd=tmp_path)
    out, err = process.communicate(timeout=800)
    assert err == ""
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert checks["shared memory"]["status"] == "optional"
    assert "--shm-size" in checks["shared memory"]["remedy"]
    assert checks["hub cache"]["status"] == "optional"
    assert "/proc/nowhere" in checks["hub cache"]["found"] and "HF_HOME" in checks["hub cache"]["remedy"]


def test_a_folder_for_temporary_files_that_no_socket_fits_in_is_known_before_anything_runs(
    command: Any, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(length: int) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory() as short:
            folder = Path(short, "x" * (length - len(short) - 1))
            folder.mkdir()
            monkeypatch.setenv("TMPDIR", str(folder))
            return command("run", tiny_recipe, "--store", tmp_path / "store", "--until", "tokenizer", cwd=tmp_path)

    ended = run(LONGEST_TEMPORARY + 1)
    assert ended.returncode == 2
    assert re.fullmatch(
        r"the folder for temporary files is \S+, 76 bytes long; expected at most 75: .*TMPDIR.*\n", ended.stderr
    ), ended.stderr
    assert not list((tmp_path / "store").glob(".runs/*"))
    longest = run(LONGEST_TEMPORARY)
    assert longest.returncode == 0, longest.stderr
