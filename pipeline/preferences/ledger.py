"""The ledger: an append-only, hash-chained log of the events of labelling.

One table in SQLite (a file) or PostgreSQL (a URL). The hash of an event covers the hash of the one before it, so that a
changed, removed or inserted row is detected. Labels are derived from the events (`labels.py`): an undo is one more
event, and an export can be repeated up to the same event.

Appends of all processes are serialized. Each append is one transaction, and is durable when it returns.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import sqlalchemy as sa
from pydantic_core import from_json
from sqlalchemy.engine import Connection, Engine

from pipeline.errors import PipelineError, Problem
from pipeline.machine.disk import CannotWrite, disk_problem, exit_code_of
from pipeline.preferences.anchors import Anchor
from pipeline.preferences.events import EventBody, LedgerEvent, NewEvent

_READER = "trueup_reader"
"""Execution option of a connection that only reads."""

GENESIS = "0" * 64
"""The hash before the first event of a batch."""

_LOCK = 0x7275_6C61
"""Key of the PostgreSQL advisory lock that serializes appends, also those of other servers."""

_REPLACED = "put back the database that was opened, or start the app again"

_METADATA = sa.MetaData()
_EVENTS = sa.Table(
    "trueup_events",
    _METADATA,
    sa.Column("batch", sa.String(200), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("kind", sa.String(40), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)


class _StoredEvent(NamedTuple):
    """An event as the database has it: `LedgerEvent`, with the text of its body."""

    number: int
    at: float
    kind: str
    body: str
    hash: str


_READ = tuple(_EVENTS.c[name] for name in _StoredEvent._fields)

Decide = Callable[[list[LedgerEvent]], NewEvent | Sequence[NewEvent] | None]
"""Returns kind and body of the next event, or of the next ones, given the events so far; None appends none."""


class LedgerUnavailable(PipelineError):  # noqa: N818 -- says what happened to the database
    """The database of the ledger cannot be used, now or ever."""


class Ledger:
    """The events of one batch of items.

    Args:
        url: SQLAlchemy URL: ``sqlite:////path/ledger.db`` or ``postgresql+psycopg://user:password@host/database``.
        batch: name of the batch, ``recipe/stage``.

    Raises:
        PipelineError: the database cannot be reached or written.
    """

    def __init__(self, url: str, batch: str) -> None:
        self.url, self.batch = url, batch
        with _database_errors(url):
            self._engine = _engine(url)
            # PostgreSQL reads one snapshot in one statement, so a reader needs no transaction there.
            is_file = self._engine.dialect.name == "sqlite"
            self._readers = self._engine.execution_options(
                **{_READER: True}, **({} if is_file else {"isolation_level": "AUTOCOMMIT"})
            )
            with self._engine.begin() as connection:
                _take_turns(connection)
                _METADATA.create_all(connection)

    def close(self) -> None:
        """Close the connections to the database."""
        self._engine.dispose()

    def append(self, decide: Decide, after: LedgerEvent | None = None) -> list[LedgerEvent]:
        """Append the events that ``decide`` returns, all or none of them; append nothing when it returns None.

        Args:
            decide: called with the events after ``after``, inside the transaction; returns kind and body.
            after: the last event the caller knows; None calls ``decide`` with all events.

        Returns:
            The events as they were written.

        Raises:
            PipelineError: the database cannot be written, or no longer has the event ``after``.
        """
        with _database_errors(self.url), self._engine.begin() as connection:
            _take_turns(connection)
            known = self._read(connection, after.number - 1 if after else 0)
            if after:
                if not known or known[0].hash != after.hash:
                    raise OSError(f"event {after.number} is not in it any more; {_REPLACED}")
                del known[0]
            decided = decide(known)
            if decided is None:
                return []
            events = [cast(NewEvent, decided)] if isinstance(decided[0], str) else cast(Sequence[NewEvent], decided)
            return self._write(connection, events, known[-1] if known else after)

    def extend(self, events: Iterable[NewEvent]) -> None:
        """Append events in one transaction, all or none of them: for an import.

        Raises:
            PipelineError: the database cannot be written.
        """
        with _database_errors(self.url), self._engine.begin() as connection:
            _take_turns(connection)
            self._write(connection, events, self._last(connection))

    def _write(self, connection: Connection, events: Iterable[NewEvent], last: LedgerEvent | None) -> list[LedgerEvent]:
        """Insert events behind the last one, and return them as they were written."""
        number, before = (last.number, last.hash) if last else (0, GENESIS)
        written, rows = [], []
        for kind, body in events:
            number, at = number + 1, time.time()
            row = _StoredEvent(number, at, kind, _canonical(body), "")
            before = _hash(before, self.batch, row)
            rows.append({**row._asdict(), "batch": self.batch, "hash": before})
            written.append(LedgerEvent(number, at, kind, body, before))
        if rows:
            connection.execute(_EVENTS.insert(), rows)
        return written

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with _database_errors(self.url), self._readers.connect() as connection:
            yield connection

    def last(self) -> LedgerEvent | None:
        """Return the last event; None of an empty ledger."""
        with self._reading() as connection:
            return self._last(connection)

    def count(self) -> int:
        """Return the number of events."""
        with self._reading() as connection:
            query = sa.select(sa.func.count()).select_from(_EVENTS).where(_EVENTS.c.batch == self.batch)
            return int(connection.execute(query).scalar_one())

    def events(self, after: int = 0, until: int | None = None) -> list[LedgerEvent]:
        """Return the events with numbers above ``after``, up to and including ``until``, in order."""
        with self._reading() as connection:
            return self._read(connection, after, until)

    def said(self, until: int | None = None, after: int = 0) -> list[LedgerEvent]:
        """Return the events that say something of labels, above ``after`` and up to and including ``until``, in order.

        Leases are left out, which are every other event and matter to who is handed what only; the last event is there
        whatever it is.
        """
        with self._reading() as connection:
            last = sa.select(sa.func.max(_EVENTS.c.number)).where(_EVENTS.c.batch == self.batch)
            if until is not None:
                last = last.where(_EVENTS.c.number <= until)
            is_said = sa.or_(_EVENTS.c.kind != "lease", _EVENTS.c.number == last.scalar_subquery())
            return self._read(connection, after, until, is_said)

    def problems(self, anchors: Iterable[Anchor] = ()) -> list[str]:
        """Verify the hash chain and return its problems in order: changed events and missing ones.

        Args:
            anchors: events that were noted outside the database. They show an end that was removed, and a chain that
                was computed anew from an event that was changed.
        """
        problems, number, before = [], 0, GENESIS
        anchors = list(anchors)
        noted = {anchor.event for anchor in anchors}
        heads = {}
        for row in self._texts():
            if row.number != number + 1:
                problems.append(f"event {number + 1} is missing")
            if _hash(before, self.batch, row) != row.hash:
                problems.append(f"event {row.number} is not what was written, or does not follow the one before it")
            number, before = row.number, row.hash
            if number in noted:
                heads[number] = row.hash
        for anchor in anchors:
            if anchor.event > number:
                last = f"the last is event {number}"
                problems.append(f"event {anchor.event} is missing: {anchor.source} notes it, and {last}")
            elif heads.get(anchor.event, anchor.head) != anchor.head:
                problems.append(f"event {anchor.event} is not the one that {anchor.source} notes")
        return problems

    def _texts(self) -> list[_StoredEvent]:
        """Return all events as they are stored, in order."""
        with self._reading() as connection:
            rows = connection.execute(sa.select(*_READ).where(_EVENTS.c.batch == self.batch).order_by(_EVENTS.c.number))
            return [_StoredEvent(*row) for row in rows]

    def _read(
        self, connection: Connection, after: int, until: int | None = None, *conditions: sa.ColumnElement[bool]
    ) -> list[LedgerEvent]:
        wanted = sa.select(*_READ).where(_EVENTS.c.batch == self.batch, _EVENTS.c.number > after, *conditions)
        if until is not None:
            wanted = wanted.where(_EVENTS.c.number <= until)
        rows = connection.execute(wanted.order_by(_EVENTS.c.number))
        return [LedgerEvent(number, at, kind, _parsed(body), head) for number, at, kind, body, head in rows]

    def _last(self, connection: Connection) -> LedgerEvent | None:
        number = connection.execute(
            sa.select(sa.func.max(_EVENTS.c.number)).where(_EVENTS.c.batch == self.batch)
        ).scalar()
        return self._read(connection, number - 1)[0] if number else None


def _engine(url: str) -> Engine:
    """Open a database; for SQLite, create the file's folder and use a write-ahead log, so readers do not block."""
    parsed_url = sa.make_url(url)
    if parsed_url.get_backend_name() == "sqlite":
        if parsed_url.database:
            Path(parsed_url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed_url, connect_args={"timeout": 30})  # seconds a writer waits for the lock
        _keep_to_file(engine, Path(parsed_url.database or ""))

        @sa.event.listens_for(engine, "connect")
        def _configure(connection: Any, _: object) -> None:
            connection.isolation_level = None  # disables the driver's own BEGIN in favour of the one below
            for pragma in ("journal_mode=WAL", "synchronous=FULL"):
                connection.execute(f"PRAGMA {pragma}")

        @sa.event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            # A reader sees the log as it was when it began, and neither waits for a writer nor delays one.
            is_reader = connection.get_execution_options().get(_READER, False)
            connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")

        return engine
    return sa.create_engine(parsed_url, pool_pre_ping=True)


