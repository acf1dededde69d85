"""Labels add up, people get what is theirs to do, agreement is what the textbook says."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.preferences.agreement import decided, edited_pairs, exported, label_table, majority, margin_of
from pipeline.preferences.assignment import Assignment
from pipeline.preferences.candidates import pair_row
from pipeline.preferences.details import Choice, details_body
from pipeline.preferences.edits import edited
from pipeline.preferences.events import LedgerEvent
from pipeline.preferences.exchange.export import Labels, unpaired_rows
from pipeline.preferences.items import items_of, wanted
from pipeline.preferences.labels import LEASE_S, Answer, Batch, State
from pipeline.preferences.shown import shown_pair
from pipeline.records.pair_choice import ChosenPair
from pipeline.stages.collect.aggregation import decision_by


def _turns(role: str, text: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": text}]


def _row(prompt: str, first: str, second: str) -> dict[str, Any]:
    assistant = [_turns("assistant", text) for text in (first, second)]
    return {"prompt": _turns("user", prompt), "chosen": assistant[0], "rejected": assistant[1]}


ITEMS, _ = items_of(_row(f"question {n}", f"one {n}", f"other {n}") for n in range(4))


def _state(*said: tuple[str, dict[str, Any]]) -> State:
    return State().take(LedgerEvent(n, 0.0, kind, body, "") for n, (kind, body) in enumerate(said, 1))


def _label(n: int, who: str, verdict: str, strength: int = 1) -> tuple[str, dict[str, Any]]:
    return "label", {"item": ITEMS[n].id, "annotator": who, "verdict": verdict, "strength": strength}


def test_pairs_that_ask_nothing_are_left_out() -> None:
    rows = [_row("q", "a", "b"), _row("q", "a", "b"), _row("q", " same  text", "same text "), _row("q", "b", "a")]
    items, left_out = items_of(rows)
    assert (len(items), left_out) == (2, 2)
    assert [turn["content"] for turn in items[0].responses[0]] == ["a"]


def test_answers_that_call_tools_are_shown_and_trained_on_with_the_tools() -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    calls = [{"type": "function", "function": {"name": "weather", "arguments": {"city": city}}} for city in "ab"]
    sides = [[{"role": "assistant", "content": "", "tool_calls": [call]}] for call in calls]
    row = {"prompt": _turns("user", "q"), "chosen": sides[0], "rejected": sides[1], "tools": [tool]}
    (item,), left_out = items_of([row])
    assert left_out == 0  # they differ in what they call
    state = State().take([LedgerEvent(1, 0.0, "label", {"item": item.id, "annotator": "a", "verdict": "second"}, "")])
    rows, _ = exported([item], state)
    assert rows == [{"prompt": row["prompt"], "chosen": sides[1], "rejected": sides[0], "margin": 1, "tools": [tool]}]
    good, bad = (one.row for one in unpaired_rows(Labels([item], state, {}))[0])
    assert good["tools"] == bad["tools"] == [tool]
    shown = shown_pair(item, "a", "5" * 32)
    told = {shown["left"][0]["content"], shown["right"][0]["content"]}
    assert all('"city": "a"' in one or '"city": "b"' in one for one in told) and len(told) == 2
    with pytest.raises(PipelineError, match="the edited answer calls tools"):
        details_body(Choice("left", edit="It rains."), item, {"verdict": "first", "swapped": False})
    (plain,), _ = items_of([{key: value for key, value in row.items() if key != "tools"}])
    assert plain.id == item.id  # labels stay where they are


def test_pairs_of_candidates_keep_the_tools_of_their_prompt() -> None:
    row = {"prompt": _turns("user", "q"), "candidates": [{"text": "a"}, {"text": "b"}], "tools": [{"type": "function"}]}
    assert pair_row(row, ChosenPair(0, 1, 1.0))["tools"] == [{"type": "function"}]
    assert "tools" not in pair_row({**row, "tools": []}, ChosenPair(0, 1, 1.0))


def test_a_share_of_the_items_is_labelled_three_times() -> None:
    several = [wanted(f"item {n}", 1, 0.15) for n in range(4000)]
    assert set(several) == {1, 3} and 0.13 < several.count(3) / 4000 < 0.17
    assert wanted("x", 5, 1.0) == 5


def _next(batch: Batch, state: State, annotator: str, now: float = 0.0, count: int = 9) -> list[Any]:
    return Assignment(batch, state).next(annotator, now, count)


def test_nobody_gets_what_another_has_until_the_lease_ends() -> None:
    batch = Batch(ITEMS)
    state = _state(("lease", {"annotator": "ada", "items": [ITEMS[0].id, ITEMS[2].id], "until": LEASE_S}))
    assert _next(batch, state, "grace", 1.0) == [ITEMS[1], ITEMS[3]]
    assert _next(batch, state, "grace", LEASE_S + 1) == ITEMS
    assert _next(batch, state, "ada", 1.0) == [ITEMS[0], ITEMS[2], ITEMS[1], ITEMS[3]]  # her own come first


def test_what_is_done_is_not_given_again_and_undo_brings_it_back() -> None:
    batch = Batch(ITEMS, per_item=2)
    said = [_label(0, "ada", "first"), ("skip", {"item": ITEMS[1].id, "annotator": "ada", "reason": ""})]
    state = _state(*said)
    assert _next(batch, state, "ada") == ITEMS[2:] and _next(batch, state, "grace") == ITEMS
    assert Assignment(batch, state).progress() == (1, 8)
    state = _state(*said, ("flag", {"item": ITEMS[2].id, "annotator": "ada", "reason": "rude"}))
    assert _next(batch, state, "grace") == [ITEMS[0], ITEMS[1], ITEMS[3]]
    assert Assignment(batch, state).progress() == (1, 6)
    assert state.last("ada") is not None and state.last("ada")[0] == ITEMS[2].id and state.last("grace") is None
    undo = ("undo", {"annotator": "ada", "item": ITEMS[1].id, "event": 2, "until": LEASE_S})
    assert _next(batch, _state(*said, undo), "ada", 1.0)[0] == ITEMS[1]
    labelled = _state(*(_label(0, who, "tie") for who in "abc"))
    assert Assignment(batch, labelled).progress()[0] == 2  # no more than were wanted


def test_a_pair_taken_back_comes_first_whatever_else_is_reserved() -> None:
    lease = ("lease", {"annotator": "ada", "items": [ITEMS[2].id, ITEMS[1].id], "until": LEASE_S})
    undo = ("undo", {"annotator": "ada", "item": ITEMS[0].id, "event": 1, "until": LEASE_S})
    state = _state(_label(0, "ada", "first"), lease, undo)
    assert _next(Batch(ITEMS), state, "ada", 1.0, 2) == [ITEMS[0], ITEMS[2]]
    again = _state(_label(0, "ada", "first"), lease, undo, _label(0, "ada", "second"))
    assert _next(Batch(ITEMS), again, "ada", 1.0, 2) == [ITEMS[2], ITEMS[1]]


def test_an_assignment_that_follows_equals_one_made_anew() -> None:
    """Random events on few items: what was kept up to date event by event is what all events together give."""
    rng = random.Random(3)
    batch = Batch(ITEMS, per_item=2)
    followed, people = State(), ("ada", "grace", "mary")
    assignment = Assignment(batch, followed)
    events: list[LedgerEvent] = []
    for number in range(1, 400):
        who, item = rng.choice(people), rng.choice(ITEMS).id
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
        anew = Assignment(batch, State().take(events))
        now = rng.uniform(0, 800)
        assert assignment.progress() == anew.progress()
        for name in people:
            assert assignment.next(name, now, 3) == anew.next(name, now, 3)


def test_a_batch_that_is_closed_or_thinned_out_is_complete() -> None:
    batch = Batch(ITEMS, per_item=2)
    people = [("annotator", {"name": who, "token": ""}) for who in ("ada", "grace")]
    skipped = ("skip", {"item": ITEMS[0].id, "annotator": "ada"})
    state = _state(*people, skipped, _label(1, "ada", "first"))
    (stuck,) = Assignment(batch, state).stuck()
    assert (stuck.item, stuck.missing, stuck.people) == (ITEMS[0].id, 2, 1)
    dropped = _state(*people, skipped, _label(1, "ada", "first"), ("drop", {"item": ITEMS[0].id, "reason": "stuck"}))
    assert Assignment(batch, dropped).stuck() == [] and Assignment(batch, dropped).progress() == (1, 6)
    assert ITEMS[0] not in _next(batch, dropped, "grace")
    assert exported(ITEMS, dropped)[1] == {"dropped": 1, "unlabelled": 2}
    closed = _state(*people, _label(1, "ada", "first"), ("close", {"closed": True}))
    assert Assignment(batch, closed).progress() == (1, 1) and _next(batch, closed, "grace") == []
    reopened = _state(("close", {"closed": True}), ("close", {"closed": False}))
    assert Assignment(batch, reopened).progress() == (0, 8)


def test_who_is_paused_counts_as_somebody_who_is_not_there() -> None:
    people = [("annotator", {"name": who, "token": ""}) for who in ("ada", "grace")]
    away = ("access", {"name": "grace", "access": "paused"})
    assert Assignment(Batch(ITEMS, per_item=2), _state(*people)).stuck() == []
    assert len(Assignment(Batch(ITEMS, per_item=2), _state(*people, away)).stuck()) == len(ITEMS)


MARGINS = {
    "one label": ([("first", 2)], 2.0),
    "all agree": ([("second", 1), ("second", 3)], -2.0),
    "a majority, whatever the strength of the minority": ([("first", 1), ("first", 1), ("second", 3)], 1 / 3),
    "a tie takes from the lead": ([("first", 2), ("tie", 1)], 1.0),
    "as many for either": ([("first", 3), ("second", 1)], 0.0),
    "nobody prefers one": ([("both good", 1), ("tie", 1)], 0.0),
}


@pytest.mark.parametrize("case", MARGINS)
def test_the_majority_decides_and_its_strength_and_lead_are_the_margin(case: str) -> None:
    labels, margin = MARGINS[case]
    answers = [Answer(n, "label", verdict, strength) for n, (verdict, strength) in enumerate(labels)]
    assert margin_of(answers) == pytest.approx(margin)


def test_labels_are_a_table() -> None:
    said = [_label(0, "ada", "first", 2), _label(0, "grace", "second", 3), _label(2, "grace", "both bad")]
    swapped = ("label", {"item": ITEMS[1].id, "annotator": "ada", "verdict": "first", "swapped": True, "seconds": 2.5})
    table = label_table(ITEMS, _state(*said, swapped))
    assert table.annotators == ["ada", "grace"]
    assert table.verdict_NA.tolist() == [[0, 1], [0, -1], [-1, 4], [-1, -1]]
    assert table.strength_NA.tolist() == [[2, -3], [1, -9], [-9, 0], [-9, -9]]
    assert table.left_NA.tolist() == [[1, 0], [0, -1], [-1, -1], [-1, -1]]
    assert table.seconds_NA[1, 0] == 2.5


def test_what_is_exported_is_what_people_said() -> None:
    state = _state(
        _label(0, "ada", "second", 3),
        _label(0, "grace", "second", 2),
        _label(0, "mary", "tie"),
        _label(1, "ada", "first"),
        _label(1, "grace", "second"),
        _label(2, "ada", "both bad"),
        ("flag", {"item": ITEMS[3].id, "annotator": "ada", "reason": ""}),
    )
    rows, without = exported(ITEMS, state)
    assert without == {"split": 1, "both bad": 1, "flagged": 1}
    (row,) = rows
    assert (row["chosen"], row["rejected"]) == (_turns("assistant", "other 0"), _turns("assistant", "one 0"))
    assert row["prompt"] == _turns("user", "question 0") and row["margin"] == pytest.approx(5 / 3)
    for one, other in itertools.pairwise(range(1, 6)):  # an export depends on nothing but the events
        assert (
            exported(ITEMS, _state(*([_label(0, "ada", "first")] * one)))[0]
            == exported(ITEMS, _state(*([_label(0, "ada", "first")] * other)))[0]
        )


def _edited(n: int, who: str, verdict: str, edit: str) -> tuple[str, dict[str, Any]]:
    kind, body = _label(n, who, verdict)
    return kind, {**body, "edit": edit} if edit else body


@pytest.mark.parametrize(
    ("said", "chosen", "rejected", "margin"),
    [
        # One person edits the second response: it is chosen as they wrote it over the first as it was.
        ([("ada", "second", "better")], "better", "one 0", 1.0),
        # Two of three prefer the first; the edit of the third is of the other response and is not used. 1 · 1/3
        ([("ada", "first", ""), ("grace", "first", ""), ("mary", "second", "x")], "one 0", "other 0", 1 / 3),
        # Of the people who preferred it, most wrote the same; otherwise the newest edit counts.
        ([("ada", "first", "x"), ("grace", "first", "y"), ("mary", "first", "x")], "x", "other 0", 1.0),
        ([("ada", "first", "x"), ("grace", "first", "y"), ("mary", "first", "")], "y", "other 0", 1.0),
    ],
)
def test_an_edit_of_those_who_preferred_the_response_is_chosen(
    said: list[tuple[str, str, str]], chosen: str, rejected: str, margin: float
) -> None:
    state = _state(*(_edited(0, *one) for one in said))
    (row,), _ = exported(ITEMS[:1], state)
    assert [turn["content"] for turn in row["chosen"]] == [chosen] and row["chosen"][0]["role"] == "assistant"
    assert [turn["content"] for turn in row["rejected"]] == [rejected] and row["margin"] == pytest.approx(margin)
    assert edited_pairs([row], ITEMS) == (chosen not in ("one 0", "other 0"))
    assert ITEMS[0].responses[0][0]["content"] == "one 0"  # the data stay as they are


def test_an_edit_is_of_the_last_turn() -> None:
    turns = [*_turns("assistant", "a"), *_turns("user", "b"), *_turns("assistant", "c")]
    assert [turn["content"] for turn in edited(tuple(turns), "d")] == ["a", "b", "d"]


def _crowd_of(count: int, accuracies: tuple[float, ...]) -> tuple[list[Any], State, list[str]]:
    """Items whose better response is known, and labels of people who are right so often."""
    rng = random.Random(5)
    items, _ = items_of(_row(f"question {n}", f"one {n}", f"other {n}") for n in range(count))
    truth = [rng.choice(("first", "second")) for _ in items]
    said = []
    for item, better in zip(items, truth, strict=True):
        worse = "second" if better == "first" else "first"
        for who, accuracy in enumerate(accuracies):
            verdict = better if rng.random() < accuracy else worse
            said.append(("label", {"item": item.id, "annotator": f"p{who}", "verdict": verdict, "strength": 2}))
    return items, _state(*said), truth


def test_dawid_and_skene_find_more_of_the_truth_than_the_majority() -> None:
    """Two careful people among three careless ones."""
    items, state, truth = _crowd_of(400, (0.95, 0.95, 0.6, 0.6, 0.6))
    right = {}
    for name in ("majority", "dawid_skene"):
        decisions, _ = decided(items, state, decision_by(name, items, state))
        right[name] = sum(verdict == truth[place] for place, (verdict, _) in decisions) / len(items)
        assert all((margin > 0) == (verdict == "first") and abs(margin) <= 2 for _, (verdict, margin) in decisions)
    assert right["dawid_skene"] > 0.95 > right["majority"] + 0.02
    rows, without = exported(items, state, decision_by("dawid_skene", items, state))
    assert len(rows) == 400 and not without


@pytest.mark.parametrize("accuracies", [(0.85, 0.85, 0.85), (0.9, 0.7, 0.6)])
def test_a_pair_is_decided_by_a_verdict_that_somebody_gave(accuracies: tuple[float, ...]) -> None:
    """One label for most pairs, three for 15 %, a tenth of them ties: no tie becomes a preference, nor its opposite."""
    items, everything, _ = _crowd_of(300, accuracies)
    rng, said, given = random.Random(7), [], defaultdict[str, set[str]](set)
    for item in items:
        people = rng.sample([*everything.labels(item.id).items()], 3 if rng.random() < 0.15 else 1)
        for who, label in people:
            verdict = "tie" if rng.random() < 0.1 else str(label.verdict)
            said.append(("label", {"item": item.id, "annotator": who, "verdict": verdict}))
            given[item.id].add(verdict)
    state = _state(*said)
    decisions, _ = decided(items, state, decision_by("dawid_skene", items, state))
    assert len(decisions) == 300
    assert all(verdict in given[items[place].id] or verdict == "split" for place, (verdict, _) in decisions)
    assert any(verdict == "tie" for _, (verdict, _) in decisions)


def test_one_label_each_is_the_decision_however_it_is_made() -> None:
    state = _state(_label(0, "ada", "first", 3), _label(1, "grace", "tie"), _label(2, "mary", "second", 2))
    by_majority, by_estimate = (
        decided(ITEMS, state, decision_by(name, ITEMS, state))[0] for name in ("majority", "dawid_skene")
    )
    assert by_estimate == by_majority and by_estimate[0] == (0, ("first", 3.0))
    assert decision_by("dawid_skene", ITEMS, State()) is majority


def test_people_who_contradict_each_other_are_split_however_it_is_decided() -> None:
    state = _state(_label(0, "ada", "first"), _label(0, "grace", "second"))
    for name in ("majority", "dawid_skene"):
        assert decided(ITEMS[:1], state, decision_by(name, ITEMS[:1], state))[0] == [(0, ("split", 0.0))]


def test_what_a_lead_decided_and_a_flag_of_a_repeat_need_no_labels_of_an_assignment_made_anew() -> None:
    state = _state(
        ("adjudicate", {"item": ITEMS[0].id, "annotator": "lin", "verdict": "first", "strength": 1}),
        _label(1, "ada", "first"),
        ("flag", {"item": f"repeat:{ITEMS[1].id}", "annotator": "ada", "reason": ""}),
    )
    assert Assignment(Batch(ITEMS[:2], per_item=3), state).progress() == (1, 1)
