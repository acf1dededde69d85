"""Laws of the held-out split: by prompt, the same for ever, wherever the row comes from."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pipeline.records.split import key, position, split

PROMPTS = st.lists(st.text(max_size=8), max_size=30)
SHARES = st.floats(0, 1)


def prompt_row(text: str, **more: Any) -> dict[str, Any]:
    return {"prompt": [{"role": "user", "content": text}], **more}


def sides(prompts: list[str], share: float) -> tuple[set[str], set[str]]:
    train, held_out = split([prompt_row(text) for text in prompts], share, "prompt")
    return {key(row, "prompt") for row in train}, {key(row, "prompt") for row in held_out}


@given(PROMPTS, SHARES)
def test_every_row_is_on_one_side_and_all_rows_of_a_prompt_on_the_same(prompts: list[str], share: float) -> None:
    rows = [prompt_row(text, n=number) for number, text in enumerate(prompts)]
    train, held_out = split(rows, share, "prompt")
    assert sorted(row["n"] for row in train + held_out) == list(range(len(rows)))
    assert [row["n"] for row in train] == sorted(row["n"] for row in train)
    assert [row["n"] for row in held_out] == sorted(row["n"] for row in held_out)
    assert not {key(row, "prompt") for row in train} & {key(row, "prompt") for row in held_out}


@given(PROMPTS, SHARES, st.randoms(use_true_random=False))
def test_row_order_does_not_change_the_sides(prompts: list[str], share: float, chance: random.Random) -> None:
    before = sides(prompts, share)
    chance.shuffle(prompts)
    assert sides(prompts, share) == before


@given(PROMPTS, SHARES, SHARES)
def test_a_larger_share_holds_out_all_that_a_smaller_one_does(prompts: list[str], one: float, two: float) -> None:
    low, high = sorted([one, two])
    assert sides(prompts, low)[1] <= sides(prompts, high)[1]


@given(PROMPTS, st.floats(0.001, 0.999))
def test_both_sides_get_a_prompt_when_there_are_two(prompts: list[str], share: float) -> None:
    train, held_out = sides(prompts, share)
    if len(train | held_out) >= 2:
        assert train and held_out
    else:
        assert not held_out


def test_no_share_holds_nothing_out() -> None:
    assert sides(["a", "b", "c"], 0) == ({"a", "b", "c"}, set())


def test_new_rows_do_not_move_old_ones() -> None:
    prompts = [f"question {number}" for number in range(500)]
    few, many = sides(prompts[:200], 0.2), sides(prompts, 0.2)
    assert few[0] <= many[0] and few[1] <= many[1]


def test_the_share_is_near_the_one_asked_for() -> None:
    # 10,000 prompts at 0.1: a standard deviation of sqrt(10000 * 0.1 * 0.9) = 30; four of them are 120.
    _, held_out = sides([f"question {number}" for number in range(10_000)], 0.1)
    assert abs(len(held_out) - 1000) < 120


def test_positions_stay_what_they_were() -> None:
    """A change here would put old held-out prompts into training.

    By hand: ``int(blake2b(text, digest_size=8, key=b"trueup-held-out").hexdigest(), 16) / 2**64``.
    """
    assert [round(position(text), 6) for text in ("", "what is two plus two?")] == [0.506501, 0.143669]


def test_case_white_space_and_unicode_forms_do_not_count() -> None:
    variants = ["Où est  le\ncafé?", " où est le CAFÉ? ", "Où est le cafe\u0301?"]
    assert len({key(prompt_row(text), "prompt") for text in variants}) == 1


def test_a_prompt_is_on_one_side_in_every_shape_and_at_every_turn_of_its_conversation() -> None:
    asked = {"role": "user", "content": "Hi"}
    answer = {"role": "assistant", "content": "Hello."}
    more = {"role": "user", "content": "And then?"}
    system = {"role": "system", "content": "Be kind."}
    keys = {
        key({"messages": [asked, answer], "prompt": "an extra column", "text": "another"}, "messages"),
        key({"messages": [system, asked, answer, more, answer]}, "messages"),
        key({"prompt": [asked], "chosen": [answer], "rejected": [answer]}, "preference"),
        key({"prompt": [system, asked], "completion": [answer], "label": False}, "labelled"),
        key({"prompt": [system, asked, answer, more], "text": "an extra column"}, "prompt"),
        key({"text": "Hi"}, "text"),
    }
    assert keys == {"hi"}
