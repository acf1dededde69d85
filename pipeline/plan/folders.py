"""The content hash of a local model folder, cached until its files change.

Owns hashing files. Knows nothing of what a model is.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, Problem
from pipeline.machine.disk import keep_if_possible
from pipeline.plain_data import JsonObject

SETTLED_S = 0.1
"""Seconds since its last change before a file is cached: two changes in one tick of the clock look like one."""


def folder_digest(folder: Path, cache: Path | None) -> str:
    """Return the sha256 over the sorted ``path sha256`` lines of a folder's files, without hidden ones.

    Args:
        folder: the folder to hash.
        cache: folder for the cached hashes of unchanged files; None hashes every file.

    Raises:
        PipelineError: the folder has no files, or one cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
    if not files:
        raise PipelineError(Problem(f"folder `{folder}` is empty", "a folder with a model"))
    cache_file = cache / "folder-digests.json" if cache is not None else None
    known = _read(cache_file)
    lines = []
    fresh: dict[str, list[Any]] = {}
    for path in files:
        try:
            stamp = _stamp(path)
            entry = known.get(str(path))
            sha256 = entry[-1] if isinstance(entry, list) and entry[:-1] == stamp else _sha256(path)
        except OSError as error:
            raise PipelineError(Problem(f"`{path}` cannot be read: {error.strerror}")) from None
        if time.time_ns() - max(stamp[1], stamp[2]) > SETTLED_S * 1e9:
            fresh[str(path)] = [*stamp, sha256]
        lines.append(f"{path.relative_to(folder).as_posix()} {sha256}\n")
    if cache_file is not None and any(known.get(key) != value for key, value in fresh.items()):
        keep_if_possible(cache_file, json.dumps({**_read(cache_file), **fresh}))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(file: Path | None) -> JsonObject:
    if file is None:
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
