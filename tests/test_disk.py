"""What a disk says, in one sentence. The disks are real: one is full, one read-only, one another user's."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from disks import mounted, remount

from pipeline.artifacts import Store
from pipeline.artifacts.files import write_durably
from pipeline.disk import CannotWrite, disk_problem, exit_code_of, writing
from pipeline.errors import ExitCode

MIB = 2**20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB, mounted for the test."""
    with mounted(tmp_path / "disk", "2m") as folder:
        yield folder


def _fill_sqlite(folder: Path) -> None:
    connection = sqlite3.connect(folder / "a.db")
    connection.execute("create table t (x)")
    connection.execute("insert into t values (?)", (bytes(4 * MIB),))
    connection.commit()


WRITERS: dict[str, Callable[[Path], Any]] = {
    "python": lambda folder: (folder / "a").write_bytes(bytes(4 * MIB)),
    "the store": lambda folder: write_durably(folder / "a", bytes(4 * MIB)),
    "torch": lambda folder: torch.save({"a": torch.zeros(MIB)}, folder / "a.pt"),
    "safetensors": lambda folder: safetensors.torch.save_file({"a": torch.zeros(MIB)}, folder / "a.safetensors"),
    "sqlite": _fill_sqlite,
}


@pytest.mark.parametrize("who", WRITERS)
def test_a_full_disk_is_one_sentence_whoever_wrote(who: str, small_disk: Path) -> None:
    with pytest.raises(CannotWrite) as error, writing(small_disk):
        WRITERS[who](small_disk)
    assert error.value.exit_code == ExitCode.FAILED
    (problem,) = error.value.problems
    assert f"the disk of {small_disk}" in str(problem)
    assert "is full: " in str(problem)
    assert "of 2.0 MiB are free" in str(problem)
    assert "\n" not in str(problem)


def test_what_is_missing_is_said_where_it_is_known(small_disk: Path) -> None:
    (small_disk / "half").write_bytes(bytes(MIB))
    error = OSError(errno.ENOSPC, "No space left on device")
    # 2 MiB less the 1 MiB that is there.
    text = str(disk_problem(error, small_disk, needed=3 * MIB))
    assert "1.0 MiB of 2.0 MiB are free and about 3.0 MiB are needed" in text


def test_a_read_only_disk_is_bad_input(small_disk: Path) -> None:
    remount(small_disk, "ro")
    with pytest.raises(CannotWrite) as error, writing(small_disk):
        Store(small_disk / "store").lock().__enter__()
    assert error.value.exit_code == ExitCode.BAD_INPUT
    assert "is on a read-only file system" in str(error.value)


def test_a_folder_of_another_user_is_bad_input(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    child = os.fork()
    if child == 0:  # root may write everywhere, so the child is someone else
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            with writing(tmp_path):
                (tmp_path / "a").touch()
        except CannotWrite as error:
            os._exit(int(error.exit_code) if "this user may not write" in str(error) else 99)
        except BaseException:
            os._exit(98)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    tmp_path.chmod(0o755)
    assert os.waitstatus_to_exitcode(status) == ExitCode.BAD_INPUT


def test_a_name_that_is_too_long_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite) as error, writing(tmp_path):
        (tmp_path / ("a" * 300)).touch()
    assert error.value.exit_code == ExitCode.BAD_INPUT
    assert "too long" in str(error.value)
    assert len(str(error.value)) < 300


def test_what_it_was_raised_from_counts() -> None:
    try:
        try:
            with Path("/dev/full").open("w") as file:
                file.write("x")
        except OSError as cause:
            raise RuntimeError("the trainer could not save") from cause
    except RuntimeError as error:
        assert "the disk of /somewhere is full" in str(disk_problem(error, "/somewhere"))
        assert exit_code_of(error, "/somewhere") == ExitCode.FAILED


def test_an_error_of_something_else_passes(tmp_path: Path) -> None:
    assert disk_problem(ValueError("no"), tmp_path) is None
    assert disk_problem(FileNotFoundError(errno.ENOENT, "no", "x"), tmp_path) is None
    with pytest.raises(ConnectionRefusedError), writing(tmp_path):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
