"""Calls and parts of turns under the names that other tools give them: nothing in them is lost without a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.records import load
from pipeline.records.faults import BadRowError
from pipeline.records.shapes.turns import turns_of, unused_keys

ASKED = {"role": "user", "content": "1 plus 2?"}
ANSWER = {"role": "assistant", "content": "3"}
ADD = {"name": "add", "arguments": {"a": 1}}


def called(call: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that the one call of a turn has once it is read."""
    turns = turns_of([ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}], "messages")
    return dict(turns[1]["tool_calls"][0]["function"]["arguments"])


@pytest.mark.parametrize(
    "call",
    [
        {"name": "add", "parameters": {"a": 1}},  # Llama
        {"name": "add", "args": {"a": 1}},  # LangChain, Google
        {"type": "tool_use", "name": "add", "input": {"a": 1}},  # Anthropic
        {"function": {"name": "add", "args": '{"a": 1}'}},
        {"name": "add", "arguments": None, "parameters": {"a": 1, "b": None}},  # Arrow fills in what others have
        {"name": "add", "arguments": {"a": 1}, "parameters": '{"a": 1}'},
    ],
)
def test_arguments_are_read_under_every_name(call: dict[str, Any]) -> None:
    assert called(call) == {"a": 1}


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({**ADD, "parameters": {"b": 2}}, "has `arguments` and others in `parameters`; expected all arguments in `arg"),
        ({"name": "add", "args": [1]}, "call 1 has args that are a list; expected an object"),
        ({**ADD, "id": 7}, "call 1 `id` is 7; expected text"),
        ({"name": "add", "arguments": '{"a": 1, "a": 2}'}, "arguments has the key `a` twice in one object; expected"),
    ],
)
def test_calls_that_say_two_things_are_bad(call: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRowError) as caught:
        called(call)
    assert reason in str(caught.value)


def test_keys_of_calls_that_no_one_reads_are_named() -> None:
    call = {"index": 1, "id": "1", "function": {**ADD, "result": "3", "note": None}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call], "function_call": {**ADD, "output": "3"}}
    assert list(unused_keys(turn)) == ["function_call.output", "tool_calls[].index", "tool_calls[].result"]


def test_a_turn_that_is_a_call_may_have_a_thought_and_be_left_out() -> None:
    call = {"from": "function_call", "value": json.dumps(ADD), "thinking": "Add.", "train": False}
    made = turns_of([{"from": "human", "value": "1 plus 2?"}, call], "conversations")[1]
    assert (made["reasoning_content"], made["train"]) == ("Add.", False)
    assert list(unused_keys(call)) == []


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}, "text": "a cat"}, "type `image_url`; expected text only"),
        ({"type": "image", "text": "", "image": "x"}, "a part of type `image`; expected text only"),  # as Arrow has it
        ({"type": "text", "text": "a", "image": b"x"}, "a part of type `text`; expected text only"),
        ({"type": "input_audio", "input_audio": {"data": "x"}}, "a part of type `input_audio`; expected text only"),
        ({"type": "refusal", "refusal": "No."}, "a part of type `refusal`; expected what is said as text"),
        ({"functionCall": {"name": "f"}}, "a part with `functionCall`; expected calls in `tool_calls` of the turn"),
        ({"text": "Hm.", "thought": True}, "a part with `thought`; expected thoughts in `reasoning_content` of the"),
        ({"type": "text", "text": "a", "weight": 0}, "a part that is not to be learnt; expected turns that count who"),
        ({"type": ["text"], "text": "a"}, "expected parts of type `text`"),
        ({"type": "text", "text": None}, "a part whose text is missing; expected text"),
        ("a", 'a part that is a text; expected `{"type": "text", "text": …}`'),
    ],
)
def test_a_part_that_is_no_text_is_refused_for_the_reason_it_has(part: Any, reason: str) -> None:
    with pytest.raises(BadRowError) as caught:
        turns_of([{"role": "user", "content": [{"type": "text", "text": "Look:"}, part]}, ANSWER], "messages")
    assert reason in str(caught.value)


def test_parts_of_text_are_joined_and_their_other_keys_named() -> None:
    parts = [{"type": "text", "text": "1 plus", "image": None}, {"type": "input_text", "text": " 2?", "cache": True}]
    assert turns_of([{"role": "user", "content": parts}, ANSWER], "messages")[0] == ASKED
    assert list(unused_keys({"role": "user", "content": parts})) == ["content[].cache"]


def test_what_a_tool_found_is_no_list_of_parts() -> None:
    entities = [{"type": "person", "text": "Ada", "score": 0.5}, {"text": "Bo", "score": 0.25}]
    turn = turns_of([ASKED, {"role": "assistant", "tool_calls": [ADD]}, {"role": "tool", "content": entities}], "m")[2]
    assert json.loads(turn["content"]) == entities
    assert list(unused_keys({"role": "tool", "content": entities})) == []


def test_keys_of_turns_are_named_in_every_column_that_holds_turns(jsonl: Callable[..., Path], source: Any) -> None:
    odd, better = {**ASKED, "mood": "calm"}, {**ANSWER, "author": "Ada"}
    worse = {"role": "assistant", "content": "4"}
    openai = {"input": {"messages": [odd], "store": True}, "preferred_output": [better]}
    vote = {"prompt": [odd], "response_a": [better], "response_b": [worse], "winner": "a"}
    for row, shape, names in (
        ({"messages": json.dumps([odd, better])}, "messages", ("messages[].author", "messages[].mood")),
        ({"messages": str([odd, better])}, "messages", ("messages[].author", "messages[].mood")),
        (
            {**openai, "non_preferred_output": [worse]},
            "preference",
            ("input.messages[].mood", "input.store", "preferred_output[].author"),
        ),
        (vote, "preference", ("prompt[].mood", "response_a[].author")),
    ):
        assert load(source(jsonl(row)), shape, seed=0, name="d").unused == names


@pytest.mark.parametrize(
    "text",
    [
        '[{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]',
        "[{'role': 'user', 'content': 'a', 'content': 'b'}, {'role': 'assistant', 'content': 'c'}]",
    ],
)
def test_a_key_that_stands_twice_in_a_text_is_a_bad_row(text: str) -> None:
    with pytest.raises(BadRowError, match="`messages` has the key `content` twice in one object; expected once"):
        turns_of(text, "messages")
