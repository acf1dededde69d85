"""Labels add up, people get what is theirs to do, agreement is what the textbook says."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from pipeline.preferences.agreement import agreement, exported, krippendorff_alpha
from pipeline.preferences.items import is_swapped, items_of, wanted
from pipeline.preferences.labels import LEASE_S, Batch, State
from pipeline.preferences.ledger import LedgerEvent


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


def test_sides_are_even_and_everybodys_own() -> None:
    sides = [is_swapped(f"item {n}", who) for who in ("ada", "grace") for n in range(2000)]
    assert 0.45 < sum(sides) / len(sides) < 0.55
    assert 0.4 < sum(a == b for a, b in zip(sides[:2000], sides[2000:], strict=True)) / 2000 < 0.6
    assert is_swapped("item 1", "ada") == is_swapped("item 1", "ada")


def test_a_share_of_the_items_is_labelled_three_times() -> None:
    several = [wanted(f"item {n}", 1, 0.15) for n in range(4000)]
    assert set(several) == {1, 3} and 0.13 < several.count(3) / 4000 < 0.17
    assert wanted("x", 5, 1.0) == 5


def test_nobody_gets_what_another_has_until_the_lease_ends() -> None:
    batch = Batch(ITEMS)
    state = _state(("lease", {"annotator": "ada", "items": [ITEMS[0].id, ITEMS[2].id], "until": LEASE_S}))
    assert batch.queue(state, "grace", 1.0) == [ITEMS[1], ITEMS[3]]
    assert batch.queue(state, "grace", LEASE_S + 1) == ITEMS
    assert batch.queue(state, "ada", 1.0) == [ITEMS[0], ITEMS[2], ITEMS[1], ITEMS[3]]  # her own come first


def test_what_is_done_is_not_given_again_and_undo_brings_it_back() -> None:
    batch = Batch(ITEMS, per_item=2)
    said = [_label(0, "ada", "first"), ("skip", {"item": ITEMS[1].id, "annotator": "ada", "reason": ""})]
    state = _state(*said)
    assert batch.queue(state, "ada", 0.0) == ITEMS[2:] and batch.queue(state, "grace", 0.0) == ITEMS
    assert batch.progress(state) == (1, 8)
    state = _state(*said, ("flag", {"item": ITEMS[2].id, "annotator": "ada", "reason": "rude"}))
    assert batch.queue(state, "grace", 0.0) == [ITEMS[0], ITEMS[1], ITEMS[3]]
    assert batch.progress(state) == (1, 6)
    assert state.last("ada") is not None and state.last("ada")[0] == ITEMS[2].id and state.last("grace") is None
    undone = _state(*said, ("undo", {"annotator": "ada", "item": ITEMS[1].id, "event": 2, "until": LEASE_S}))
    assert batch.queue(undone, "ada", 1.0)[0] == ITEMS[1]
    assert batch.progress(_state(*(_label(0, who, "tie") for who in "abc")))[0] == 2  # no more than were wanted


def test_alpha_of_the_textbook() -> None:
    # Krippendorff 2011, section C: nominal data, four observers, twelve units, values missing.
    observers = [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ]
    columns = zip(*(line.split() for line in observers), strict=True)
    assert krippendorff_alpha([[v for v in unit if v != "."] for unit in columns]) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha([["a", "a"], ["b", "b"]]) == 1
    assert krippendorff_alpha([["a", "b"], ["b", "a"]]) == pytest.approx(-0.5)
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) is None and krippendorff_alpha([["a"], []]) is None


def test_agreement_counts_pairs_of_labels() -> None:
    said = [_label(0, who, verdict) for who, verdict in (("ada", "first"), ("grace", "first"), ("mary", "tie"))]
    counts = agreement(ITEMS, _state(*said, _label(1, "ada", "second")))
    assert (counts.items, counts.pairs, counts.same) == (1, 3, 1)


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
