"""A cache of servers' replies: one SQLite file of a store, shared by all stages and processes.

Owns the file. Only replies that are of use are put into it, each batch in one transaction: a process that is killed
loses at most the batch it was writing, and the file stays whole.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar, cast

from pipeline.errors import PipelineError, Problem
from pipeline.machine.disk import writing

VERDICTS, ANSWERS = ".judge", ".endpoints"
"""Folders of a store: replies to judges, and answers to prompts."""

FILE = "replies.db"
"""Name of the file in its folder."""

ReplyT = TypeVar("ReplyT")

_AT_ONCE = 500
_WAIT_S = 60.0
"""Longest time to wait for another process that writes."""


class ReplyCache(Generic[ReplyT]):
    """Replies by the key of their request.

    Args:
        folder: folder of the file.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE

    def known(self, keys: Sequence[str]) -> dict[str, ReplyT]:
        """Return the cached replies of requests."""
        if not self.file.is_file():
            return {}
        replies: dict[str, ReplyT] = {}
        with self._open("rw") as database:
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'replies'").fetchone():
                return {}  # a process was killed as it made the file
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                rows = database.execute(f"SELECT key, reply FROM replies WHERE key IN ({marks})", some)
                replies |= {str(key): cast(ReplyT, json.loads(reply)) for key, reply in rows}
        return replies

    def put(self, replies: Mapping[str, ReplyT]) -> None:
        """Add replies; they are on disk when this returns.

        Raises:
            PipelineError: the file cannot be written, or is no such cache.
        """
        if not replies:
            return
        with writing(self.file.parent):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self._open("rwc") as database, database:
                database.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
                database.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?)", _rows(replies.items()))

    @contextlib.contextmanager
    def _open(self, mode: str) -> Iterator[sqlite3.Connection]:
        address = f"{self.file.absolute().as_uri()}?mode={mode}"
        try:
            with contextlib.closing(sqlite3.connect(address, uri=True, timeout=_WAIT_S)) as database:
                yield database
        except sqlite3.OperationalError:
            raise  # the disk, or another process: no fault of the file
        except sqlite3.DatabaseError as error:
            statement = f"{self.file} is no cache of replies ({error})"
            raise PipelineError(
                Problem(statement, "a SQLite file", "move it away; its replies are asked anew")
            ) from None


def _rows(replies: Iterable[tuple[str, object]]) -> Iterator[tuple[str, str]]:
    return ((key, json.dumps(reply, ensure_ascii=False, separators=(",", ":"))) for key, reply in replies)
