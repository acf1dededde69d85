"""A run on a disk that fills up, that is read-only or gone: one sentence, and afterwards the same artifacts."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from disks import mounted, remount

from pipeline.artifacts import Store
from pipeline.errors import ExitCode

OFTEN = ("--set", "compute.checkpoint_every_s=0.001")
"""A checkpoint at every step: what is runtime cannot change the artifact."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1,200 KiB: room for a tokenizer and one checkpoint of the tiny model (553 KiB), not for two."""
    with mounted(tmp_path / "disk", "1200k") as folder:
        yield folder


def said(ended: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in (ended.stdout + ended.stderr).splitlines() if "the disk of" in line]


def test_a_run_that_filled_its_disk_goes_on_to_the_same_artifact(
    disk: Path, chain: Any, tiny_recipe: Path, call: Any
) -> None:
    line = ("run", tiny_recipe, "--until", "base", "--store", disk / "store", *OFTEN)
    ended = call(*line, cwd=disk.parent)
    assert ended.returncode == ExitCode.FAILED
    (told,) = said(ended)
    assert told.startswith(f"stage base: the disk of {disk}")
    assert "is full: " in told
    assert "are needed" in told  # what the checkpoint before took
    assert told.endswith("it goes on from the last whole checkpoint")
    assert "status 1" not in ended.stdout + ended.stderr
    remount(disk, "size=64m")
    again = call(*line, cwd=disk.parent)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resumes at step 1 of 60" in again.stdout
    (base,) = Store(disk / "store").artifacts("base")
    assert base.manifest.digest == chain["base"].manifest.digest


def test_processes_that_filled_their_disk_say_so(disk: Path, tiny_recipe: Path, call: Any) -> None:
    two = ("--set", "compute.processes=2")
    ended = call("run", tiny_recipe, "--until", "base", "--store", disk / "store", *OFTEN, *two, cwd=disk.parent)
    assert ended.returncode == ExitCode.FAILED
    (told,) = said(ended)
    assert re.match(r"stage base: rank [01]: the disk of ", told)  # whichever of the two meets it first
    assert "is full: " in told


def test_a_read_only_store_can_be_looked_at_and_not_run_in(disk: Path, tiny_recipe: Path, call: Any) -> None:
    (disk / "store").mkdir()
    remount(disk, "ro")
    for verb in (("check", tiny_recipe), ("plan", tiny_recipe), ("ls",)):
        ended = call(*verb, "--store", disk / "store", cwd=disk.parent)
        assert ended.returncode == 0, ended.stderr
    ended = call("run", tiny_recipe, "--store", disk / "store", cwd=disk.parent)
    assert ended.returncode == ExitCode.BAD_INPUT
    assert "is on a read-only file system" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_store_that_cannot_be_made_is_bad_input(tiny_recipe: Path, call: Any, tmp_path: Path) -> None:
    ended = call("run", tiny_recipe, "--store", "/proc/nowhere/store", cwd=tmp_path)
    assert ended.returncode == ExitCode.BAD_INPUT
    assert "/proc/nowhere/store is not there and cannot be made" in ended.stderr


def test_a_pull_and_a_push_say_whose_disk_is_full(disk: Path, tmp_path: Path, make_big: Callable[..., Any]) -> None:
    from pipeline.artifacts.remote import pull, push
    from pipeline.machine.disk import CannotWrite

    store = make_big(tmp_path / "store")
    with pytest.raises(CannotWrite, match=f"the disk of {disk}/remote.* is full: "):
        push(store, ["big"], str(disk / "remote"))
    push(store, ["big"], str(tmp_path / "remote"))
    with pytest.raises(CannotWrite, match=f"the disk of {disk}/here is full: "):
        pull(str(tmp_path / "remote"), ["big"], Store(disk / "here"))
    remount(disk, "size=64m")  # what arrived is kept, and it goes on
    assert pull(str(tmp_path / "remote"), ["big"], Store(disk / "here")).moved == ("big@v1",)


@pytest.fixture
def make_big() -> Callable[[Path], Store]:
    """Return a store with one artifact of 2 MiB."""

    def make(root: Path) -> Store:
        store = Store(root)
        with store.work("big", "b" * 64) as area:
            (area.payload / "rows.jsonl").write_bytes(b"x" * 2**21)
            area.commit(kind="sample", makes="data", inputs=[])
        return store

    return make
