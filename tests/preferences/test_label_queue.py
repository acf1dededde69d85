"""What an annotator may do, under lost replies, expired leases, flags and many threads."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.preferences import label_queue
from pipeline.preferences.items import items_of
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.labels import AHEAD, LEASE_S, Batch, State
from pipeline.preferences.ledger import Ledger


def _items(count: int) -> list[Any]:
    rows = (
        {
            "prompt": [{"role": "user", "content": f"question {n}"}],
            "chosen": [{"role": "assistant", "content": f"one {n}"}],
            "rejected": [{"role": "assistant", "content": f"other {n}"}],
        }
        for n in range(count)
    )
    return items_of(rows)[0]


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def queue(count: int = 4, guidelines: str | None = None, **batch: Any) -> LabelQueue:
        return LabelQueue(Batch(_items(count), **batch), Ledger(f"sqlite:///{tmp_path / 'l.db'}", "b"), guidelines)

    return queue


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the queue sees, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(label_queue.time, "time", lambda: now[0])
    return now


def _labels(queue: LabelQueue) -> int:
    return sum(event.kind == "label" for event in queue.ledger.events())


def test_a_request_sent_again_counts_once(make: Any) -> None:
    queue = make()
    (shown,) = queue.next("ada")
    for _ in range(3):  # the reply was lost twice
        queue.label("ada", shown["item"], "left", 2, 1.0, "request 1")
    assert _labels(queue) == 1
    with pytest.raises(PipelineError, match="this pair was answered"):
        queue.label("ada", shown["item"], "left", 2, 1.0, "request 2")
    first = queue.undo("ada", "undo 1")
    assert queue.undo("ada", "undo 1") == first == shown["item"]  # not the label before it
    assert sum(event.kind == "undo" for event in queue.ledger.events()) == 1
    queue.label("ada", shown["item"], "right", 1, 1.0, "request 3")
    assert queue.undo("ada", "undo 1") is None  # late: what was said since stays
    assert _labels(queue) == 2 and queue.progress("ada")["done"] == 1


def test_a_late_label_is_taken_unless_the_pair_went_to_somebody_else(make: Any, clock: list[float]) -> None:
    queue = make()
    (shown,) = queue.next("ada")
    clock[0] += LEASE_S + 1
    queue.label("ada", shown["item"], "left", 1, 700.0)  # nobody else wanted it
    (second,) = queue.next("ada")
    clock[0] += LEASE_S + 1
    (others,) = queue.next("grace")
    assert others["prompt"] == second["prompt"]
    with pytest.raises(PipelineError, match="has gone to somebody else"):
        queue.label("ada", second["item"], "left", 1, 700.0)
    queue.label("grace", others["item"], "left", 1, 1.0)
    with pytest.raises(PipelineError, match="has all its labels"):
        queue.label("ada", second["item"], "left", 1, 700.0)


def test_a_pair_that_somebody_flagged_takes_no_label(make: Any) -> None:
    queue = make(per_item=2)
    (ada,), (grace,) = queue.next("ada"), queue.next("grace")
    assert ada["prompt"] == grace["prompt"]
    queue.leave("flag", "grace", grace["item"], "personal data")
    with pytest.raises(PipelineError, match="somebody flagged this pair"):
        queue.label("ada", ada["item"], "left", 1, 1.0)
    assert queue.undo("grace") == grace["item"]
    queue.label("ada", ada["item"], "left", 1, 1.0)


def test_an_id_of_another_annotator_or_of_the_data_is_refused(make: Any) -> None:
    queue = make(per_item=2)
    (ada,), _ = queue.next("ada"), queue.next("grace")
    for unknown in (ada["item"], queue.batch.items[0].id, "", "x" * 64):
        with pytest.raises(PipelineError, match="not handed to you"):
            queue.label("grace", unknown, "left", 1, 1.0)
    assert _labels(queue) == 0


def test_each_label_names_the_guidelines_that_were_shown(make: Any) -> None:
    queue = make(guidelines="Prefer what is true.")
    queue.label("ada", queue.next("ada")[0]["item"], "left", 1, 1.0)
    changed = make(guidelines="Prefer what is true, and short.")
    changed.label("ada", changed.next("ada")[0]["item"], "left", 1, 1.0)
    bodies = [event.body for event in queue.ledger.events() if event.kind in ("guidelines", "label")]
    assert [body["guidelines"] for body in bodies[:2]] == [bodies[0]["guidelines"]] * 2
    assert [body["guidelines"] for body in bodies[2:]] == [bodies[2]["guidelines"]] * 2
    assert bodies[0]["guidelines"] != bodies[2]["guidelines"]
    assert bodies[2]["text"] == "Prefer what is true, and short."


def test_a_label_names_what_its_own_app_showed_whoever_else_looked_at_the_batch(make: Any) -> None:
    queue = make(guidelines="Prefer what is true.")
    make(guidelines="Another text, in another app.")
    make().close(False)  # a command that shows nothing
    queue.label("ada", queue.next("ada")[0]["item"], "left", 1, 1.0)
    told = [event.body for event in queue.ledger.events() if event.kind in ("guidelines", "label")]
    assert [body.get("text") for body in told] == ["Prefer what is true.", "Another text, in another app.", None]
    assert told[2]["guidelines"] == told[0]["guidelines"]


def test_people_are_paused_and_their_links_revoked_without_a_restart(make: Any) -> None:
    queue = make()
    token = queue.invite("ada")
    assert queue.identify(token) == ("ada", "active", "annotator")
    elsewhere = make()  # another process
    elsewhere.set_access("ada", "paused")
    assert queue.identify(token) == ("ada", "paused", "annotator")
    elsewhere.set_access("ada", "revoked")
    assert queue.identify(token) is None
    with pytest.raises(PipelineError, match="RECIPE STAGE --add ada"):
        elsewhere.set_access("ada", "active")
    with pytest.raises(PipelineError, match="nobody here is called 'grace'; expected one of ada"):
        elsewhere.set_access("grace", "paused")
    assert queue.identify(queue.invite("ada")) == ("ada", "active", "annotator")


def test_readers_and_writers_at_once_break_nothing(make: Any) -> None:
    """Everything that the web calls, from eight threads: no error, no label lost, none twice."""
    queue = make(120, per_item=2)
    errors: list[BaseException] = []

    def work(who: str) -> None:
        try:
            while shown := queue.next(who, 2):
                queue.label(who, shown[0]["item"], "left", 1, 0.1, shown[0]["item"])
                queue.progress(who)
                queue.identify("nobody's")
                queue.stuck()
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(f"person {n}",)) for n in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=800)
    assert errors == []
    assert queue.progress() == {"done": 240, "wanted": 240, "own": 0, "closed": False}
    state = State().take(queue.ledger.events())
    assert all(len(state.labels(item.id)) == 2 for item in queue.batch.items)


def test_a_label_reserves_what_comes_next_in_its_own_transaction(make: Any) -> None:
    queue = make(count=6)
    shown, _ = queue.next("ada", AHEAD)
    queue.label("ada", shown["item"], "left", 1, 1.0)
    events = queue.ledger.events()
    assert [event.kind for event in events[-2:]] == ["label", "lease"]
    following = queue.next("ada", AHEAD, has_read=True)
    assert queue.ledger.last() == events[-1]  # nothing was written for it
    assert following == queue.next("ada", AHEAD) and shown["item"] not in [one["item"] for one in following]
    others = make(count=6).next("grace", 6)
    assert len(others) == 3  # one is labelled, two are ada's


def test_a_label_that_cannot_be_written_leaves_the_queue_as_it_was(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = make(count=3)
    shown, after = queue.next("ada", AHEAD)
    with monkeypatch.context() as broken:
        broken.setattr(queue.ledger, "_write", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
        with pytest.raises(PipelineError, match="the disk is full"):
            queue.label("ada", shown["item"], "left", 1, 1.0)
    assert queue.next("ada", AHEAD, has_read=True) == [shown, after] and _labels(queue) == 0
    queue.label("ada", shown["item"], "left", 1, 1.0)
    assert _labels(queue) == 1


def test_an_id_used_again_for_another_answer_is_no_lost_reply(make: Any) -> None:
    queue = make()
    (shown,) = queue.next("ada")
    queue.label("ada", shown["item"], "left", 2, 1.0, "request 1")
    queue.label("ada", shown["item"], "left", 2, 9.0, "request 1")  # the reply was lost
    for side, strength in (("right", 2), ("left", 3), ("tie", 1)):
        with pytest.raises(PipelineError, match="this pair was answered already"):
            queue.label("ada", shown["item"], side, strength, 1.0, "request 1")
    with pytest.raises(PipelineError, match="this pair was answered already"):
        queue.leave("skip", "ada", shown["item"], "", "request 1")
    assert _labels(queue) == 1


def test_what_was_taken_back_stays_so_when_it_arrives_once_more(make: Any) -> None:
    """A request may be on its way twice: the second comes when the first was answered and taken back."""
    queue = make()
    (shown,) = queue.next("ada")
    queue.label("ada", shown["item"], "left", 1, 1.0, "request 1")
    queue.undo("ada", "undo 1")
    queue.label("ada", shown["item"], "left", 1, 1.0, "request 1")
    assert queue.progress("ada")["done"] == 0
    for number in (2, 3):
        queue.label("ada", queue.next("ada")[0]["item"], "left", 1, 1.0, f"request {number}")
    queue.undo("ada", "undo 2")
    queue.undo("ada", "undo 1")  # late, and not the last one
    assert queue.progress("ada")["done"] == 1
    assert make().progress("ada")["done"] == 1  # another process knows it from the ledger
    queue.label("ada", queue.next("ada")[0]["item"], "right", 1, 1.0, "request 4")
    assert queue.progress("ada")["done"] == 2


def test_a_closed_batch_keeps_its_labels(make: Any) -> None:
    queue = make()
    (shown,) = queue.next("ada")
    queue.label("ada", shown["item"], "left", 1, 1.0)
    queue.close()
    with pytest.raises(PipelineError, match="the batch was closed"):
        queue.undo("ada", "undo 1")
    assert queue.progress()["done"] == 1
    queue.close(False)
    assert queue.undo("ada", "undo 1") == shown["item"]


def test_a_clock_that_was_ahead_keeps_no_pair_for_ever(make: Any, clock: list[float]) -> None:
    queue = make(count=2)
    clock[0] += 10**8  # three years
    ahead = queue.next("ada", AHEAD)
    clock[0] -= 10**8
    assert [one["prompt"] for one in queue.next("grace", AHEAD)] == [one["prompt"] for one in ahead]
    queue.label("grace", queue.next("grace")[0]["item"], "left", 1, 1.0)
    assert len(queue.next("ada", AHEAD)) == 0 and queue.comes_back("ada")
    clock[0] += 10  # a clock that is set by seconds changes nothing
    before = queue.next("grace")
    clock[0] -= 10
    assert queue.next("grace") == before and queue.next("ada") == []


def test_who_has_nothing_left_is_told_whether_something_may_come_back(make: Any, clock: list[float]) -> None:
    queue = make(count=2)
    shown = queue.next("ada", AHEAD)
    assert queue.next("grace") == [] and queue.comes_back("grace") and not queue.comes_back("ada")
    clock[0] += LEASE_S + 1
    assert len(queue.next("grace", AHEAD)) == 2 and queue.comes_back("ada")
    for one in queue.next("grace", AHEAD):
        queue.label("grace", one["item"], "left", 1, 1.0)
    assert queue.next("ada") == [] and not queue.comes_back("ada") and len(shown) == 2
