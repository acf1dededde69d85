"""Anchors: heads of a ledger noted in the store, outside the database that holds the events.

A hash chain alone does not show that its end was removed, or that all of it was computed anew after a change. So the
head is noted in a line of a file at each export and whenever the app starts and stops, and in the manifest of each
artifact that is made of labels.

Needs no library, so that a listing of artifacts can say which of them are older than their labels.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections.abc import Sequence
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


@dataclass(frozen=True)
class Notes:
    """The lines of a store's anchors that concern a ledger.

    Attributes:
        anchors: the heads that are noted of it, oldest first.
        elsewhere: other ledgers of which a batch of this name is noted, each once.
        unreadable: numbers of the lines that are no notes.
    """

    anchors: Sequence[Anchor]
    elsewhere: Sequence[str] = ()
    unreadable: Sequence[int] = ()


def ledger_name(url: str, store: Path) -> str:
    """Return the name of a ledger in notes: its URL without a password; empty for the store's own, which moves with it.

    Args:
        url: SQLAlchemy URL.
        store: folder of the store.
    """
    if url.startswith("sqlite:///"):
        file = Path(url.removeprefix("sqlite:///")).absolute()
        return "" if file.resolve() == ledger_file(store.resolve()) else f"sqlite:///{file.resolve()}"
    return re.sub(r"(?<=://)([^@/:]*)(:[^@/]*)?@", r"\1@", url.partition("?")[0])


def note_head(store: Path, batch: str, event: int, head: str, url: str = "") -> None:
    """Append the head of a ledger to the store's anchors; the line is durable when this returns.

    Args:
        store: folder of the store.
        batch: name of the batch in the ledger.
        event: number of the last event.
        head: its hash.
        url: SQLAlchemy URL of the ledger; empty for the store's own.

    Raises:
        OSError: the store cannot be written.
    """
    if not event:
        return
    file = anchor_file(store)
    file.parent.mkdir(parents=True, exist_ok=True)
    name = ledger_name(url, store) if url else ""
    line = {"batch": batch, "event": event, "head": head, "at": time.time(), "ledger": name}
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")
        out.flush()
        os.fsync(out.fileno())


def noted_heads(store: Path, batch: str, url: str = "") -> Notes:
    """Return what is noted of a batch of a ledger; lines of older versions, which name no ledger, are of every one.

    Args:
        store: folder of the store.
        batch: name of the batch in the ledger.
        url: SQLAlchemy URL of the ledger; empty for the store's own.
    """
    file = anchor_file(store)
    if not file.is_file():
        return Notes(())
    name = ledger_name(url, store) if url else ""
    anchors, elsewhere, unreadable = [], [], []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            noted = json.loads(line)
            if noted["batch"] != batch:
                continue
            if noted.get("ledger", name) == name:
                anchors.append(Anchor(int(noted["event"]), str(noted["head"]), f"line {number} of {file.name}"))
            else:
                elsewhere.append(str(noted["ledger"]) or "the store's own")
        except (ValueError, KeyError, TypeError, AttributeError):
            unreadable.append(number)
    return Notes(anchors, list(dict.fromkeys(elsewhere)), unreadable)


def newer_answers(store: Path, batch: str, event: int, name: str = "") -> int | None:
    """Return the number of answers, undos, dropped and adjudicated items after an event of a ledger.

    Answers to gold items and repeats are none of them, since they change no row; but the flag of a repeat does.

    Args:
        store: folder of the store.
        batch: name of the batch in the ledger.
        event: number of the event.
        name: name of the ledger (`ledger_name`).

    Returns:
        The number; None of a ledger that is not a file, or of one that cannot be read.
    """
    if name and not name.startswith("sqlite:///"):
        return None
    file = Path(name.removeprefix("sqlite:///")) if name else ledger_file(store)
    if not file.is_file():
        return None
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
        return None
