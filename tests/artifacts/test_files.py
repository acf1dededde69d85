"""Locks, and files replaced in one step."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from pipeline.artifacts.files import is_locked, locked, write_durably


def test_a_lock_is_held_and_let_go(tmp_path):
    lock = tmp_path / "area" / "lock"
    assert not is_locked(lock)
    with locked(lock):
        assert is_locked(lock)
    assert not is_locked(lock)


def test_a_lock_whose_folder_its_last_holder_removes_is_taken_anew(tmp_path):
    """Between opening the file and locking it, its folder may go: the lock of a file without a name guards nothing."""
    lock = tmp_path / "area" / "lock"
    child = os.fork()
    if child == 0:
        removed = False

        def audit(event: str, args: tuple[object, ...]) -> None:
            nonlocal removed
            if event == "fcntl.flock" and not removed:
                removed = True
                shutil.rmtree(lock.parent)

        sys.addaudithook(audit)
        with locked(lock):
            os._exit(0 if removed and lock.is_file() and is_locked(lock) else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_write_that_fails_leaves_the_old_content_and_no_litter(tmp_path):
    file = tmp_path / "tags.json"
    write_durably(file, b"old")
    with pytest.raises(TypeError):
        write_durably(file, "not bytes")  # type: ignore[arg-type]
    assert file.read_bytes() == b"old"
    write_durably(file, b"new")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["tags.json"]
    assert file.read_bytes() == b"new"
