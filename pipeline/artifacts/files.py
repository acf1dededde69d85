"""What the store needs of a file system: locks between processes, writes that survive a power cut, hashes.

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

from pipeline.disk import writing

POLL_S = 0.05
"""How often a waiting process looks whether the lock is free."""


@contextlib.contextmanager
def locked(
    path: Path, *, waiting: Callable[[], None] | None = None, stopping: Callable[[], bool] | None = None
) -> Iterator[None]:
    """Hold an exclusive lock between processes; the system frees it when the process dies.

    Polls instead of blocking, so that a signal handler can end the wait, and because the holder may remove the
    lock's folder: then the lock that counts is the file which now has that name.

    Args:
        path: lock file; it and its folder are made.
        waiting: called once if another process holds the lock.
        stopping: asked at every look; true ends the wait.

    Raises:
        InterruptedError: ``stopping`` said so.
    """
    told = False
    while (lock := _try_lock(path)) is None:
        if waiting is not None and not told:
            waiting()
        told = True
        if stopping is not None and stopping():
            raise InterruptedError(f"stopped while waiting for {path}")
        time.sleep(POLL_S)
    try:
        yield
    finally:
        os.close(lock)


def is_locked(path: Path) -> bool:
    """Return whether some process holds the lock now."""
    if not path.is_file():
        return False
    lock = _try_lock(path)
    if lock is None:
        return True
    os.close(lock)
    return False


def _try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock, or None."""
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
    """Make a file's content, or a directory's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(root: Path) -> None:
    """Make everything below ``root`` durable, files before the directories that name them."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            flush(Path(folder, name))
        flush(Path(folder))


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file in one step: readers see the old content or the new, never a part."""
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
    """Give everything below ``root`` the permissions of a file made as usual, which the user's umask decides.

    Libraries write through temporary files that nobody else may read. Folders may be entered by whoever may read; what
    else their mode says (a group that is handed down) stays.
    """
    mode = stat.S_IMODE(like.stat().st_mode) & 0o666
    for folder, _, names in os.walk(root):
        special = stat.S_IMODE(Path(folder).stat().st_mode) & ~0o777
        Path(folder).chmod(special | mode | (mode & 0o444) >> 2)
        for name in names:
            Path(folder, name).chmod(mode)


def move(source: Path, target: Path) -> None:
    """Rename durably within one file system."""
    source.rename(target)
    flush(target.parent)


def bury(path: Path, graveyard: Path) -> None:
    """Make a folder invisible in one step; its space is freed when the graveyard is swept."""
    graveyard.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.rename(graveyard / uuid.uuid4().hex)


def has_files(folder: Path) -> bool:
    """Return whether ``folder`` exists and a file is in it, at any depth."""
    return any(files for _, _, files in os.walk(folder))


def sha256_of(path: Path) -> str:
    """Return the hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def payload_files(root: Path) -> dict[str, Path]:
    """Return relative POSIX path → file for everything below ``root``, sorted.

    Raises:
        ValueError: something there is neither a plain file nor a folder.
    """
    found: dict[str, Path] = {}
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(folder, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ValueError(f"`{path.relative_to(root).as_posix()}` is not a plain file or folder")
        found.update({Path(folder, name).relative_to(root).as_posix(): Path(folder, name) for name in names})
    return dict(sorted(found.items()))


def payload_bytes(root: Path) -> int:
    """Return the size of all files below ``root``; 0 when it does not exist."""
    return sum(Path(folder, name).lstat().st_size for folder, _, names in os.walk(root) for name in names)


def is_pickle(path: Path) -> bool:
    """Return whether a file's content is a pickle, or a zip archive with one in it, as `torch.save` writes.

    A safetensors file is never one: its first bytes are a length, which may look like a pickle's.
    """
    if path.suffix == ".safetensors":
        return False
    with path.open("rb") as file:
        head = file.read(2)
    if head == b"PK":
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    return len(head) == 2 and head[0] == 0x80 and 2 <= head[1] <= 5
