"""Gold items and repeats: they come at random places, look like all others, count for nothing, and tell who reads."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.preferences import label_queue
from pipeline.preferences.agreement import exported, label_table
from pipeline.preferences.anchors import default_url
from pipeline.preferences.assignment import Assignment
from pipeline.preferences.events import LedgerEvent
from pipeline.preferences.items import items_of
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.labels import LEASE_S, Batch, State
from pipeline.preferences.ledger import Ledger
from pipeline.preferences.probe_choice import LEAST_APART
from pipeline.preferences.probe_results import probe_results
from pipeline.preferences.probes import GOLD, REPEAT, ProbePlan, gold_items, is_probe, repeated


def _items(count: int, word: str = "question") -> list[Any]:
    rows = (
        {
            "prompt": [{"role": "user", "content": f"{word} {n}"}],
            "chosen": [{"role": "assistant", "content": f"good {n}"}],
            "rejected": [{"role": "assistant", "content": f"poor {n}"}],
        }
        for n in range(count)
    )
    return items_of(rows)[0]


ITEMS = _items(300)
GOLDEN, _ = gold_items(_items(60, "known"), ITEMS)
PLAN = ProbePlan(GOLDEN, gold_share=0.1, repeats=0.06)


@pytest.fixture
def make() -> Callable[..., LabelQueue]:
    """Makes queues on one ledger; its secret is the same in every run, so nothing below is a matter of luck."""
    ledger = Ledger("sqlite://", "batch")
    ledger.append(lambda known: ("batch", {"salt": "6b7f0f2fd2c64b0b8f4c5d3a91e0c7aa"}))

    def queue(plan: ProbePlan = PLAN, items: Any = ITEMS, **batch: Any) -> LabelQueue:
        return LabelQueue(Batch(items, probes=plan, **batch), ledger)

    return queue


def _good(shown: Any) -> str:
    return "left" if shown["left"][0]["content"].startswith("good") else "right"


def _label_all(queue: LabelQueue, who: str, choose: Callable[[Any], str] = _good, most: int = 10_000) -> list[Any]:
    """Label as one person until nothing is left, and return what was shown."""
    seen = []
    while len(seen) < most and (shown := queue.next(who, 2)):
        seen.append(shown[0])
        queue.label(who, shown[0]["item"], choose(shown[0]), 1, 2.0)
    return seen


def _state(queue: LabelQueue) -> State:
    return State().take(queue.ledger.events())


def test_probes_come_at_random_places_and_count_for_nothing(make: Any) -> None:
    queue = make()
    seen = _label_all(queue, "ada")
    state = _state(queue)
    kinds = ["gold" if i.startswith(GOLD) else "repeat" if i.startswith(REPEAT) else "" for i in state.answers["ada"]]
    assert kinds.count("") == len(ITEMS) and len(seen) == len(kinds)
    # 300 of 0.84: about 36 gold items and 21 repeats are expected; three standard deviations are 18 and 14.
    assert 18 < kinds.count("gold") < 54 and 7 < kinds.count("repeat") < 35
    assert kinds[-1] == ""  # whoever has labelled everything is not shown probes for nothing
    assert queue.progress() == {"done": 300, "wanted": 300, "own": 0, "closed": False}
    rows, without = exported(ITEMS, state)
    assert len(rows) == 300 and not without
    assert all(row["prompt"][0]["content"].startswith("question") for row in rows)
    assert (label_table(ITEMS, state).verdict_NA >= 0).sum() == 300


def test_everybody_meets_other_probes_at_other_places(make: Any) -> None:
    queue = make(per_item=2)
    for who in ("ada", "grace"):
        _label_all(queue, who, most=150)
    state = _state(queue)
    ada, grace = ([i if i.startswith(GOLD) else "" for i in state.answers[who]] for who in ("ada", "grace"))
    places = [{place for place, item in enumerate(one) if item} for one in (ada, grace)]
    assert min(map(len, places)) > 5 and places[0] != places[1]
    assert [item for item in ada if item] != [item for item in grace if item]
    assert len(set(filter(None, ada))) == len([*filter(None, ada)])  # each gold item once


def test_a_repeat_shows_an_old_pair_with_its_sides_exchanged(make: Any) -> None:
    queue = make()
    seen = _label_all(queue, "ada")
    order = list(_state(queue).answers["ada"])
    repeats = [place for place, item in enumerate(order) if item.startswith(REPEAT)]
    assert len(repeats) > 5
    for place in repeats:
        first = order.index(repeated(order[place]))
        assert place - first > LEAST_APART
        assert (seen[place]["left"], seen[place]["right"]) == (seen[first]["right"], seen[first]["left"])
        assert seen[place]["prompt"] == seen[first]["prompt"] and seen[place]["item"] != seen[first]["item"]


def test_what_is_sent_does_not_say_what_is_a_probe(make: Any) -> None:
    """The attacker has every reply of the app: ids, keys, and the numbers before and after each answer."""
    queue = make()
    rng = random.Random(1)
    seen: dict[bool, list[Any]] = {True: [], False: []}
    moves: dict[str, set[Any]] = {}
    while shown := queue.next("ada", 2):
        before = queue.progress("ada")
        item = queue._state.item_of("ada", shown[0]["item"])
        act = rng.choice(["label", "label", "label", "skip", "flag", "undo"])
        if act == "flag" and item.startswith(REPEAT):
            act = "label"  # it flags the pair itself; the person knows that they have seen it
        if act in ("label", "undo"):
            queue.label("ada", shown[0]["item"], "left", 1, 1.0)
        else:
            queue.leave(act, "ada", shown[0]["item"], "")
        if act == "undo":
            assert queue.undo("ada") == shown[0]["item"]
            assert queue.next("ada", 2)[0] == shown[0]
            after = queue.progress("ada")
            queue.leave("skip", "ada", shown[0]["item"])
        else:
            after = queue.progress("ada")
        seen[is_probe(item)].append(shown[0])
        if queue.next("ada", 2):  # the end is told as it is
            moves.setdefault(act, set()).add((after["done"] - before["done"], after["wanted"] - before["wanted"]))
    assert moves == {"label": {(1, 0)}, "skip": {(0, 0)}, "flag": {(0, 0)}, "undo": {(0, 0)}}
    assert len(seen[True]) > 20
    for shown in seen.values():
        assert {tuple(one) for one in shown} == {("item", "prompt", "left", "right")}
        assert {len(one["item"]) for one in shown} == {16}
        # Every bit of the ids of probes is as often set as in the others': a share of the first digits.
        assert 0.3 < sum(int(one["item"][0], 16) >= 8 for one in shown) / len(shown) < 0.7
    assert len({one["item"] for shown in seen.values() for one in shown}) == len(seen[True] + seen[False])


def test_the_same_place_gives_the_same_probe_again(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reload, when a lease has ended, and when the label before it is taken back."""
    now = [1000.0]
    monkeypatch.setattr(label_queue.time, "time", lambda: now[0])
    queue, probes = make(), 0
    while probes < 8:
        shown = queue.next("ada", 2)
        assert make().next("ada", 2) == shown  # another process
        probes += is_probe(queue._state.item_of("ada", shown[0]["item"]))
        now[0] += LEASE_S + 1
        assert queue.next("ada", 2) == shown
        queue.label("ada", shown[0]["item"], _good(shown[0]), 1, 1.0, "first time")
        queue.label("ada", shown[0]["item"], _good(shown[0]), 1, 1.0, "first time")  # its reply was lost
        following = queue.next("ada", 2)
        assert queue.undo("ada") == shown[0]["item"]
        assert queue.next("ada", 2) == [shown[0], following[0]]
        queue.label("ada", shown[0]["item"], _good(shown[0]), 1, 1.0)
        assert queue.next("ada", 2) == following


