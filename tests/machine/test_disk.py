"""What a disk says, in one sentence. The disks are real: one is full, one read-only, one another user's."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from disks import mounted, remount

from pipeline.artifacts import Store
from pipeline.artifacts.files import write_durably
from pipeline.errors import ExitCode
from pipeline.machine.disk import CannotWrite, disk_problem, exit_code_of, keep_if_possible, writing

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


def told_another_user(folder: Path, touch: Callable[[], Any]) -> str:
    """Do something in a folder as a user who owns none, and return what is said; root may do everything."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)  # the folders above it may be closed
            if os.geteuid() == 0:
                os.setuid(65534)
            with writing("."):
                touch()
        except CannotWrite as error:
            os.write(writes, f"{int(error.exit_code)} {error}".encode())
        except BaseException as error:
            os.write(writes, repr(error).encode())
        os._exit(0)
    os.close(writes)
    os.waitpid(child, 0)
    with os.fdopen(reads) as said:
        return said.read()


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder of files that another user may not write, not read, or neither, and of a folder not to enter."""
    modes = {"locked": 0o000, "readable": 0o444, "writable": 0o222}
    for name, mode in modes.items():
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    (tmp_path / "below").mkdir(mode=0o000)
    tmp_path.chmod(0o555)
    try:
        yield tmp_path
    finally:
        tmp_path.chmod(0o755)
        (tmp_path / "below").chmod(0o755)


ASK = "Ask for the permission, or name another place"


@pytest.mark.parametrize(
    ("name", "touch", "said"),
    [
        ("new", Path.touch, "may not write new"),
        ("readable", lambda file: file.open("w"), "may not write readable"),
        ("writable", Path.read_bytes, "may not read writable"),
        ("locked", Path.read_bytes, "may not read or write locked"),
        ("below", lambda folder: list(folder.iterdir()), "may not read or write below"),
        ("below/file", Path.read_bytes, "may not look into below"),
    ],
)
def test_what_this_user_may_not_do_is_said_and_bad_input(
    name: str, touch: Callable[[Path], Any], said: str, closed: Path
) -> None:
    told = told_another_user(closed, lambda: touch(Path(name)))
    assert told == f"{int(ExitCode.BAD_INPUT)} this user {said}. {ASK}"


GONE = "the file system of {at} is gone. Mount it again and run the same command again"
BROKEN = "the disk of {at} has an input/output error. Look into the system's log, then run again"
SENTENCES = {
    errno.EDQUOT: "the quota on the disk of {at} is used up. Free some room and run the same command again",
    errno.ESTALE: GONE,
    errno.ENOTCONN: GONE,
    errno.ENODEV: GONE,
    errno.EIO: BROKEN,
    errno.EFBIG: "a file in {at} is larger than this process may write. Raise `ulimit -f`",
    errno.EMFILE: "this process may not open more files ({at}). Raise `ulimit -n`",
}


@pytest.mark.parametrize("number", SENTENCES, ids=errno.errorcode.get)
def test_what_cannot_be_made_here_is_worded_too(number: int, tmp_path: Path) -> None:
    """Each by itself, with the file that the system names, and wrapped by a library without a number."""
    file = tmp_path / "weights"
    for error, at in (
        (OSError(number, os.strerror(number)), tmp_path),
        (OSError(number, os.strerror(number), str(file)), file),
        (RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})"), tmp_path),
    ):
        with pytest.raises(CannotWrite) as told, writing(tmp_path):
            raise error
        assert str(told.value) == SENTENCES[number].format(at=at)
        assert told.value.exit_code == ExitCode.FAILED  # of the moment: the same command may work later


def test_a_quota_says_what_is_needed_and_not_what_the_disk_has(tmp_path: Path) -> None:
    told = str(disk_problem(OSError(errno.EDQUOT, "Disk quota exceeded"), tmp_path, needed=3 * MIB))
    assert "is used up: about 3.0 MiB are needed. " in told and " free. " not in told


def test_a_disk_that_holds_no_further_file_says_so(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "2m,nr_inodes=4") as folder:
        with pytest.raises(CannotWrite) as error, writing(folder):
            for name in "abcdef":
                (folder / name).touch()
        assert "is full: it holds 4 files, as many as it can. Delete some" in str(error.value)


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


def test_a_place_that_is_wrong_is_bad_input(tmp_path: Path) -> None:
    """A link to a disk that is gone stands where a folder is to be made; links lead to one another; no locks."""
    (tmp_path / "gone").symlink_to(tmp_path / "not mounted")
    (tmp_path / "one").symlink_to(tmp_path / "two")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    no_locks = OSError(errno.ENOLCK, "No locks available", str(tmp_path / "lock"))
    for touch, said in (
        ((tmp_path / "gone").mkdir, f"{tmp_path}/gone is a file, or a link to what is not there; expected a folder. "),
        ((tmp_path / "one" / "x").touch, f"the links of {tmp_path}/one/x lead round in a circle. "),
        (lambda: (_ for _ in ()).throw(no_locks), f"the file system of {tmp_path}/lock has no locks. "),
    ):
        with pytest.raises(CannotWrite) as told, writing(tmp_path):
            touch()
        assert str(told.value).startswith(said)
        assert told.value.exit_code == ExitCode.BAD_INPUT


@pytest.fixture
def narrow_umask() -> Iterator[None]:
    """Files are for their user and the group."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_what_only_saves_time_may_be_read_by_who_shares_the_folder(tmp_path: Path, narrow_umask: None) -> None:
    from pipeline.plan.folders import folder_digest
    from pipeline.records.digests import DigestCache

    rows = tmp_path / "model" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text('{"text": "a"}\n', encoding="utf-8")
    os.utime(rows, (0, 0))
    time.sleep(0.2)  # a file that was just made is not remembered
    folder_digest(rows.parent, tmp_path / "cache")
    digests = DigestCache(tmp_path / "cache")
    digests.digest(rows)
    digests.save()
    keep_if_possible(tmp_path / "cache" / "bytes", b"\x00\x01")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "cache").iterdir()}
    assert modes == {"folder-digests.json": 0o640, "data-digests.json": 0o640, "bytes": 0o640}


def test_what_only_saves_time_is_whole_whoever_else_writes_it_and_refused_unsaid(tmp_path: Path) -> None:
    texts = [f"{number}" * 200_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: keep_if_possible(tmp_path / "cache" / "known.json", text), texts * 4))
    (kept,) = (tmp_path / "cache").iterdir()  # and no part of one is left
    assert kept.read_text(encoding="utf-8") in texts
    keep_if_possible(kept / "below a file", "lost")
    assert kept.read_text(encoding="utf-8") in texts


def test_nobody_else_makes_files_that_only_their_user_may_read() -> None:
    """`tempfile` makes them so; what is kept goes through `keep_if_possible` or `write_durably`."""
    pipeline = Path(__file__).parents[2] / "pipeline"
    assert [str(file) for file in pipeline.rglob("*.py") if "mkstemp" in file.read_text(encoding="utf-8")] == []
