"""Anchors: heads of a ledger noted in the store, outside the database that holds the events.

A hash chain alone does not show that its end was removed, or that all of it was computed anew after a change. So the
head is noted in a line of a file at each export and whenever the app starts and stops, and in the manifest of each
artifact that is made of labels.

Needs no library, so that a listing of artifacts can say which of them are older than their labels.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Anchor:
    """An event noted outside the database.

    Attributes:
        event: its number.
        head: its hash.
        source: where it is noted, for messages.
    """

    event: int
    head: str
    source: str


def ledger_file(store: Path) -> Path:
    """Return the file of a store's own ledger."""
    return store / ".labels" / "ledger.db"


def default_url(store: Path) -> str:
    """Return the URL of a store's own ledger, a SQLite file."""
    return f"sqlite:///{ledger_file(store.resolve())}"


def anchor_file(store: Path) -> Path:
    """Return the file of a store's anchors: one JSON object a line."""
    return store / ".labels" / "anchors.jsonl"


def note_head(store: Path, batch: str, event: int, head: str) -> None:
    """Append the head of a ledger to the store's anchors; the line is durable when this returns.

    Raises:
        OSError: the store cannot be written.
    """
    if not event:
        return
    file = anchor_file(store)
    file.parent.mkdir(parents=True, exist_ok=True)
    line = {"batch": batch, "event": event, "head": head, "at": time.time()}
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
        out.flush()
        os.fsync(out.fileno())


def noted_heads(store: Path, batch: str) -> list[Anchor]:
    """Return the anchors of a batch, oldest first; a line that was cut off is left out."""
    file = anchor_file(store)
    if not file.is_file():
        return []
    anchors = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            noted = json.loads(line)
            if noted["batch"] == batch:
                anchors.append(Anchor(int(noted["event"]), str(noted["head"]), f"line {number} of {file.name}"))
        except (ValueError, KeyError, TypeError):
            continue
    return anchors


def newer_answers(store: Path, batch: str, event: int) -> int:
    """Return the number of answers, undos, dropped and adjudicated items after an event, in the store's own ledger.

    Answers to gold items and repeats are none of them, since they change no row; but the flag of a repeat does.

    A ledger elsewhere, in PostgreSQL, is not asked: 0.
    """
    file = ledger_file(store)
    if not file.is_file():
        return 0
    question = (
        "SELECT count(*) FROM trueup_events WHERE batch = ? AND number > ? "
        "AND kind IN ('label', 'skip', 'flag', 'undo', 'drop', 'adjudicate') "
        """AND body NOT LIKE '%"item":"gold:%' """
        """AND (body NOT LIKE '%"item":"repeat:%' OR kind IN ('flag', 'undo'))"""
    )
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            return int(connection.execute(question, (batch, event)).fetchone()[0])
    except sqlite3.Error:
        return 0