def test_probes_tell_who_reads_from_who_does_not(make: Any) -> None:
    queue = make(per_item=2)
    _label_all(queue, "reader")
    _label_all(queue, "left", lambda shown: "left")
    results = probe_results(PLAN, _state(queue))
    reader, left = results["reader"], results["left"]
    assert reader.accuracy and reader.consistency and left.accuracy and left.consistency
    assert reader.accuracy.value == reader.consistency.value == 1
    assert (reader.same_left, reader.same_right) == (0, 0) and reader.accuracy.low < 1
    assert left.accuracy.low < 0.5 < left.accuracy.high  # as a coin is right
    assert left.consistency.value == 0 and (left.same_left, left.same_right) == (left.consistency.n, 0)


def test_results_follow_from_the_labels() -> None:
    """By hand: of three gold labels one is right; of two repeats one is the same, and one twice on the right side."""
    plan = ProbePlan(GOLDEN[:4])
    one, two = ITEMS[0].id, ITEMS[1].id
    said = [
        (GOLDEN[0].id, "first", False),
        (GOLDEN[1].id, "second", False),
        (GOLDEN[2].id, "tie", False),
        ("gold:of another time", "first", False),
        (one, "first", True),  # the second response was on the left: the person chose the right side
        (REPEAT + one, "second", False),  # and again the right side
        (two, "both bad", False),
        (REPEAT + two, "both bad", True),
    ]
    bodies: list[Any] = [{"annotator": "ada", "item": i, "verdict": v, "swapped": s} for i, v, s in said]
    state = State().take(LedgerEvent(n, 0.0, "label", body, "") for n, body in enumerate(bodies, 1))
    results = probe_results(plan, state)["ada"]
    assert results.accuracy and (results.accuracy.value, results.accuracy.n) == (1 / 3, 3)
    assert results.consistency and (results.consistency.value, results.consistency.n) == (1 / 2, 2)
    assert (results.same_left, results.same_right) == (0, 1)