def _keep_to_file(engine: Engine, file: Path) -> None:
    """Refuse connections once a file is not the one of the first connection: it was moved, deleted or replaced.

    SQLite would go on writing to the file that nobody finds any more, and what is saved there is lost.
    """
    first: list[tuple[int, int]] = []

    def check(*_: object) -> None:
        now = (at.st_dev, at.st_ino) if (at := file.stat() if file.is_file() else None) else None
        if first and now != first[0]:
            raise OSError(f"the file was moved, deleted or replaced; {_REPLACED}")
        if now is not None and not first:
            first.append(now)

    sa.event.listen(engine, "do_connect", check)
    sa.event.listen(engine, "checkout", check)


def _take_turns(connection: Connection) -> None:
    """Lock the ledger for an append in PostgreSQL; in SQLite, BEGIN IMMEDIATE has done so already."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))


def _parsed(body: str) -> EventBody:
    """Parse the body of an event; return an empty body for a corrupted row, which `problems` reports."""
    try:
        fields = from_json(body)
    except ValueError:
        return {}
    return cast(EventBody, fields) if isinstance(fields, dict) else {}


def _canonical(body: Mapping[str, object]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _hash(before: str, batch: str, event: _StoredEvent) -> str:
    """Return the hash of an event: SHA-256 of a JSON object of its fields and of the hash before it, keys sorted.

    The object is written here and not by `json`, which takes three times as long: a verification hashes every event.
    """
    texts = (repr(event.at), batch, before, event.body, event.kind)
    at, batch, before, body, kind = map(json.encoder.encode_basestring, texts)
    text = f'{{"at":{at},"batch":{batch},"before":{before},"body":{body},"kind":{kind},"number":{event.number}}}'
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def _database_errors(url: str) -> Iterator[None]:
    """Convert errors of a database or its driver to a `PipelineError` of one line, without the password."""
    try:
        yield
    except (sa.exc.SQLAlchemyError, ModuleNotFoundError, OSError) as error:
        shown = url
        if not isinstance(error, sa.exc.ArgumentError):
            shown = sa.make_url(url).render_as_string(hide_password=True)
        reason = " ".join(str(getattr(error, "orig", None) or error).split())[:200]
        remedy = "see --ledger and TRUEUP_LEDGER"
        is_file = not isinstance(error, sa.exc.ArgumentError) and sa.make_url(url).get_backend_name() == "sqlite"
        folder = Path(sa.make_url(url).database or ".").parent if is_file else None
        refused = disk_problem(error, folder) if folder is not None else None
        if refused is not None:
            problem = Problem(f"the ledger {shown} cannot be used: {refused.found}", "", f"{refused.remedy}; {remedy}")
            raise CannotWrite(problem, exit_code=exit_code_of(error, folder or ".")) from error
        if isinstance(error, ModuleNotFoundError):
            remedy = "pip install 'trueup[collect]'"
        expected = "a database that can be written, sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME"
        raise LedgerUnavailable(Problem(f"the ledger {shown} cannot be used: {reason}", expected, remedy)) from error
