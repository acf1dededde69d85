"""File system primitives of the store: locks between processes, durable and atomic writes, hashes.

Knows nothing of artifacts; every function takes plain paths.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.machine.disk import writing

POLL_S = 0.05
"""Seconds between two attempts of a waiting process to take the lock."""


@contextlib.contextmanager
def locked(
    path: Path, *, waiting: Callable[[], None] | None = None, stopping: Callable[[], bool] | None = None
) -> Iterator[None]:
    """Hold an exclusive `flock` between processes; the system releases it when the process dies.

    Polls instead of blocking, for two reasons: a signal handler can end the wait, and the holder may remove the lock's
    folder, after which the lock is the new file of that name.

    Args:
        path: lock file; it and its folder are created.
        waiting: called once if another process holds the lock.
        stopping: called at every attempt; true ends the wait.

    Raises:
        InterruptedError: ``stopping`` returned true.
    """
    announced = False
    while (lock := _try_lock(path)) is None:
        if waiting is not None and not announced:
            waiting()
        announced = True
        if stopping is not None and stopping():
            raise InterruptedError(f"stopped while waiting for {path}")
        time.sleep(POLL_S)
    try:
        yield
    finally:
        os.close(lock)


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock."""
    if not path.is_file():
        return False
    lock = _try_lock(path)
    if lock is None:
        return True
    os.close(lock)
    return False


def _try_lock(path: Path) -> int | None:
    """Return a file descriptor that holds the lock; None when another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except FileNotFoundError:  # the holder removed the folder between the two calls
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def flush(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(root: Path) -> None:
    """Flush everything below ``root`` to disk, files before the directories that contain them."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            flush(Path(folder, name))
        flush(Path(folder))


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file atomically and flush it to disk: readers see the old content or the new."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        flush(path.parent)


def open_as_usual(root: Path, like: Path) -> None:
    """Give everything below ``root`` the permissions of ``like``, a file created under the user's umask.

    Libraries write through temporary files that only their owner may read. Whoever may read a folder may also enter it;
    its special bits (setgid) stay.
    """
    mode = stat.S_IMODE(like.stat().st_mode) & 0o666
    for folder, _, names in os.walk(root):
        special = stat.S_IMODE(Path(folder).stat().st_mode) & ~0o777
        Path(folder).chmod(special | mode | (mode & 0o444) >> 2)
        for name in names:
            Path(folder, name).chmod(mode)


def move(source: Path, target: Path) -> None:
    """Rename within one file system, and flush the target's folder to disk."""
    source.rename(target)
    flush(target.parent)


def bury(path: Path, graveyard: Path) -> None:
    """Move a folder atomically into the graveyard, which `Store.sweep` empties later."""
    graveyard.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.rename(graveyard / uuid.uuid4().hex)


def has_files(folder: Path) -> bool:
    """Return whether ``folder`` exists and contains a file at any depth."""
    return any(files for _, _, files in os.walk(folder))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def payload_files(root: Path) -> dict[str, Path]:
    """Return every file below ``root`` by its relative POSIX path, sorted.

    Raises:
        ValueError: an entry is neither a regular file nor a folder.
    """
    files: dict[str, Path] = {}
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(folder, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ValueError(f"`{path.relative_to(root).as_posix()}` is not a plain file or folder")
        files.update({Path(folder, name).relative_to(root).as_posix(): Path(folder, name) for name in names})
    return dict(sorted(files.items()))


def payload_bytes(root: Path) -> int:
    """Return the total size of all files below ``root`` in bytes; 0 when it does not exist."""
    return sum(Path(folder, name).lstat().st_size for folder, _, names in os.walk(root) for name in names)


def is_pickle(path: Path) -> bool:
    """Return whether a file's content is a pickle, or a zip archive with one in it, as `torch.save` writes.

    A safetensors file never counts: its first bytes are a length, which may look like the head of a pickle.
    """
    if path.suffix == ".safetensors":
        return False
    with path.open("rb") as file:
        head = file.read(2)
    if head == b"PK":
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    return len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5
