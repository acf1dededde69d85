"""Every row format into every shape it gives, and every reason a row is bad."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records.columns.unused import Unused
from pipeline.records.faults import BadRowError
from pipeline.records.shapes.conversion import shaped
from pipeline.records.shapes.detection import detected_format
from pipeline.records.shapes.formats import FORMATS
from pipeline.stage import Shape


def detect(rows: list[dict[str, Any]], *shapes: Shape) -> str | None:
    """Return the name of the format that rows are taken for."""
    detected = detected_format(rows, shapes)
    return detected.format if detected else None


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


HI = [user("Hi"), assistant("Hello.")]
LONG = [user("Hi"), assistant("Hello."), user("Bye"), assistant("Good-bye.")]
OTHER = [*LONG[:3], assistant("No.")]
HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Bye\n\nAssistant: "
PAIR = {"prompt": LONG[:3], "chosen": LONG[3:], "rejected": OTHER[3:], "margin": None}
GOOD = {"prompt": HI[:1], "completion": HI[1:], "label": True}
SIMPLE_PAIR = {"prompt": [user("Hi")], "chosen": [assistant("Yes")], "rejected": [assistant("No")], "margin": None}

CASES: list[tuple[str, Shape, dict[str, Any], dict[str, Any]]] = [
    ("text", "text", {"text": "Once."}, {"text": "Once."}),
    ("text", "prompt", {"text": "Once."}, {"prompt": [user("Once.")]}),
    ("messages", "messages", {"messages": LONG}, {"messages": LONG}),
    ("messages", "messages", {"messages": [system("Be kind."), *HI]}, {"messages": [system("Be kind."), *HI]}),
    ("messages", "messages", {"messages": [system(" "), *HI]}, {"messages": HI}),
    ("messages", "messages", {"messages": json.dumps(HI)}, {"messages": HI}),
    ("messages", "prompt", {"messages": HI}, {"prompt": HI[:1], "messages": HI}),
    ("messages", "prompt", {"messages": LONG[:3]}, {"prompt": LONG[:3], "messages": LONG[:3]}),
    ("prompt_completion", "messages", {"prompt": "Hi", "completion": "Hello."}, {"messages": HI}),
    ("prompt_completion", "messages", {"prompt": LONG[:3], "completion": LONG[3:]}, {"messages": LONG}),
    (
        "prompt_completion",
        "prompt",
        {"prompt": "Hi", "completion": "Hello."},
        {"prompt": HI[:1], "completion": "Hello."},
    ),
    (
        "sharegpt",
        "messages",
        {
            "conversations": [
                {"from": "system", "value": "Be kind."},
                {"from": "human", "value": "Hi"},
                {"from": "gpt", "value": "Hello."},
            ]
        },
        {"messages": [system("Be kind."), *HI]},
    ),
    ("sharegpt", "messages", {"conversations": HI, "system": "Be kind."}, {"messages": [system("Be kind."), *HI]}),
    ("alpaca", "messages", {"instruction": "Hi", "input": "", "output": "Hello."}, {"messages": HI}),
    (
        "alpaca",
        "messages",
        {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be kind.", "history": [["Hi", "Hello."]]},
        {"messages": [system("Be kind."), *HI, user("Add.\n\n1 2"), assistant("3")]},
    ),
    ("hh", "preference", {"chosen": HH + "Good-bye.", "rejected": HH + "No."}, PAIR),
    ("hh", "preference", {"prompt": HH, "chosen": "Good-bye.", "rejected": "No."}, PAIR),
    ("hh", "prompt", {"chosen": HH + "A", "rejected": HH + "B"}, {"prompt": LONG[:3]}),
    ("preference", "preference", {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}, SIMPLE_PAIR),
    ("preference", "preference", {"prompt": LONG[:3], "chosen": LONG[3:], "rejected": OTHER[3:]}, PAIR),
    ("preference", "preference", {"chosen": LONG, "rejected": OTHER}, PAIR),
    ("preference", "preference", {"prompt": "Bye", "chosen": LONG, "rejected": OTHER}, PAIR),
    (
        "preference",
        "preference",
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "margin": "1.5"},
        {**SIMPLE_PAIR, "margin": 1.5},
    ),
    (
        "preference",
        "preference",
        {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "margin": 2, "system": "Be kind."},
        {**SIMPLE_PAIR, "prompt": [system("Be kind."), user("Hi")], "margin": 2.0},
    ),
    ("preference", "prompt", {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}, {"prompt": [user("Hi")]}),
    ("prompt_completion", "labelled", {"prompt": "Hi", "completion": "Hello.", "label": True}, GOOD),
    (
        "prompt_completion",
        "labelled",
        {"prompt": HI[:1], "completion": HI[1:], "label": False},
        {**GOOD, "label": False},
    ),
    (
        "prompt_completion",
        "labelled",
        {"prompt": "Hi", "completion": "Hello.", "label": 1, "system": "Be kind."},
        {**GOOD, "prompt": [system("Be kind."), user("Hi")]},
    ),
    (
        "prompt_completion",
        "labelled",
        {"prompt": "Hi", "completion": LONG[1:], "label": 1},
        {"prompt": LONG[:3], "completion": LONG[3:], "label": True},
    ),
    (
        "messages",
        "labelled",
        {"messages": LONG, "label": 0},
        {"prompt": LONG[:3], "completion": LONG[3:], "label": False},
    ),
    ("messages", "labelled", {"messages": HI, "label": None, "kto_tag": True}, GOOD),
    (
        "sharegpt",
        "labelled",
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}], "kto_tag": True},
        GOOD,
    ),
    ("alpaca", "labelled", {"instruction": "Hi", "output": "Hello.", "desirable": "False"}, {**GOOD, "label": False}),
    ("prompt", "prompt", {"prompt": "Hi"}, {"prompt": [user("Hi")]}),
    ("prompt", "prompt", {"prompt": LONG[:3]}, {"prompt": LONG[:3]}),
    ("prompt", "prompt", {"turns": ["Hi", "Bye"]}, {"prompt": [user("Hi")], "turns": ["Hi", "Bye"]}),
]


@pytest.mark.parametrize(("name", "shape", "row", "expected"), CASES)
def test_a_row_of_every_format_is_told_and_shaped(
    name: str, shape: Shape, row: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert detect([row], shape) == name
    got = shaped({"id": 7, "margin_of_error": None, **row}, name, shape)
    assert got.pop("id") == 7 and got.pop("margin_of_error") is None  # columns that are not ours stay
    assert {key: got[key] for key in expected} == expected
    if shape != "prompt":
        assert set(got) - {"plain_text"} == set(expected)  # columns that became the shape do not stay beside it


@pytest.mark.parametrize(
    ("name", "row", "text"),
    [
        ("messages", {"messages": [system("S"), *HI]}, "S\n\nHi\n\nHello."),
        ("alpaca", {"instruction": "Hi", "output": "Hello."}, "Hi\n\nHello."),
        ("preference", {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}, "Hi\n\nYes"),
    ],
)
def test_turns_become_text_when_asked(name: str, row: dict[str, Any], text: str) -> None:
    assert shaped(row, name, "text") == {"text": text}


def test_the_chosen_side_becomes_a_demonstration_when_asked() -> None:
    assert shaped({"chosen": LONG, "rejected": OTHER}, "preference", "messages") == {"messages": LONG}


@pytest.mark.parametrize(
    ("row", "shape", "expected"),
    [
        ({"prompt": "x", "chosen": "a", "rejected": "b", "messages": HI}, "preference", "preference"),
        ({"prompt": "x", "messages": HI}, "messages", "messages"),
        ({"text": "t", "messages": HI}, "text", "text"),
        ({"text": "t", "messages": HI}, "messages", "messages"),
        ({"prompt": "x", "text": "t"}, "prompt", "prompt"),
        ({"prompt": "x", "completion": None}, "prompt", "prompt"),
        ({"chosen": "Human: but no turn", "rejected": "b"}, "preference", "hh"),
        ({"question": "x", "answer": "y"}, "messages", None),
        ({}, "text", None),
    ],
)
def test_the_richest_format_wins(row: dict[str, Any], shape: Shape, expected: str | None) -> None:
    assert detect([row], shape) == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "x", "completion": "y", "label": True}, "prompt_completion"),
        ({"prompt": "x", "chosen": "a", "rejected": "b"}, "preference"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "completion": "a", "label": 0}, "preference"),
        ({"prompt": "x", "chosen": "a"}, "preference"),
        ({"prompt": "x", "completion": "y", "label": True, "chosen": None}, "prompt_completion"),
        ({"text": "t", "label": 1}, "text"),
    ],
)
def test_pairs_and_labelled_rows_are_told_apart(row: dict[str, Any], expected: str) -> None:
    assert detect([row], "preference", "labelled") == expected


@pytest.mark.parametrize(
    ("said", "label"),
    [
        *((said, True) for said in (True, 1, 1.0, "true", "True", " 1")),
        *((said, False) for said in (False, 0, 0.0, "false", "FALSE", "0")),
    ],
)
def test_a_label_is_said_in_words_or_numbers(said: object, label: bool) -> None:
    assert shaped({"prompt": "Hi", "completion": "Hello.", "label": said}, "prompt_completion", "labelled") == {
        **GOOD,
        "plain_text": True,
        "label": label,
    }


def test_only_the_column_that_held_the_label_goes() -> None:
    row = {"prompt": "Hi", "completion": "Hello.", "kto_tag": False, "desirable": "very", "rating": 4}
    expected = {**GOOD, "plain_text": True, "label": False, "desirable": "very", "rating": 4}
    assert shaped(row, "prompt_completion", "labelled") == expected


def test_a_few_odd_rows_do_not_change_the_format() -> None:
    assert detect([{"prompt": "x"}, {"messages": HI}, {"messages": HI}], "messages") == "messages"


BAD: list[tuple[str, Shape, dict[str, Any], str]] = [
    ("text", "text", {}, "`text` is missing; expected text"),
    ("text", "text", {"text": " \n"}, "`text` is empty; expected text"),
    ("text", "text", {"text": 3}, "`text` is 3; expected text"),
    ("text", "text", {"text": "a\ud800"}, "`text` holds half of a surrogate pair; expected Unicode text"),
    ("messages", "messages", {"messages": []}, "`messages` is an empty list; expected a list of messages"),
    ("messages", "messages", {"messages": "Hi"}, "`messages` is a text; expected a list of messages"),
    (
        "messages",
        "messages",
        {"messages": "[{'role': 'user', 'content': array(['Hi'])}]"},
        "`messages` is the text of a Python list that cannot be read, as pandas writes one to CSV; expected JSON. ",
    ),
    ("messages", "messages", {"messages": ["Hi"]}, "`messages` turn 1 is a text; expected an object with `role`"),
    (
        "messages",
        "messages",
        {"messages": [{"role": "judge", "content": "Hi"}]},
        '`messages` turn 1 has unknown role "judge"; expected one of system, user, assistant, tool',
    ),
    ("messages", "messages", {"messages": [user("Hi"), assistant("")]}, "`messages` turn 2 is empty; expected text"),
    (
        "messages",
        "messages",
        {"messages": [user("Hi"), {"role": "assistant", "content": None}]},
        "`messages` turn 2 is missing; expected text",
    ),
    ("messages", "messages", {"messages": HI[:1]}, "`messages` ends with a turn of the user; expected the assistant"),
    ("messages", "messages", {"messages": HI[1:]}, "`messages` turn 1 is of role assistant; expected user"),
    ("messages", "messages", {"messages": [HI[0], *HI]}, "`messages` turn 2 is of role user; expected assistant"),
    ("messages", "messages", {"messages": [*HI, system("S")]}, "`messages` turn 3 is of role system; expected user"),
    ("messages", "messages", {"messages": [system("S")]}, "`messages` has no turn but the system's"),
    (
        "messages",
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "`messages` turn 1 has a part of type `image_url`",
    ),
    ("prompt_completion", "messages", {"prompt": "Hi"}, "`completion` is missing; expected text"),
    ("prompt_completion", "messages", {"prompt": HI, "completion": "x"}, "`prompt` ends with a turn of the assistant"),
    (
        "sharegpt",
        "messages",
        {"conversations": [{"from": "judge", "value": "x"}]},
        "`conversations` turn 1 has unknown",
    ),
    ("alpaca", "messages", {"instruction": "Hi", "output": None}, "`output` is missing; expected text"),
    ("alpaca", "messages", {"instruction": "x", "output": "y", "history": ["z"]}, "`history` exchange 1 is 'z'"),
    ("hh", "preference", {"chosen": "Hello", "rejected": "x"}, "`chosen` does not start with a speaker"),
    ("hh", "preference", {"chosen": HH + "A", "rejected": HH + "A"}, "`chosen` and `rejected` are the same"),
    ("hh", "preference", {"chosen": HH + "A", "rejected": HH}, "`rejected` turn 4 (Assistant) is empty"),
    (
        "hh",
        "preference",
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"},
        "`chosen` and `rejected` share no prompt",
    ),
    ("preference", "preference", {"prompt": "Hi", "chosen": "a"}, "`rejected` is missing; expected text"),
    ("preference", "preference", {"chosen": "a", "rejected": "b"}, "`prompt` is missing; expected a `prompt`, or"),
    (
        "preference",
        "preference",
        {"prompt": "Hi", "chosen": "a", "rejected": "a"},
        "`chosen` and `rejected` are the same",
    ),
    (
        "preference",
        "preference",
        {"prompt": "Else", "chosen": LONG, "rejected": OTHER},
        "`prompt` differs from the turns",
    ),
    (
        "preference",
        "preference",
        {"prompt": HI, "chosen": "a", "rejected": "b"},
        "`prompt` ends with a turn of the assi",
    ),
    ("prompt_completion", "labelled", {"prompt": "a", "completion": "b"}, "`label` is missing; expected true or false"),
    (
        "prompt_completion",
        "labelled",
        {"prompt": "a", "completion": "b", "label": ""},
        "`label` is missing; expected true or false",
    ),
    (
        "prompt_completion",
        "labelled",
        {"prompt": "a", "completion": "b", "kto_tag": "so-so"},
        "`kto_tag` is 'so-so'; expected true or false (or 1 or 0)",
    ),
    *(
        ("prompt_completion", "labelled", {"prompt": "a", "completion": "b", "label": label}, "`label` is ")
        for label in (2, -1, 0.5, float("nan"), "yes and no", [True], {"value": True})
    ),
    (
        "prompt_completion",
        "labelled",
        {"prompt": "a", "completion": " ", "label": 1},
        "`completion` is empty; expected text",
    ),
    ("messages", "labelled", {"messages": [user("Hi"), assistant("")], "label": 1}, "`messages` turn 2 is empty"),
    ("messages", "labelled", {"messages": LONG[:3], "label": 1}, "`messages` ends with a turn of the user; expected"),
    *(
        ("preference", "preference", {"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": margin}, "`margin` is ")
        for margin in (float("nan"), "much", True, [1], 10**400)
    ),
    ("prompt", "prompt", {"prompt": HI}, "`prompt` ends with a turn of the assistant; expected the user"),
    ("prompt", "prompt", {"prompt": None}, "`prompt` is missing; expected text"),
]


@pytest.mark.parametrize(("name", "shape", "row", "reason"), BAD)
def test_a_bad_row_says_what_was_found_and_expected(name: str, shape: Shape, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRowError) as caught:
        shaped(row, name, shape)
    assert str(caught.value).startswith(reason)
    assert "; expected " in str(caught.value)


def test_parts_of_text_are_joined() -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    row = {"messages": [{"role": "user", "content": parts}, HI[1]]}
    assert shaped(row, "messages", "messages") == {"messages": HI}


def test_conversations_that_part_at_a_user_turn_share_the_prompt_before_it() -> None:
    chosen = [user("Hi"), assistant("A"), user("B"), assistant("C")]
    rejected = [user("Hi"), assistant("A"), user("D"), assistant("E")]
    got = shaped({"chosen": chosen, "rejected": rejected}, "preference", "preference")
    assert got == {"prompt": chosen[:1], "chosen": chosen[1:], "rejected": rejected[1:], "margin": None}


def test_the_recipes_system_turn_is_for_rows_that_have_none() -> None:
    own = {"messages": [system("Mine."), *HI]}
    assert shaped({"messages": HI}, "messages", "messages", "Ours.")["messages"] == [system("Ours."), *HI]
    assert shaped(own, "messages", "messages", "Ours.") == own
    pair = shaped({"prompt": "Hi", "chosen": "a", "rejected": "b"}, "preference", "preference", "Ours.")
    assert pair["prompt"] == [system("Ours."), user("Hi")]


def test_a_row_given_is_not_changed() -> None:
    row = {"messages": [dict(turn) for turn in HI], "system": "S"}
    before = json.dumps(row)
    shaped(row, "messages", "messages", "Ours.")
    assert json.dumps(row) == before


SAID = st.text(min_size=1, max_size=12).filter(
    lambda text: text.strip() == text and "Human:" not in text and "Assistant:" not in text and text.strip()
)
ASKED = st.lists(SAID, min_size=1, max_size=4)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    turns = [turn for asked in draw(ASKED) for turn in (user(asked), assistant(draw(SAID)))]
    return [system(draw(SAID)), *turns] if draw(st.booleans()) else turns


@given(conversations())
def test_messages_and_sharegpt_say_the_same(turns: list[dict[str, str]]) -> None:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    sharegpt = [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]
    assert shaped({"messages": turns}, "messages", "messages") == {"messages": turns}
    assert shaped({"conversations": sharegpt}, "sharegpt", "messages") == {"messages": turns}


@given(ASKED, SAID, SAID)
def test_a_pair_is_the_same_however_it_is_written(asked: list[str], one: str, two: str) -> None:
    prompt = [turn for text in asked for turn in (user(text), assistant("So?"))][:-1]
    chosen, rejected = assistant(f"1 {one}"), assistant(f"2 {two}")
    expected = {"prompt": prompt, "chosen": [chosen], "rejected": [rejected], "margin": None}
    said = {"user": "Human", "assistant": "Assistant"}
    start = "".join(f"\n\n{said[turn['role']]}: {turn['content']}" for turn in prompt)
    explicit = {"prompt": prompt, "chosen": chosen["content"], "rejected": rejected["content"]}
    implicit = {"chosen": [*prompt, chosen], "rejected": [*prompt, rejected]}
    texts = {
        "chosen": f"{start}\n\nAssistant: {chosen['content']}",
        "rejected": f"{start}\n\nAssistant: {rejected['content']}",
    }
    assert shaped(explicit, "preference", "preference") == expected
    assert shaped(implicit, "preference", "preference") == expected
    assert shaped(texts, "hh", "preference") == expected


def test_the_formats_are_those_a_recipe_may_name() -> None:
    from typing import get_args

    from pipeline.recipe.data_source import Format

    assert {"auto", *FORMATS} == set(get_args(Format))


CANDIDATES = {
    "prompt": HI[:1],
    "row": 3,
    "candidates": [{"text": "Yes", "model": "sft"}, {"text": "No", "model": "dpo"}],
}


def test_candidates_are_rows_of_their_own_where_a_stage_takes_them() -> None:
    scored = {**CANDIDATES, "pairs": [], "reward_scores": {"rm": [1.0, 2.0]}}
    for row in (CANDIDATES, scored):
        assert detect([row], "candidates") == "candidates"
        assert detect([row], "preference", "candidates") == "candidates"
        assert detect([row], "prompt") == "prompt"  # the prompts of candidates may be asked again
        assert shaped(row, "candidates", "candidates") == row
    sampled = {**CANDIDATES, "pairs": [], "chosen": HI, "rejected": HI, "responses": ["a", "b"], "scores": [1, 2]}
    assert detect([sampled], "preference", "candidates") == "candidates"  # answers to the prompts of pairs
    told = shaped({**CANDIDATES, "prompt": "Hi", "tools": []}, "candidates", "candidates")
    assert told["prompt"] == HI[:1] and told["plain_text"] is True
    voted = {"prompt": "Hi", "candidates": [{"text": "Yes", "score": 1}, {"text": "No", "score": 2}]}
    assert detect([voted], "preference", "candidates") == "comparison"  # a pair, as ever
    assert detect([voted], "candidates") == "candidates"


@pytest.mark.parametrize(
    "answers", [None, [], "Yes", ["Yes", "No"], [{"text": 1}], [{"text": "Yes"}, {"answer": "No"}]]
)
def test_what_is_no_list_of_answers_is_a_bad_row(answers: Any) -> None:
    assert detect([{"prompt": "Hi", "candidates": answers}], "candidates") != "candidates"
    with pytest.raises(BadRowError, match="`candidates` holds something else than answers; expected a list of"):
        shaped({"prompt": "Hi", "candidates": answers}, "candidates", "candidates")


def test_half_a_surrogate_pair_in_a_candidate_is_a_bad_row() -> None:
    with pytest.raises(BadRowError, match="the text of a candidate holds half of a surrogate pair"):
        shaped({"prompt": "Hi", "candidates": [{"text": "Yes"}, {"text": "No \ud83d"}]}, "candidates", "candidates")
    assert shaped({"prompt": "Hi", "candidates": [{"text": ""}]}, "candidates", "candidates")["candidates"]


def test_how_a_pair_was_chosen_is_no_column_that_is_missed() -> None:
    seen = Unused("preference")
    row = {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "propensity": 0.5}
    made = shaped(row, "preference", "preference")
    seen.look(row, "preference", made)
    assert seen.names() == () and made["propensity"] == 0.5
