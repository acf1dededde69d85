"""One of two ranks breaks: the others are stopped, its own error is what is told, nothing is left, a rerun goes on.

The real command on the tiny world. Ranks are found by the files they leave in the stage's scratch folder, so that a
process that left the command's session would be found too.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from waiting import until

from pipeline.artifacts import Store
from pipeline.launch.ranks import end_as_a_fork_does

pytestmark = pytest.mark.xdist_group("processes")

LIMIT_S = 700
"""Seconds within which all have ended, on a busy machine too; a rank nobody stops would sleep for 600."""
TWO = ("--set", "compute.processes=2", "--set", "compute.checkpoint_every_s=1000")
OFTEN = ("--set", "compute.checkpoint_every_s=0.05")
LONG = ("--until", "base", "--set", "stages.base.train.max_steps=90", *TWO)
PRACTICE = """
  practice:
    kind: ppo
    data: asks
    model: sft
    reward: {function: gold.py:luck}
    train: {rollout_batch: 4, iterations: 5, epochs: 1, max_new_tokens: 6, learning_rate: 1.0e-3, eval_every: 100}
"""
UNLUCKY = """

calls = []


def luck(completions, **columns):
    import os
    import pathlib
    import time

    calls.append(1)
    if pathlib.Path("{trouble}").exists() and len(calls) > 3:
        if os.environ["RANK"] == "1":
            pathlib.Path("{trouble}.met").touch()
            raise RuntimeError("out of luck")
        time.sleep(600)
    return [float(len(turns[-1]["content"])) for turns in completions]
"""
LATER = {"base": ("base", "sft", "rm", "dpo"), "practice": ()}
"""Artifacts a store must not have yet, by the stage that is run."""


@dataclass
class Started:
    """A run that is on, and the processes of its stage's ranks."""

    process: subprocess.Popen[str]
    store: Path
    seen: list[psutil.Process] = field(default_factory=list)

    @property
    def ranks(self) -> dict[int, int]:
        """Return process numbers by rank."""
        pids = {}
        for file in self.store.glob(".work/*/work/ranks/0/pid-*"):
            with contextlib.suppress(ValueError):  # being written
                pids[int(file.name.rpartition("-")[2])] = int(file.read_text())
        return pids

    def look(self) -> list[psutil.Process]:
        """Remember and return every process of the command, whatever session it is in."""
        runner = psutil.Process(self.process.pid)
        self.seen = [runner, *runner.children(recursive=True)]
        return self.seen


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    living = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
    return living


def _weights(store: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(Store(store).artifacts(name)[-1].path / "model.safetensors")


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def world(tiny_recipe: Path) -> Path:
    """A tiny world with a stage whose reward is the user's own function: it breaks while a file is there."""
    before, after = tiny_recipe.read_text().split("  report:\n")
    tiny_recipe.write_text(before.rstrip() + PRACTICE + "compute:" + after.split("compute:")[1])
    gold = tiny_recipe.parent / "gold.py"
    gold.write_text(gold.read_text() + UNLUCKY.format(trouble=str(tiny_recipe.parent / "trouble")))
    return tiny_recipe


@pytest.fixture
def start(world: Path, command: Any, request: pytest.FixtureRequest) -> Callable[..., Started]:
    """Start the command; whatever happens to the test, none of its processes outlives it."""

    def begin(store: Path, *args: str) -> Started:
        process = command.start("run", world, "--store", store, *args, cwd=world.parent)
        started = Started(process, store)
        request.addfinalizer(lambda: _end(started))
        return started

    return begin


def _end(started: Started) -> None:
    for process in _alive(started.seen):
        process.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.process.pid, signal.SIGKILL)
    started.process.communicate()


def _stopped(started: Started, since: float) -> tuple[str, str]:
    """Wait for the command and every process it had, and return what it said."""
    out, err = started.process.communicate(timeout=LIMIT_S - (time.monotonic() - since))
    until(lambda: not _alive(started.seen), "the end of every process", LIMIT_S - (time.monotonic() - since))
    assert "Traceback" not in out + err
    return out, err


