"""Disk errors as one-sentence problems: disk full, quota, read-only, no permission, file system gone.

Owns the translation of I/O errors, however deep a library has wrapped them, into a problem with the path and the
missing space, and the writing of files whose failure is ignored. Knows nothing of the content of files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import ExitCode, PipelineError, Problem

GIVEN = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ENOENT),
    *(errno.EEXIST, errno.ELOOP, errno.ENOLCK),
)
"""Errors of the path itself, which would fail again: bad input. All others are temporary failures."""

_FREE = "free some room and run the same command again"
_ASK = "ask for the permission, or name another place"
_MOUNT = "mount it again and run the same command again"
_LOOK = "look into the system's log, then run again"
_SAID: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk of {path} is full", _FREE),
    errno.EDQUOT: ("the quota on the disk of {path} is used up", _FREE),
    errno.EFBIG: ("a file in {path} is larger than this process may write", "raise `ulimit -f`"),
    errno.EROFS: ("{path} is on a read-only file system", "mount it to be written, or name another place"),
    errno.EACCES: ("this user may not {do} {path}", _ASK),
    errno.EPERM: ("this user may not {do} {path}", _ASK),
    errno.ENAMETOOLONG: ("the name {path} is too long for its file system", "give a shorter one"),
    errno.ENOTDIR: ("a part of {path} is a file, not a folder", "name another place"),
    errno.EISDIR: ("{path} is a folder; expected a file", "name a file"),
    errno.EEXIST: ("{path} is a file, or a link to what is not there; expected a folder", "mount it, or take it away"),
    errno.ELOOP: ("the links of {path} lead round in a circle", "mend them, or name another place"),
    errno.ENOLCK: ("the file system of {path} has no locks", "name a place on another one"),
    errno.ESTALE: ("the file system of {path} is gone", _MOUNT),
    errno.ENOTCONN: ("the file system of {path} is gone", _MOUNT),
    errno.ENODEV: ("the file system of {path} is gone", _MOUNT),
    errno.ENOENT: ("{path} is not there and cannot be made, or is there no more", "mount it, or name another place"),
    errno.EIO: ("the disk of {path} has an input/output error", _LOOK),
    errno.EMFILE: ("this process may not open more files ({path})", "raise `ulimit -n`"),
}
_NUMBER = re.compile(r"(?:os error |\[Errno )(\d+)")
_WORDS = {
    "No space left on device": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "readonly database": errno.EROFS,
    "disk I/O error": errno.EIO,
}
"""Error messages of native libraries that contain no error number."""
_TORCH = ("PytorchStreamWriter failed", "inline_container")
"""Parts of torch's error messages when a checkpoint cannot be written; they do not contain the reason."""
PROBE_BYTES = 1 << 20


class _Cause(NamedTuple):
    number: int
    path: str


class CannotWrite(PipelineError):  # noqa: N818 -- says what happened to a file
    """A disk error prevented a write."""


def disk_problem(error: BaseException, at: Path | str, *, needed: int | None = None) -> Problem | None:
    """Describe a disk error as a problem; return None when the error is not a disk error.

    Args:
        error: any exception; its causes are searched too.
        at: folder that was written to, used when the error names no file.
        needed: bytes that were to be written, if known.
    """
    cause = _cause(error, Path(at))
    if cause is None:
        return None
    path = cause.path or str(at)
    said, remedy = _SAID[cause.number]
    do, path = _denied(path) if "{do}" in said else ("", path)
    statement = said.format(do=do, path=path if len(path) <= 160 else f"{path[:157]}…")
    if cause.number == errno.ENOSPC and (files := _most_files(Path(path))):
        return Problem(
            f"{statement}: it holds {files:,} files, as many as it can", remedy="delete some and run it again"
        )
    room = _room(Path(path), needed, own=cause.number == errno.ENOSPC) if remedy == _FREE else ""
    return Problem(f"{statement}: {room}" if room else statement, remedy=remedy)