def test_who_flags_a_pair_shown_again_flags_the_pair(make: Any) -> None:
    queue = make(per_item=2)
    while not (item := queue._state.item_of("ada", queue.next("ada")[0]["item"]) or "").startswith(REPEAT):
        shown = queue.next("ada")[0]
        queue.label("ada", shown["item"], _good(shown), 1, 1.0)
    shown = queue.next("ada")[0]
    queue.leave("flag", "ada", shown["item"], "personal data")
    assert queue.progress()["wanted"] == 2 * len(ITEMS) - 1  # the label it has is enough
    assert exported(ITEMS, _state(queue))[1]["flagged"] == 1
    assert repeated(item) not in {queue._state.item_of("grace", one["item"]) for one in queue.next("grace", 20)}
    assert queue.undo("ada") == shown["item"]
    assert queue.progress()["wanted"] == 2 * len(ITEMS)


def test_a_probe_of_somebody_else_is_refused(make: Any) -> None:
    queue = make()
    with pytest.raises(PipelineError, match="not handed to you"):
        queue.label("ada", GOLDEN[0].id, "left", 1, 1.0)
    _label_all(queue, "ada")
    ids = [shown for shown, item in queue._state.shown["ada"].items() if is_probe(item)]
    with pytest.raises(PipelineError, match="not handed to you"):
        queue.label("grace", ids[0], "left", 1, 1.0)
    with pytest.raises(PipelineError, match="this pair was answered"):
        queue.label("ada", ids[0], "left", 1, 1.0)


