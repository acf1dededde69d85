"""Stopping the real command by signals: it saves, says so, leaves no process behind, and goes on when run again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import living, until

pytestmark = pytest.mark.xdist_group("kill")

LONG = ("--set", "stages.base.train.max_steps=200", "--until", "base")


def _stage_process(session: int) -> psutil.Process:
    """Return the stage's process: the child of the warm parent, which is the child that has one."""
    (runner,) = [process for process in living(session) if process.pid == session]
    (stage,) = [grandchild for child in runner.children() for grandchild in child.children()]
    return stage


@pytest.fixture
def training(
    tmp_path: Path, tiny_recipe: Path, command: Any, journal: Any, request: pytest.FixtureRequest
) -> tuple[subprocess.Popen[str], Path]:
    """Start a run and wait until its `base` has trained for a moment and has a checkpoint."""
    store = tmp_path / "store"
    process = command.start("run", tiny_recipe, "--store", store, *LONG, cwd=tmp_path)
    request.addfinalizer(lambda: _kill(process))
    until(lambda: list(store.glob(".work/base-*/work/seconds.json")), "a checkpoint")
    return process, store


def _kill(process: subprocess.Popen[str]) -> None:
    for member in living(process.pid):
        member.kill()
    process.communicate()


@pytest.mark.parametrize("to", ["the command", pytest.param("its whole group", marks=pytest.mark.whole)])
def test_sigterm_saves_stops_and_the_rerun_goes_on(
    to: str, training: tuple[subprocess.Popen[str], Path], call: Any, journal: Any, tiny_recipe: Path
) -> None:
    process, store = training
    (os.kill if to == "the command" else os.killpg)(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=800)
    assert process.returncode == 143
    assert "stage base: stopped as asked" in err and "Run the same command again to resume" in err
    assert "Traceback" not in out + err
    if to == "the command":  # told of the group's signal itself, the stage may be quicker than the word of it
        assert "saving" in out
    until(lambda: not living(process.pid), "the end of every process")
    # The checkpoint is the one saved on request, at the very step it stopped at.
    (failed,) = [event for event in journal(store) if event["event"] == "stage_failed"]
    assert failed["stopped"] is True
    (checkpoint,) = store.glob(".work/base-*/work/checkpoints/checkpoint-*")
    step = int(checkpoint.name.rpartition("-")[2])
    assert f"stopped as asked at step {step} of 200" in failed["problems"][0]
    assert not (store / "base").exists()
    if to == "the command":
        again = call("run", tiny_recipe, "--store", store, *LONG, cwd=tiny_recipe.parent)
        assert again.returncode == 0, again.stderr
        assert f"resumes at step {step} of 200" in again.stdout
        assert len(list(store.glob("base/*/manifest.json"))) == 1
        assert not list(store.glob(".work/base-*"))


def test_ctrl_c_while_the_libraries_load_is_no_traceback(
    tmp_path: Path, tiny_recipe: Path, command: Any, journal: Any
) -> None:
    store = tmp_path / "store"
    process = command.start("run", tiny_recipe, "--store", store, *LONG, cwd=tmp_path)
    until(lambda: [event for event in journal(store) if event["event"] == "stage_started"], "the start of a stage")
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=800)
    assert process.returncode == 130
    assert "stopped as asked" in err
    assert "Traceback" not in out + err
    until(lambda: not living(process.pid), "the end of every process")
    assert not (store / "base").exists()  # the tokenizer may have been quicker than the signal


@pytest.mark.parametrize("presses", [pytest.param(1, marks=pytest.mark.whole), 2])
def test_ctrl_c_on_a_stage_of_two_processes_ends_in_130_and_leaves_none(
    presses: int, tmp_path: Path, tiny_recipe: Path, command: Any, request: pytest.FixtureRequest
) -> None:
    """Pressed once it saves first; pressed twice it stops at once."""
    store = tmp_path / "store"
    process = command.start("run", tiny_recipe, "--store", store, *LONG, "--set", "compute.processes=2", cwd=tmp_path)
    request.addfinalizer(lambda: _kill(process))
    until(lambda: list(store.glob(".work/base-*/work/seconds.json")), "a checkpoint")
    for _ in range(presses):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    out, err = process.communicate(timeout=800)
    assert process.returncode == 130
    assert "stopped" in err
    assert "Traceback" not in out + err
    until(lambda: not living(process.pid), "the end of every process")
    assert not (store / "base").exists()


def test_a_killed_stage_is_reported_and_keeps_its_checkpoints(
    training: tuple[subprocess.Popen[str], Path], checkpoints: Any
) -> None:
    """What the kernel does when memory runs out."""
    process, store = training
    _stage_process(process.pid).kill()
    out, err = process.communicate(timeout=800)
    assert process.returncode == 1
    assert "stage base: its process was killed by signal 9. The system may have run out of memory" in err
    assert "run again to resume" in err
    assert "Traceback" not in out + err
    assert list(store.glob(".work/base-*/work/checkpoints/checkpoint-*/trainer_state.json"))


def test_a_stage_that_is_busy_dies_with_its_runner(tmp_path: Path, tiny_recipe: Path, chain: Any, command: Any) -> None:
    """The runner alone is killed while the stage says nothing: no progress, no event, a sleeping user function."""
    gold = tiny_recipe.parent / "gold.py"
    marker = tmp_path / "asleep"
    head = "def gold(completions, answer, **columns):\n"
    asleep = f"    open({str(marker)!r}, 'w').close()\n    import time\n\n    time.sleep(600)\n"
    assert head in gold.read_text()
    gold.write_text(gold.read_text().replace(head, head + asleep))
    # Everything but the report comes from a copy of the finished chain's store.
    store = tmp_path / "store"
    shutil.copytree(chain.store.root, store)
    process = command.start("run", tiny_recipe, "--store", store, cwd=tmp_path)
    try:
        until(marker.exists, "the sleep")
        assert len(living(process.pid)) >= 3
        os.kill(process.pid, signal.SIGKILL)
        until(lambda: not living(process.pid), "the end of every process")
    finally:
        _kill(process)