def _store(place: Path, chain: Any, *missing: str) -> Path:
    """Return a store with what the stage stands on."""
    shutil.copytree(chain.store.root, place, ignore=shutil.ignore_patterns(".runs", *missing))
    return place


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of runs nothing happened to, by stage."""
    return {}


def _undisturbed(
    whole: dict[str, dict[str, torch.Tensor]], name: str, place: Path, chain: Any, call: Any, world: Path, *args: str
) -> dict[str, torch.Tensor]:
    if name not in whole:
        store = _store(place, chain, *LATER[name])
        ended = call("run", world, "--store", store, *args, cwd=world.parent)
        assert ended.returncode == 0, ended.stderr
        whole[name] = _weights(store, name)
    return whole[name]


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.whole), 1])
def test_a_killed_rank_is_told_of_and_the_rerun_ends_in_the_same_weights(
    rank: int, tmp_path: Path, world: Path, start: Callable[..., Started], call: Any, chain: Any, whole: Any
) -> None:
    store = _store(tmp_path / "store", chain, *LATER["base"])
    started = start(store, *LONG, *OFTEN)
    # Fifteen steps make an epoch: the order of rows is that of a later one.
    until(lambda: list(store.glob(".work/base-*/work/checkpoints/checkpoint-[2-5][0-9]/whole.json")), "a checkpoint")
    ranks = until(lambda: len(started.ranks) == 2 and started.ranks, "two ranks")
    assert {process.pid for process in started.look()} >= set(ranks.values())  # they are among those looked for
    killed = time.monotonic()
    os.kill(ranks[rank], signal.SIGKILL)
    _, err = _stopped(started, killed)
    assert started.process.returncode == 1
    assert f"stage base: rank {rank} was killed by signal 9. The system may have run out of memory" in err
    assert "run again to resume" in err
    again = call("run", world, "--store", store, *LONG, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resumes at step" in again.stdout
    assert not list(store.glob(".work/base-*"))
    undisturbed = _undisturbed(whole, "base", tmp_path / "undisturbed", chain, call, world, *LONG)
    assert _same(_weights(store, "base"), undisturbed)


def test_a_rank_that_fails_stops_one_that_is_busy_and_the_rerun_ends_in_the_same_weights(
    tmp_path: Path, world: Path, start: Callable[..., Started], call: Any, chain: Any, whole: Any
) -> None:
    """While one rank fails in the user's function the other sleeps in it: it hears of nothing and has to be stopped."""
    store = _store(tmp_path / "store", chain)
    (world.parent / "trouble").touch()
    started = start(store, "--until", "practice", *TWO, *OFTEN)
    until((world.parent / "trouble.met").exists, "the trouble")
    met = time.monotonic()
    assert {process.pid for process in started.look()} >= set(started.ranks.values())
    _, err = _stopped(started, met)
    assert "stage practice: rank 1: reward function gold.py:luck raised RuntimeError: out of luck" in err
    assert err.count("rank ") == 1
    (world.parent / "trouble").unlink()
    (left,) = store.glob(".work/practice-*/work/ranks/out-1")
    (left / "value").mkdir()  # as of an attempt that ends while it writes its artifact
    again = call("run", world, "--store", store, "--until", "practice", *TWO, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resumes at iteration" in again.stdout
    args = ("--until", "practice", *TWO)
    assert _same(
        _weights(store, "practice"),
        _undisturbed(whole, "practice", tmp_path / "undisturbed", chain, call, world, *args),
    )


def _ends(end: Callable[[], None], later: Path) -> None:
    atexit.register(later.write_text, "the interpreter was taken down")
    end()


@pytest.mark.parametrize(("end", "taken_down"), [(end_as_a_fork_does, False), (os.getpid, True)])
def test_a_spawned_rank_ends_without_taking_the_interpreter_down(
    end: Callable[[], None], taken_down: bool, tmp_path: Path
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_ends, args=(end, tmp_path / "later"))
    process.start()
    process.join(timeout=800)
    assert process.exitcode == 0
    assert (tmp_path / "later").exists() is taken_down