def test_an_assignment_with_probes_that_follows_equals_one_made_anew() -> None:
    rng = random.Random(5)
    batch = Batch(ITEMS[:12], per_item=2, probes=ProbePlan(GOLDEN[:3], 0.3, 0.3))
    names = [item.id for item in batch.items]
    names += [item.id for item in batch.probes.gold] + [REPEAT + name for name in names[:4]]
    salt: Any = {"salt": "0" * 32}
    followed, people = State().take([LedgerEvent(1, 0.0, "batch", salt, "")]), ("ada", "grace")
    assignment, events = Assignment(batch, followed), [LedgerEvent(1, 0.0, "batch", salt, "")]
    for number in range(2, 300):
        who, item = rng.choice(people), rng.choice(names)
        kind, body = rng.choice(
            [
                ("lease", {"annotator": who, "items": [item], "until": rng.uniform(0, 800)}),
                ("label", {"annotator": who, "item": item, "verdict": "tie", "strength": 1}),
                ("skip", {"annotator": who, "item": item}),
                ("undo", {"annotator": who, "item": item, "event": 0, "until": rng.uniform(0, 800)}),
                ("flag", {"annotator": who, "item": item}) if rng.random() < 0.1 else ("close", {"closed": False}),
            ]
        )
        events.append(LedgerEvent(number, 0.0, kind, body, ""))
        followed.take(events[-1:])
        assignment.update()
        anew, now = Assignment(batch, State().take(events)), rng.uniform(0, 800)
        assert assignment.progress() == anew.progress()
        for name in people:
            assert assignment.next(name, now, 4) == anew.next(name, now, 4)
            assert assignment.probes.told_progress(*anew.progress()) == anew.probes.told_progress(*anew.progress())


def test_a_pair_of_the_batch_is_no_gold_item() -> None:
    swapped = [{"prompt": item.prompt, "chosen": item.responses[1], "rejected": item.responses[0]} for item in ITEMS]
    known = [*items_of(swapped[:3])[0], *ITEMS[3:5], *_items(2, "known")]
    gold, left_out = gold_items(known, ITEMS)
    assert [item.id.startswith(GOLD) for item in gold] == [True, True] and left_out == 5


@pytest.mark.slow
def test_the_commands_hide_gold_items_and_show_what_they_say(people: Path, call: Any, open_app: Any) -> None:
    known = [json.dumps({"prompt": f"known {n}", "chosen": "right", "rejected": "wrong"}) for n in range(9)]
    known.append((people.parent / "answers.jsonl").read_text().splitlines()[0])
    (people.parent / "known.jsonl").write_text("\n".join(known))
    recipe = people.read_text().replace("data:\n", "data:\n  known: {path: known.jsonl}\n")
    people.write_text(recipe.replace("kind: collect,", "kind: labels, gold: known, gold_share: 0.4, repeats: 0.1,"))
    store = people.parent / "store"
    url = default_url(store)
    Ledger(url, people.parent.name).append(lambda known: ("batch", {"salt": "2" * 32}))
    app = open_app("ada", url=url, more=("--store", str(store)))
    items, count = app.ask("next", "ada")["items"], 0
    while items:
        side = "left" if items[0]["left"][0]["content"].startswith("right") else "right"
        items, count = app.ask("label", "ada", item=items[0]["item"], choice=side, seconds=1.0)["items"], count + 1
    line = (people, "labels", "--store", store, "--ledger", url, "--set", f"stages.labels.batch={people.parent.name}")
    status = json.loads(call("labels", "status", *line, "--json", cwd=people.parent).stdout)
    probes = status["annotators"]["ada"].pop("probes")
    assert status["annotators"]["ada"] == {"labels": 6, "skipped": 0, "flagged": 0} and count == 6 + probes
    told = call("labels", "stats", *line, cwd=people.parent)
    assert "1 pair of `known` is in the batch too, and no gold" in told.stderr
    assert "gold" in told.stdout
    stats = json.loads(call("labels", "stats", *line, "--json", cwd=people.parent).stdout)["people"]["ada"]
    assert (stats["gold"]["value"], stats["gold"]["n"]) == (1, probes)
    wrong = call("check", people, "--set", "stages.labels.gold=null", cwd=people.parent)
    assert wrong.returncode == 2 and "gold_share is 0.4, without `gold`" in wrong.stderr + wrong.stdout
