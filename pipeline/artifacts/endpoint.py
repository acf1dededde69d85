"""A remote folder behind an fsspec URL, and the errors of reaching it.

Owns the choice of the file system and the wording of its errors. Knows nothing of artifacts. fsspec is imported when
an endpoint is opened, so that local commands start faster.

The address and credentials of a service come from its own environment variables: for S3 those of AWS
(`AWS_ENDPOINT_URL`, `AWS_PROFILE`, `AWS_ACCESS_KEY_ID`, …) and those of fsspec (`FSSPEC_S3_ENDPOINT_URL`,
`FSSPEC_S3_ANON`, …).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import ExitCode, PipelineError, Problem
from pipeline.machine.disk import CannotWrite, disk_problem, exit_code_of

BLOCK_BYTES = 8 * 2**20
"""Bytes per request, and so the most that a killed transfer has to fetch again of a file."""

UNKNOWN = -1
"""Size of a file whose server does not report one, as happens with web servers."""

EXTRAS = {"s3": "s3", "s3a": "s3"}
"""Extra of this package that installs a protocol's file system, by protocol."""

_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "memory"})
"""Protocols without real folders: creating a folder would create a bucket."""


class Endpoint:
    """A remote folder; the paths of all methods are relative to it, with `/` between parts.

    Attributes:
        url: the URL without its user and password, for messages.
    """

    def __init__(self, url: str) -> None:
        self.url = re.sub(r"(?<=//)[^/@]*@", "", url.rstrip("/"))
        self._fs, self._root = _open(url, self.url)
        self._root = self._root.rstrip("/")

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the size in bytes of every file below ``folder``, by path; `UNKNOWN` when the remote reports none."""
        root = f"{self._root}/{folder}"
        with self._reaching(folder):
            self._fs.invalidate_cache()
            entries = _unless_missing(lambda: self._fs.find(root, detail=True), {})
        start = len(self._fs._strip_protocol(root)) + 1
        return {
            path[start:]: UNKNOWN if info["size"] is None else int(info["size"])
            for path, info in entries.items()
            if len(path) > start
        }

    def children(self, folder: str) -> list[str]:
        """Return the names directly in ``folder``, sorted; empty when there is no such folder."""
        with self._reaching(folder):
            self._fs.invalidate_cache()
            paths = _unless_missing(lambda: self._fs.ls(f"{self._root}/{folder}".rstrip("/"), detail=False), [])
        return sorted({str(path).rstrip("/").rpartition("/")[2] for path in paths})

    def read(self, path: str) -> bytes | None:
        """Return a small file's content, or None when it does not exist."""
        with self._reaching(path):
            content: bytes | None = _unless_missing(lambda: self._fs.cat_file(f"{self._root}/{path}"), None)
        return content

    def write(self, path: str, content: bytes) -> None:
        """Write a small file atomically."""
        target = f"{self._root}/{path}"
        with self._reaching(path):
            self._make_parent(target)
            if self._protocols & _OBJECT_STORES:  # an object store shows an object only once it is complete
                self._fs.pipe_file(target, content)
                return
            self._fs.pipe_file(f"{target}.part", content)
            self._fs.mv(f"{target}.part", target)

    def send(self, local: Path, path: str) -> None:
        """Upload a file."""
        target = f"{self._root}/{path}"
        with self._reaching(path):
            self._make_parent(target)
            self._fs.put_file(str(local), target)

    def sha256(self, path: str, size_bytes: int) -> str:
        """Read a remote file and return the SHA-256 of its content."""
        digest = hashlib.sha256()
        for block in self._blocks(path, 0, size_bytes):
            digest.update(block)
        return digest.hexdigest()

    def receive(self, path: str, part: Path, size_bytes: int, moved: Callable[[int], None]) -> None:
        """Download a file, resuming from the bytes that ``part`` already has.

        Args:
            path: path of the remote file.
            part: local file to append to.
            size_bytes: size of the complete file.
            moved: called with the number of bytes of each block after it is in ``part``.
        """
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            if file.tell() > size_bytes:
                file.truncate(0)
            for block in self._blocks(path, file.tell(), size_bytes):
                file.write(block)
                file.flush()
                moved(len(block))

    def _blocks(self, path: str, start: int, size_bytes: int) -> Iterator[bytes]:
        while start < size_bytes:
            with self._reaching(path):
                stop = min(start + BLOCK_BYTES, size_bytes)
                block: bytes = self._fs.cat_file(f"{self._root}/{path}", start=start, end=stop)
            yield block
            if len(block) < stop - start:
                return  # the file is truncated: the check of its hash reports it
            start = stop

    @property
    def _protocols(self) -> set[str]:
        protocol = self._fs.protocol
        return {protocol} if isinstance(protocol, str) else set(protocol)

    def _make_parent(self, target: str) -> None:
        if not self._protocols & _OBJECT_STORES:
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)

    @contextlib.contextmanager
    def _reaching(self, path: str) -> Iterator[None]:
        """Convert any error of a file system to a `PipelineError`; each file system raises its own error types."""
        try:
            yield
        except PipelineError:
            raise
        except Exception as error:
            if "file" in self._protocols and (problem := disk_problem(error, f"{self._root}/{path}")) is not None:
                raise CannotWrite(problem, exit_code=exit_code_of(error, self._root)) from error
            raise PipelineError(_unreachable(error, f"{self.url}/{path}"), exit_code=ExitCode.FAILED) from error


def _unless_missing(ask: Callable[[], Any], otherwise: object) -> Any:
    try:
        return ask()
    except (FileNotFoundError, NotADirectoryError):
        return otherwise


def _unreachable(error: Exception, location: str) -> Problem:
    reason = str(error).strip().splitlines()
    statement = f"{type(error).__name__}: {reason[0]}" if reason else type(error).__name__
    if isinstance(error, PermissionError) or "Credentials" in type(error).__name__:
        return Problem(
            f"access refused: {statement}", remedy="check the credentials and the rights they give", where=location
        )
    if isinstance(error, FileNotFoundError):
        return Problem(f"not there: {statement}", remedy="check that the bucket or folder exists", where=location)
    return Problem(statement, remedy="run the command again: what has arrived is not moved twice", where=location)


def _open(url: str, shown: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it.

    Raises:
        PipelineError: unknown protocol, a package is missing, or the URL is malformed.
    """
    from fsspec.core import url_to_fs  # slow to load; a folder needs none of it

    protocol = url.partition("://")[0] if "://" in url else "file"
    try:
        fs, root = url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        remedy = f"pip install 'trueup[{extra}]'" if extra else str(error)
        raise PipelineError(
            Problem(f"{protocol}:// needs a package that is not installed", remedy=remedy, where=shown)
        ) from None
    except ValueError as error:
        raise PipelineError(Problem(str(error), "a folder, or a URL such as s3://bucket/folder", where=shown)) from None
    return fs, root
