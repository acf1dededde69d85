"""The ledger keeps what was written, in order, for many writers at once, and shows what was changed."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipeline.errors import PipelineError
from pipeline.preferences.anchors import anchor_file, default_url, ledger_name, note_head, noted_heads
from pipeline.preferences.ledger import GENESIS, Ledger


def test_events_come_back_as_they_were_written(url: str, tmp_path: Path) -> None:
    ledger = Ledger(url, f"{tmp_path.name}/a")
    other = Ledger(url, f"{tmp_path.name}/b")
    ledger.append(lambda known: ("label", {"text": "déjà vu\n\u2028 '\"", "n": 1}))
    other.append(lambda known: ("label", {"n": 7}))
    ledger.append(lambda known: ("undo", {"of": known[-1].number}))
    ledger.append(lambda known: None)
    ledger.close()
    again = Ledger(url, f"{tmp_path.name}/a").events()
    assert [(event.number, event.kind, dict(event.body)) for event in again] == [
        (1, "label", {"text": "déjà vu\n\u2028 '\"", "n": 1}),
        (2, "undo", {"of": 1}),
    ]
    assert [event.body for event in other.events()] == [{"n": 7}]
    assert len({GENESIS, *(event.hash for event in again)}) == 3
    assert [event.number for event in ledger.events(after=1)] == [2]
    assert [event.number for event in ledger.events(until=1)] == [1]


def test_what_is_said_leaves_leases_out_but_the_last_event(url: str, tmp_path: Path) -> None:
    ledger, other = Ledger(url, f"{tmp_path.name}/a"), Ledger(url, f"{tmp_path.name}/b")
    other.extend([("lease", {"items": []})] * 9)
    ledger.extend([("lease", {"items": []}), ("label", {}), ("lease", {"items": []}), ("label", {})])
    assert [event.number for event in ledger.said()] == [2, 4]
    assert [event.number for event in ledger.said(until=3)] == [2, 3]  # so that a report knows up to where it goes
    ledger.extend([("lease", {"items": ["a"]})])
    assert [event.number for event in ledger.said()] == [2, 4, 5]
    ledger.close()
    other.close()


CHANGES = {
    "a changed body": ("UPDATE trueup_events SET body = '{}' WHERE batch = :b AND number = 2", "event 2 is not"),
    "a changed time": ("UPDATE trueup_events SET at = at + 1 WHERE batch = :b AND number = 3", "event 3 is not"),
    "a removed event": ("DELETE FROM trueup_events WHERE batch = :b AND number = 2", "event 2 is missing"),
    "exchanged events": (
        "UPDATE trueup_events SET kind = CASE WHEN number = 1 THEN 'undo' ELSE 'label' END WHERE batch = :b",
        "event 1 is not",
    ),
    "a body that is none": ("UPDATE trueup_events SET body = 'x' WHERE batch = :b AND number = 2", "event 2 is not"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_found(url: str, tmp_path: Path, change: str) -> None:
    ledger = Ledger(url, f"{tmp_path.name}/{change}")
    for n in range(4):
        ledger.append(lambda known, n=n: ("label", {"n": n}))
    assert ledger.problems() == []
    line, told = CHANGES[change]
    with sa.create_engine(url).begin() as connection:
        assert connection.execute(sa.text(line), {"b": ledger.batch}).rowcount
    problems = ledger.problems()
    assert problems and problems[0].startswith(told)


def test_a_removed_end_and_a_chain_computed_anew_are_found_by_what_was_noted_elsewhere(
    url: str, tmp_path: Path
) -> None:
    ledger = Ledger(url, f"{tmp_path.name}/anchored")
    for n in range(4):
        ledger.append(lambda known, n=n: ("label", {"n": n}))
    for event in ledger.events():
        note_head(tmp_path, ledger.batch, event.number, event.hash)
    note_head(tmp_path, "another batch", 9, "x")
    anchors = noted_heads(tmp_path, ledger.batch).anchors
    assert [anchor.event for anchor in anchors] == [1, 2, 3, 4] and ledger.problems(anchors) == []
    with sa.create_engine(url).begin() as connection:
        connection.execute(sa.text("DELETE FROM trueup_events WHERE batch = :b AND number > 2"), {"b": ledger.batch})
    assert ledger.problems() == []  # the chain alone does not show it
    assert ledger.problems(anchors)[0] == (
        "event 3 is missing: line 3 of anchors.jsonl notes it, and the last is event 2"
    )
    ledger.append(lambda known: ("label", {"n": "forged"}))  # whoever forges computes the chain anew
    assert ledger.problems() == []
    assert ledger.problems(anchors)[0] == "event 3 is not the one that line 3 of anchors.jsonl notes"


def test_notes_of_another_ledger_are_not_compared_and_said(tmp_path: Path) -> None:
    """A store notes every ledger that is used with it: two batches of one name, each of its own, are no forgery."""
    ours, theirs = (f"sqlite:///{tmp_path / name}.db" for name in ("ours", "theirs"))
    for url in (ours, theirs):
        ledger = Ledger(url, "b")
        (event,) = ledger.append(lambda _: ("label", {}))
        note_head(tmp_path, "b", event.number, event.hash, url)
        ledger.close()
    notes = noted_heads(tmp_path, "b", theirs)
    assert [one.source for one in notes.anchors] == ["line 2 of anchors.jsonl"] and notes.elsewhere == [ours]
    assert Ledger(theirs, "b").problems(notes.anchors) == []
    with anchor_file(tmp_path).open("ab") as file:  # as the last version wrote it, and what is no note
        file.write(b'{"batch": "b", "event": 1, "head": "x", "at": 1.0}\n\xff{"batch": "b"\n[]\nnull\n')
    notes = noted_heads(tmp_path, "b", theirs)
    assert [one.head for one in notes.anchors[1:]] == ["x"] and notes.unreadable == [4, 5, 6]


def test_the_name_of_a_ledger_has_no_password_and_moves_with_its_store(tmp_path: Path) -> None:
    assert ledger_name("postgresql+psycopg://me:secret@host:5432/db?sslmode=x", tmp_path) == (
        "postgresql+psycopg://me@host:5432/db"
    )
    assert ledger_name("postgresql+psycopg://host/db", tmp_path) == "postgresql+psycopg://host/db"
    assert ledger_name(default_url(tmp_path), tmp_path) == ""
    assert ledger_name(f"sqlite:///{tmp_path}/a/../b.db", tmp_path) == f"sqlite:///{tmp_path.resolve()}/b.db"


def _write(url: str, batch: str, count: int) -> None:
    ledger = Ledger(url, batch)
    for _ in range(count):
        ledger.append(lambda known: ("label", {"after": known[-1].number if known else 0}))


def test_an_event_that_is_gone_stops_the_writer_that_knows_it(url: str, tmp_path: Path) -> None:
    """The database was replaced by an older copy while the app ran: a label written there would follow nothing."""
    ledger = Ledger(url, tmp_path.name)
    (_, last) = ledger.append(lambda _: [("label", {"n": 1}), ("label", {"n": 2})])
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM trueup_events WHERE batch = :b AND number = 2"), {"b": tmp_path.name})
    with pytest.raises(PipelineError, match="event 2 is not in it any more; put back the database"):
        ledger.append(lambda _: ("label", {"n": 3}), last)
    assert [event.number for event in ledger.events()] == [1]
    ledger.close()
    engine.dispose()


@pytest.mark.parametrize("what", ["moved", "deleted", "replaced"])
def test_a_file_that_is_not_there_any_more_takes_no_label(tmp_path: Path, what: str) -> None:
    """SQLite would write on to the file that nobody finds."""
    file, elsewhere, copy = (tmp_path / name for name in ("ledger.db", "elsewhere.db", "copy.db"))
    ledger = Ledger(f"sqlite:///{file}", "b")
    (last,) = ledger.append(lambda _: ("label", {"n": 1}))
    shutil.copy(file, copy)
    if what == "deleted":
        file.unlink()
    else:
        file.rename(elsewhere)
    if what == "replaced":
        copy.rename(file)
    for act in (lambda: ledger.append(lambda _: ("label", {"n": 2}), last), ledger.events, ledger.last):
        with pytest.raises(PipelineError, match="the file was moved, deleted or replaced; put back"):
            act()
    assert file.is_file() == (what == "replaced")  # no empty one is made
    if what != "deleted":
        elsewhere.rename(file)
        ledger.append(lambda _: ("label", {"n": 2}), last)
        assert [event.body for event in ledger.events()] == [{"n": 1}, {"n": 2}]
    ledger.close()


def test_writers_take_turns(url: str, tmp_path: Path) -> None:
    batch, context = f"{tmp_path.name}/turns", multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(url, batch, 25)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=800)
    ledger = Ledger(url, batch)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert [event.body["after"] for event in ledger.events()] == list(range(75))
    assert ledger.problems() == []


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nonsense", "Could not parse"),
        ("postgresql+psycopg://ada:secret@127.0.0.1:1/x", "connection"),
        ("sqlite:////proc/nothing/ledger.db", "ledger"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line_without_its_password(url: str, told: str) -> None:
    with pytest.raises(PipelineError, match=told) as caught:
        Ledger(url, "x")
    assert len(str(caught.value).splitlines()) == 1
    assert "secret" not in str(caught.value) and "TRUEUP_LEDGER" in str(caught.value)
