"""Hashes the content of a data source; only its rows change the digest.

Owns the canonical form of a row, the digest of files, and the cache of digests. Knows nothing of row formats: every
column counts, also those a stage does not use.

A file's digest hashes its rows in their order, each as JSON with sorted keys, so white space, key order, compression
and the choice between JSON Lines and a JSON list do not count. A source's digest hashes the sorted digests of its
files, so their order and names do not count.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.machine.disk import keep_if_possible
from pipeline.plain_data import JsonObject
from pipeline.records.files.opening import RawRow, shown
from pipeline.records.files.reader import NoRowsError, read_rows
from pipeline.records.sources import Source, files_of, hub_place

VERSION = 1
"""Raised when the digest of the same rows changes; cached digests of other versions are not used."""

SETTLED_S = 0.1
"""Seconds since its last change before a file is cached: two changes in one tick of the clock look like one."""


@dataclass(frozen=True)
class DataDigest:
    """The digest of a source and its size.

    Attributes:
        digest: 64 hex digits; for a hub source of its id, revision, subset and split, not of its rows.
        rows: number of rows, bad ones included; 0 for a hub source, which is not read.
        bytes: size of the files on disk.
        where: absolute paths of the files, or the id on the hub.
        empty: files without rows, as messages show them; they do not enter the digest.
    """

    digest: str
    rows: int
    bytes: int
    where: list[str]
    empty: tuple[str, ...] = ()


class FileDigest(NamedTuple):
    """The digest of one file and its number of rows."""

    digest: str
    rows: int


def digest(source: Source, *, cache: Path | None, artifact: Path | None = None) -> DataDigest:
    """Return the digest of a source. Bad rows are no error here; their text is hashed.

    Args:
        source: where the rows are.
        cache: folder for the cached digests of unchanged files; None reads every file.
        artifact: payload folder, when the source names an artifact.

    Raises:
        PipelineError: a file cannot be read, or none holds a row.
    """
    if source.hub is not None:
        return DataDigest(hub_digest(source), 0, 0, [hub_place(source)])
    files = files_of(source, artifact)
    digest_cache = DigestCache(cache)
    digests = {path: digest_cache.digest(path) for path in files}
    digest_cache.save()
    size_bytes = sum(path.stat().st_size for path in files)
    where = sorted(str(path) for path in files)
    rows = sum(one.rows for one in digests.values())
    if not rows:
        raise NoRowsError(files[0])
    empty = tuple(shown(path) for path, one in digests.items() if not one.rows)
    return DataDigest(combined(one.digest for one in digests.values() if one.rows), rows, size_bytes, where, empty)


def hub_digest(source: Source) -> str:
    """Return the digest of a hub source: the hash of its id, so that a plan needs no download."""
    return hashlib.sha256(hub_place(source).encode()).hexdigest()


def combined(digests: Iterable[str]) -> str:
    """Return the joint digest of several files, independent of their order."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def file_digest(path: Path) -> FileDigest:
    """Return the digest of a file and its number of rows.

    Raises:
        PipelineError: it cannot be read.
    """
    try:
        return digest_of(read_rows(path))
    except NoRowsError:
        return FileDigest(digest_of(()).digest, 0)


def digest_of(rows: Iterable[RawRow]) -> FileDigest:
    """Return the digest of the rows of one file."""
    content = hashlib.sha256()
    count = 0
    for row in rows:
        content.update(canonical(row))
        count += 1
    return FileDigest(content.hexdigest(), count)


def canonical(row: RawRow) -> bytes:
    """Return the canonical form of a row: a line of JSON with sorted keys; of an unreadable row, its text."""
    text = _ENCODER.encode(row.value) if row.value is not None else "!" + _ENCODER.encode(row.raw)
    return text.encode("ascii") + b"\n"


def _plain(value: object) -> str:
    """Return the text of a value that Parquet has and JSON has not (date, bytes, decimal)."""
    return value.hex() if isinstance(value, bytes) else str(value)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_plain)


class DigestCache:
    """Digests of files that have not changed, in one small JSON file that is replaced atomically.

    A file is unchanged when path, size, mtime, ctime and inode are; a writer cannot set ctime back.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = folder / "data-digests.json" if folder else None
        self._known = self._read()
        self._new: dict[str, list[Any]] = {}

    def digest(self, path: Path) -> FileDigest:
        """Return the digest of a file, from the cache if the file is unchanged."""
        if self._file is None or not path.exists():
            return file_digest(path)
        key, stamp = str(path), _stamp(path)
        known = self._known.get(key)
        if isinstance(known, list) and len(known) == 6 and known[:4] == stamp:
            return FileDigest(str(known[4]), int(known[5]))
        fresh = file_digest(path)
        is_settled = time.time_ns() - max(stamp[1], stamp[2]) > SETTLED_S * 1e9
        if is_settled and _stamp(path) == stamp:
            self._new[key] = [*stamp, fresh.digest, fresh.rows]
        return fresh

    def save(self) -> None:
        """Merge new digests into the cache file; an entry lost to a concurrent write is only computed again."""
        if self._file is None or not self._new:
            return
        files = {**self._read(), **self._new}
        keep_if_possible(self._file, json.dumps({"version": VERSION, "files": files}))

    def _read(self) -> JsonObject:
        if self._file is None:
            return {}
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            files = content["files"] if content["version"] == VERSION else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return files if isinstance(files, dict) else {}


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
