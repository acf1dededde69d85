"""What a turn holds: calls, results, thoughts, what is not learnt; and what is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.records.faults import BadRowError
from pipeline.records.shapes.conversion import shaped
from pipeline.records.shapes.turns import turns_of, unused_keys

ASKED = {"role": "user", "content": "1 plus 2?"}
ANSWER = {"role": "assistant", "content": "3"}
CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": 1}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "3", "tool_call_id": "c1"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
TALK = [ASKED, CALLED, RESULT, ANSWER]


def call(**fields: Any) -> dict[str, Any]:
    """Return a turn of the assistant as a file may hold it."""
    return {"role": "assistant", "content": None, **fields}


@pytest.mark.parametrize(
    "turn",
    [
        call(tool_calls=[CALL]),
        call(tool_calls=[{**CALL, "function": {"name": "add", "arguments": '{"a": 1}'}}]),
        call(tool_calls=json.dumps([CALL])),
        call(tool_calls=[{"id": "c1", "name": "add", "arguments": {"a": 1}}]),
        {"role": "assistant", "tool_calls": [{**CALL, "index": 0}]},
        # Arrow fills in the fields that other calls have, at every depth.
        call(tool_calls=[{**CALL, "function": {"name": "add", "arguments": {"a": 1, "city": None}}}], name=None),
        {"from": "gpt", "value": "", "tool_calls": [CALL]},
    ],
)
def test_a_call_has_one_form(turn: dict[str, Any]) -> None:
    assert turns_of([ASKED, turn], "messages") == [ASKED, CALLED]


def test_older_calls_and_those_of_sharegpt_have_no_id() -> None:
    bare = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    expected = [ASKED, {**CALLED, "tool_calls": [bare]}]
    older = call(function_call={"name": "add", "arguments": '{"a": 1}'})
    assert turns_of([ASKED, older], "messages") == expected
    for text in ('{"name": "add", "arguments": {"a": 1}}', '[{"name": "add", "arguments": {"a": 1}}]'):
        assert turns_of([ASKED, {"from": "function_call", "value": text}], "conversations") == expected


def test_arguments_that_are_text_keep_their_nulls() -> None:
    (turn,) = turns_of([call(tool_calls=[{"name": "add", "arguments": '{"a": null}'}])], "messages")
    assert turn["tool_calls"][0]["function"]["arguments"] == {"a": None}


def test_words_beside_a_call_stay() -> None:
    (turn,) = turns_of([call(tool_calls=[CALL], content="Let me add.")], "messages")
    assert turn == {**CALLED, "content": "Let me add."}


@pytest.mark.parametrize("role", ["tool", "function", "observation", "ipython", "Tool"])
def test_results_of_tools_are_turns_of_a_tool(role: str) -> None:
    given = {"role": role, "content": "3", "tool_call_id": "c1", "name": "add"}
    assert turns_of([given], "messages") == [{**RESULT, "name": "add"}]


def test_a_tool_may_return_nothing_or_an_object() -> None:
    assert turns_of([{"role": "tool", "content": ""}], "m") == [{"role": "tool", "content": ""}]
    assert turns_of([{"role": "tool", "content": {"sum": 3}}], "m") == [{"role": "tool", "content": '{"sum": 3}'}]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_have_one_name(key: str) -> None:
    assert turns_of([{**ANSWER, key: "I add."}], "m") == [{**ANSWER, "reasoning_content": "I add."}]
    assert turns_of([{**ANSWER, key: None}], "m") == [ANSWER]


@pytest.mark.parametrize(
    "said", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss_mask": 0}, {"training": False}, {"loss": False}]
)
def test_a_turn_that_is_not_learnt_says_so(said: dict[str, Any]) -> None:
    assert turns_of([{**ANSWER, **said}], "m") == [{**ANSWER, "train": False}]
    ones = dict.fromkeys(said, 1)
    assert turns_of([{**ANSWER, **ones}], "m") == [ANSWER]


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({**ANSWER, "weight": 0.5}, "`m` turn 1 has weight 0.5; expected 0 or 1"),
        ({**ANSWER, "train": "no"}, "`m` turn 1 has train 'no'; expected 0 or 1"),
        ({**ASKED, "images": ["a.png"]}, "`m` turn 1 has `images`; expected text only"),
        (
            call(tool_calls=[{"function": {"arguments": {}}}]),
            "`m` turn 1 call 1 is an object; expected a call with the `n",
        ),
        (
            call(tool_calls=[{"name": "add", "arguments": "1"}]),
            "`m` turn 1 call 1 has arguments that are 1; expected an o",
        ),
        (call(tool_calls=[{"name": "add", "arguments": "{"}]), "`m` turn 1 call 1 arguments is text that is not JSON"),
        (call(tool_calls=[]), "`m` turn 1 is missing; expected text"),
        ({"from": "function_call", "value": "add it"}, "`m` turn 1 is text that is not JSON"),
        ({**ANSWER, "reasoning_content": ["I"]}, "`m` turn 1 reasoning is a list; expected text"),
    ],
)
def test_what_a_turn_cannot_hold_is_refused_by_name(turn: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRowError) as caught:
        turns_of([turn], "m")
    assert str(caught.value).startswith(reason)


def test_roles_are_told_in_any_case() -> None:
    assert turns_of([{"role": "User", "content": "1 plus 2?"}, {"role": "GPT", "content": "3"}], "m") == [ASKED, ANSWER]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([ASKED, RESULT, ANSWER], "`messages` turn 2 is of role tool; expected assistant"),
        ([ASKED, CALLED, RESULT], "`messages` ends with a turn of the tool; expected the assistant"),
        ([ASKED, ANSWER, ANSWER], "`messages` turn 3 is of role assistant; expected user or tool"),
        ([ASKED, {**ANSWER, "weight": 0}], "no turn of the assistant is to be learnt"),
    ],
)
def test_the_order_of_turns(turns: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(BadRowError) as caught:
        shaped({"messages": turns}, "messages", "messages")
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    "row",
    [
        {"tools": [TOOL]},
        {"tools": json.dumps([TOOL])},
        {"tools": [json.dumps(TOOL)]},
        {"tools": [TOOL["function"]]},
        {"functions": [TOOL["function"]]},
        {"tools": [{**TOOL, "strict": None}]},
    ],
)
def test_tools_stand_beside_every_shape(row: dict[str, Any]) -> None:
    assert shaped({"messages": TALK, **row}, "messages", "messages") == {"messages": TALK, "tools": [TOOL]}
    assert shaped({"messages": TALK, **row}, "messages", "prompt")["tools"] == [TOOL]
    pair = {"prompt": "1 plus 2?", "chosen": TALK[1:], "rejected": [ANSWER], **row}
    made = shaped(pair, "preference", "preference")
    assert made == {"prompt": [ASKED], "chosen": TALK[1:], "rejected": [ANSWER], "margin": None, "tools": [TOOL]}


@pytest.mark.parametrize("tools", [[], None, "", "[]"])
def test_no_tools_are_no_tools(tools: object) -> None:
    assert shaped({"messages": TALK, "tools": tools}, "messages", "messages") == {"messages": TALK}


def test_tools_that_are_none_make_a_bad_row() -> None:
    for tools, reason in (("add", "`tools` is text that is not JSON"), ([{"x": 1}], "`tools` tool 1 is an object")):
        with pytest.raises(BadRowError, match=reason):
            shaped({"messages": TALK, "tools": tools}, "messages", "messages")


def test_a_prompt_may_end_with_a_result() -> None:
    assert shaped({"messages": TALK}, "messages", "prompt")["prompt"] == TALK[:3]
    labelled = shaped({"messages": TALK, "label": 1}, "messages", "labelled")
    assert (labelled["prompt"], labelled["completion"]) == (TALK[:3], [ANSWER])


PLAIN = {"prompt": " 1 plus 2?\n", "completion": " 3 ", "chosen": " 3 ", "rejected": "4"}


@pytest.mark.parametrize(
    ("name", "shape"), [("prompt_completion", "messages"), ("preference", "preference"), ("prompt", "prompt")]
)
def test_plain_text_is_said_and_kept_to_the_letter(name: str, shape: Any) -> None:
    made = shaped(PLAIN, name, shape)
    assert made["plain_text"] is True
    first = made["messages" if shape == "messages" else "prompt"][0]
    assert first == {"role": "user", "content": " 1 plus 2?\n"}
    if shape == "preference":
        assert made["chosen"] == [{"role": "assistant", "content": " 3 "}]
    # A system turn, tools or turns on one side make it a conversation.
    for more, system in (({"system": "S"}, None), ({}, "S"), ({"tools": [TOOL]}, None), ({"prompt": [ASKED]}, None)):
        assert "plain_text" not in shaped({**PLAIN, **more}, name, shape, system)


def test_calls_and_thoughts_are_in_the_text_of_a_conversation() -> None:
    turns = [ASKED, {**CALLED, "reasoning_content": "I add."}, RESULT, ANSWER]
    text = shaped({"messages": turns}, "messages", "text")["text"]
    assert text == '1 plus 2?\n\nI add.\n{"name": "add", "arguments": {"a": 1}}\n\n3\n\n3'


@pytest.mark.parametrize(
    "value", [{"role": ["x"], "content": {}}, {"role": "tool", "content": "1", "name": 3}, 7, None]
)
def test_what_is_no_turn_is_a_bad_row_and_never_an_exception(value: object) -> None:
    with pytest.raises(BadRowError):
        turns_of([ASKED, value], "m")


def test_keys_that_only_another_speaker_uses_are_named() -> None:
    call = {"name": "f", "arguments": {}}
    assert list(unused_keys({"role": "user", "content": "q", "tool_calls": [call], "thinking": "t"})) == [
        "tool_calls",
        "thinking",
    ]
    assert list(unused_keys({"role": "user", "content": "q", "train": True})) == ["train"]
    assert list(unused_keys({"role": "user", "content": "q", "weight": 0, "name": "bob"})) == ["name"]
    assert list(unused_keys({"role": "assistant", "content": "a", "tool_calls": [call], "weight": 1})) == []
    assert list(unused_keys({"role": "assistant", "content": "a", "reasoning": "r", "thinking": "s"})) == ["thinking"]
    assert list(unused_keys({"role": "tool", "content": "4", "tool_call_id": "1", "name": "f"})) == []
    assert list(unused_keys({"from": "gpt", "value": "a", "text": "b"})) == ["text"]


def test_a_call_beside_other_calls_is_not_dropped() -> None:
    call, other = {"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": "{}"}
    asked = {"role": "user", "content": "q"}
    with pytest.raises(BadRowError, match="another call in `function_call`; expected all calls in `tool_calls`"):
        turns_of([asked, {"role": "assistant", "content": None, "tool_calls": [call], "function_call": other}], "m")
    same = turns_of([asked, {"role": "assistant", "tool_calls": [call], "function_call": call}], "m")
    assert [one["function"]["name"] for one in same[1]["tool_calls"]] == ["f"]


@pytest.mark.parametrize(("kind", "words"), [("thinking", "reasoning_content"), ("tool_use", "tool_calls")])
def test_a_part_that_belongs_elsewhere_is_refused_with_its_place(kind: str, words: str) -> None:
    parts = [{"type": kind, kind: "x"}, {"type": "text", "text": "a"}]
    with pytest.raises(BadRowError, match=f"part of type `{kind}`; expected .*`{words}`"):
        turns_of([{"role": "assistant", "content": parts}], "m")


def test_tools_under_two_names_are_one_list_or_a_bad_row() -> None:
    function = TOOL["function"]
    both = {"messages": TALK, "tools": [TOOL], "functions": [function]}
    assert shaped(both, "messages", "messages")["tools"] == [TOOL]
    with pytest.raises(BadRowError, match="has `tools` and others in `functions`; expected all of them in `tools`"):
        shaped({**both, "functions": [{"name": "other"}]}, "messages", "messages")
    assert shaped({**both, "tools": []}, "messages", "messages")["tools"] == [TOOL]