def exit_code_of(error: BaseException, at: Path | str) -> ExitCode:
    """Return the exit code of a command after a disk error."""
    cause = _cause(error, Path(at))
    return ExitCode.BAD_INPUT if cause is not None and cause.number in GIVEN else ExitCode.FAILED


@contextlib.contextmanager
def writing(at: Path | str) -> Iterator[None]:
    """Convert disk errors raised while ``at`` is written to `CannotWrite`; other errors pass unchanged.

    Raises:
        CannotWrite: a disk error occurred.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        problem = disk_problem(error, at)
        if problem is None:
            raise
        raise CannotWrite(problem, exit_code=exit_code_of(error, at)) from error


def keep_if_possible(file: Path, content: str | bytes) -> OSError | None:
    """Replace a cache file atomically; a disk error is not raised, since the file only saves time.

    Each process writes a temporary file of its own name, with the permissions of the user's umask.

    Returns:
        The disk error, for a caller that says it; None if the file was written.
    """
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:  # a write that matters reports the disk error
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        return error
    return None


def _cause(error: BaseException, at: Path) -> _Cause | None:
    seen: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in seen:
        seen.append(current)
        number = current.errno if isinstance(current, OSError) else _told_number(str(current))
        if number == errno.ENOENT and not _is_folder(at):
            return _Cause(number, str(at))
        if number in _SAID and number is not None and number != errno.ENOENT:
            name: Any = getattr(current, "filename2", None) or getattr(current, "filename", None)
            return _Cause(number, os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else "")
        current = current.__cause__ or current.__context__
    if any(word in str(one) for one in seen for word in _TORCH):
        return _Cause(_tried(at), "")
    return None


def _told_number(text: str) -> int | None:
    match = _NUMBER.search(text)
    if match:
        return int(match[1])
    return next((number for words, number in _WORDS.items() if words in text), None)


def _tried(at: Path) -> int:
    """Write a probe file of one megabyte and return its error number; ENOSPC when the probe succeeds."""
    probe = _standing(at) / f".probe-{os.getpid()}"
    try:
        with probe.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno if error.errno in _SAID else errno.ENOSPC
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return errno.ENOSPC


def _standing(path: Path) -> Path:
    """Return the folder itself or its nearest parent that exists."""
    return next((each for each in (path, *path.parents) if _is_folder(each)), Path("/"))


def _is_folder(path: Path) -> bool:
    """Return whether a folder exists; false on a file system that is gone."""
    return os.path.isdir(path)  # noqa: PTH112 -- `Path.is_dir` raises there


def _denied(path: str) -> tuple[str, str]:
    """Return the operation this user lacks permission for, and the path, which may be a parent folder."""
    if os.path.lexists(path):
        may = {do: os.access(path, mode) for do, mode in (("read", os.R_OK), ("write", os.W_OK))}
        denied = [do for do, is_allowed in may.items() if not is_allowed]
        return " or ".join(denied) or "change", path
    above = _standing(Path(path))
    return ("write", path) if os.access(above, os.X_OK) else ("look into", str(above))


def _most_files(path: Path) -> int:
    """Return the number of inodes of a disk that has none free; 0 for any other disk."""
    with contextlib.suppress(OSError):
        disk = os.statvfs(_standing(path))
        return disk.f_files if disk.f_favail == 0 else 0
    return 0


def _room(path: Path, needed: int | None, *, own: bool) -> str:
    """Describe the free space of a disk, and the space needed if it is known.

    Args:
        path: a file or folder on the disk.
        needed: bytes needed.
        own: whether the disk itself is full; the free space of a disk says nothing about a quota.
    """
    with contextlib.suppress(OSError):
        if not own:
            return f"about {_size(needed)} are needed" if needed else ""
        usage = shutil.disk_usage(_standing(path))
        has = f"{_size(usage.free)} of {_size(usage.total)} are free"
        return has + (f" and about {_size(needed)} are needed" if needed else "")
    return f"about {_size(needed)} are needed" if needed else ""


def _size(count: int) -> str:
    for unit, step in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} B"
