"""Parses and checks the turns of a conversation.

Owns roles, the content of a turn, and the order of turns. Raises `BadRowError` with the reason that a user reads beside
file and line.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Required, TypedDict

from pipeline.plain_data import JsonView
from pipeline.records.faults import BadRowError, json_in, kind_of_value, text_of, twice_error
from pipeline.records.files.opening import is_unicode
from pipeline.records.shapes.calls import (
    CALL_KEYS,
    TRAIN_KEYS,
    ToolCall,
    call_of_text,
    calls_of,
    is_trained,
    tool_result,
    unread_in_calls,
)


class Turn(TypedDict, total=False):
    """A turn of a conversation.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`.
        content: what is said; empty for an assistant that only calls tools.
        tool_calls: calls of an assistant turn.
        reasoning_content: reasoning of an assistant turn.
        train: false for an assistant turn that is excluded from training.
        tool_call_id: call that a tool turn answers.
        name: name of the tool that a tool turn is from.
    """

    role: Required[str]
    content: Required[str]
    tool_calls: list[ToolCall]
    reasoning_content: str
    train: bool
    tool_call_id: str
    name: str


Turns = list[Turn]

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "tool_response", "function_response", "ipython"), "tool"),
    "function_call": "call",
    "tool_call": "call",
}
"""Names of speakers in data sets to our roles; a `call` is an assistant turn whose text is a tool call."""

PLAIN_ROLES = ("system", "user", "assistant")
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value", "parts", "text")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
MEDIA_KEYS = ("images", "image", "image_url", "videos", "video", "audio", "audios", "files")
PLAIN_KEYS = (frozenset({"role", "content"}), frozenset({"from", "value"}))
TEXT_ONLY = "text only: models here read no pictures, sound or film"
TEXT_PARTS = ("text", "input_text", "output_text")
MEDIA_PART = re.compile(r"(input_)?(image|audio|video|file|document)s?(_url|_file)?")
PARTS_ELSEWHERE = {
    **dict.fromkeys(("thinking", "redacted_thinking", "reasoning"), "thoughts in `reasoning_content` of the turn"),
    **dict.fromkeys(("tool_use", "tool_call", "functionCall"), "calls in `tool_calls` of the turn"),
    **dict.fromkeys(("tool_result", "functionResponse"), "what a tool gave as a turn of role tool"),
    "refusal": "what is said as text",
}
"""Parts of Anthropic's, OpenAI's and Google's messages, to where their content belongs in our turns."""
PYTHON_LIST = re.compile(r"\s*\[\s*\{\s*'")
TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant"}
TRANSCRIPT_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def content_of(turn: Turn) -> str:
    """Return what people read of a turn: its content, and the tools that it calls as JSON in a code block."""
    content, calls = str(turn["content"]), turn.get("tool_calls")
    if not calls:
        return content
    return f"{content}\n\n```json\n{json.dumps(calls, ensure_ascii=False, indent=1)}\n```".lstrip()


def turns_of(value: object, name: str) -> Turns:
    """Return the turns of a list of messages, with our roles; blank system turns are left out.

    Args:
        value: the column's value: a list, or (from CSV) its text as JSON or as a Python literal.
        name: name of the column, for error messages.

    Raises:
        BadRowError: it is no list of messages, a role is unknown, a text is missing, or a turn has unsupported content.
    """
    turns: Turns = []
    for number, message in enumerate(listed_messages(value, name), start=1):
        if isinstance(message, dict) and len(message) == 2:  # fast path for most turns
            role, content = message.get("role"), message.get("content")
            if (
                role in PLAIN_ROLES
                and isinstance(content, str)
                and content
                and not content.isspace()
                and is_unicode(content)
            ):
                turns.append({"role": role, "content": content})
                continue
        here = f"`{name}` turn {number}"
        role_key, content_key = _keys_of(message, here)
        turn = _turn_of(message, role_key, content_key, here)
        if turn["role"] == "system" and not turn["content"].strip():
            continue
        turns.append(turn)
    return turns


def _keys_of(message: object, here: str) -> tuple[str, str]:
    """Return the keys of a message's role and of its content."""
    if isinstance(message, Mapping):
        role = next((key for key in ROLE_KEYS if message.get(key) is not None), None)
        content = next((key for key in CONTENT_KEYS if message.get(key) is not None), None)
        if content is None:  # `content: null` beside a call
            content = next((key for key in CONTENT_KEYS if key in message), None)
        if content is None and any(message.get(key) for key in CALL_KEYS):
            content = "content"
        if role is not None and content is not None:
            return role, content
    expected = "an object with `role` and `content` (or `from` and `value`)"
    raise BadRowError(f"{here} is {kind_of_value(message)}", expected)


def _turn_of(message: JsonView, role_key: str, content_key: str, here: str) -> Turn:
    """Return the turn of one message."""
    speaker = message[role_key]
    role = ROLES.get(speaker.casefold()) if isinstance(speaker, str) else None
    if role is None:
        shown = json.dumps(speaker, default=str)[:60]
        raise BadRowError(f"{here} has unknown role {shown}", "one of system, user, assistant, tool")
    media = next((key for key in MEDIA_KEYS if message.get(key)), None)
    if media is not None:
        raise BadRowError(f"{here} has `{media}`", TEXT_ONLY)
    content = message.get(content_key)
    if isinstance(content, list) and not (role == "tool" and not _is_parts(content)):
        content = _joined_parts(content, here)
    if role == "call":
        called: Turn = {"role": "assistant", "content": "", "tool_calls": call_of_text(content, here)}
        _add_thought_and_weight(called, message, here)
        return called
    if role == "tool":
        answer: Turn = {"role": role, "content": ""}
        if message.get("tool_call_id") not in (None, ""):
            answer["tool_call_id"] = text_of(message["tool_call_id"], f"{here} `tool_call_id`")
        if message.get("name") not in (None, ""):
            answer["name"] = text_of(message["name"], f"{here} `name`")
        answer["content"] = tool_result(content, here)
        return answer
    if role == "system" and isinstance(content, str) and not content.strip():
        return {"role": role, "content": ""}
    return _said(message, role, content, here)


def _said(message: JsonView, role: str, content: object, here: str) -> Turn:
    """Return a system, user or assistant turn, with the assistant's calls and reasoning."""
    if role != "assistant":
        return {"role": role, "content": text_of(content, here)}
    calls = calls_of(message, here)
    is_silent = content is None or (isinstance(content, str) and not content.strip())
    turn: Turn = {"role": role, "content": "" if calls and is_silent else text_of(content, here)}
    if calls:
        turn["tool_calls"] = calls
    _add_thought_and_weight(turn, message, here)
    return turn


def _add_thought_and_weight(turn: Turn, message: JsonView, here: str) -> None:
    """Add the assistant's reasoning, and `train: False` for a turn excluded from training."""
    thoughts = next((message[key] for key in REASONING_KEYS if message.get(key)), None)
    if thoughts is not None:
        turn["reasoning_content"] = text_of(thoughts, f"{here} reasoning")
    if not is_trained(message, here):
        turn["train"] = False


def unused_keys(message: object) -> Iterable[str]:
    """Return the keys of a message that have a value and are not read for its role."""
    if not isinstance(message, Mapping) or not message.keys() & set(ROLE_KEYS):
        return ()
    from_parts = [
        f"{key}[].{one}"
        for key in CONTENT_KEYS
        if isinstance(message.get(key), list) and _is_parts(message[key])
        for part in message[key]
        for one, value in part.items()
        if one not in ("type", "text") and value not in (None, "", [], {})
    ]
    if message.keys() in PLAIN_KEYS:
        return from_parts
    filled = {key: value for key, value in message.items() if value not in (None, "", [], {})}
    read = {next((key for key in keys if message.get(key) is not None), "") for keys in (ROLE_KEYS, CONTENT_KEYS)}
    speaker = message.get(next(iter(read & set(ROLE_KEYS)), ""))
    role = ROLES.get(speaker.casefold()) if isinstance(speaker, str) else None
    in_calls = unread_in_calls(message) if role == "assistant" else []
    if role in ("assistant", "call"):
        read |= {*TRAIN_KEYS, next((key for key in REASONING_KEYS if key in filled), "")}
        read |= set(CALL_KEYS) if role == "assistant" else set()
    elif role == "tool":
        read |= {"tool_call_id", "name"}
    # Only assistant turns are trained on, so `train: 0` in another turn changes nothing.
    unread = [key for key in filled if key not in read and not (key in TRAIN_KEYS and filled[key] == 0)]
    return [*unread, *from_parts, *in_calls]


def listed_messages(value: object, name: str) -> Sequence[Any]:
    """Return the list of a column of messages, parsed if it is text.

    Raises:
        BadRowError: the column does not hold a list.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        is_python = PYTHON_LIST.match(value) is not None
        value = _python_list(value, name) if is_python else json_in(value, f"`{name}`", "a list of messages")
    if not isinstance(value, list) or not value:
        raise BadRowError(f"`{name}` is {kind_of_value(value)}", "a list of messages")
    return value


def _python_list(text: str, name: str) -> Any:
    """Parse a list written as a Python literal, as pandas writes it to CSV."""
    try:
        with warnings.catch_warnings(action="ignore"):
            parsed = ast.parse(text.strip(), mode="eval")
            messages = ast.literal_eval(parsed)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        statement = f"`{name}` is the text of a Python list that cannot be read, as pandas writes one to CSV"
        remedy = 'write the table with `to_json("rows.jsonl", orient="records", lines=True)`'
        raise BadRowError(statement, "JSON", remedy) from None
    for node in (node for node in ast.walk(parsed) if isinstance(node, ast.Dict)):
        keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
        if len(set(keys)) != len(keys):
            raise twice_error(next(key for at, key in enumerate(keys) if key in keys[:at]), f"`{name}`")
    return messages


def _is_parts(content: Sequence[Any]) -> bool:
    """Return whether a list holds the parts of a message, not a tool's result."""
    return bool(content) and all(isinstance(part, Mapping) and _is_part(part) for part in content)


def _is_part(part: JsonView) -> bool:
    kind = part.get("type")
    if kind is None:
        return "text" in part and all(value is None for key, value in part.items() if key not in ("type", "text"))
    return kind in (*TEXT_PARTS, *PARTS_ELSEWHERE) or _is_media(part)


def _is_media(part: JsonView) -> bool:
    kind = part.get("type")
    names = [kind, *(key for key in part if part[key])] if isinstance(kind, str) else [key for key in part if part[key]]
    return any(name in MEDIA_KEYS or MEDIA_PART.fullmatch(name) for name in names)


def _joined_parts(parts: Sequence[Any], here: str) -> str:
    """Return the joined text of a message's parts ``{"type": "text", "text": …}``."""
    return "".join(_text_of_part(part, here) for part in parts)


def _text_of_part(part: object, here: str) -> str:
    """Return the text of a part of a message.

    Raises:
        BadRowError: it is not text, or its text is reasoning or excluded from training.
    """
    if not isinstance(part, Mapping):
        raise BadRowError(f"{here} has a part that is {kind_of_value(part)}", '`{"type": "text", "text": …}`')
    kind = part.get("type")
    named = f"of type `{kind}`" if kind is not None else f"with `{next(iter(part), '')}`"
    if _is_media(part):
        raise BadRowError(f"{here} has a part {named}", TEXT_ONLY)
    elsewhere = next((there for key, there in PARTS_ELSEWHERE.items() if key == kind or part.get(key)), None)
    if part.get("thought") is True:
        named, elsewhere = "with `thought`", PARTS_ELSEWHERE["thinking"]
    if elsewhere is not None or kind not in (None, *TEXT_PARTS) or (kind is None and "text" not in part):
        raise BadRowError(f"{here} has a part {named}", elsewhere or "parts of type `text`")
    if not isinstance(part.get("text"), str):
        raise BadRowError(f"{here} has a part whose text is {kind_of_value(part.get('text'))}", "text")
    if not is_trained(part, here):
        raise BadRowError(f"{here} has a part that is not to be learnt", "turns that count whole")
    return str(part["text"])


def transcript_turns(text: str, name: str) -> Turns:
    r"""Return the turns of a transcript ``\n\nHuman: … \n\nAssistant: …``, each without surrounding white space.

    Raises:
        BadRowError: it does not start with a speaker, or a turn is empty.
    """
    pieces = TRANSCRIPT_TURN.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        raise BadRowError(f"`{name}` does not start with a speaker", "a transcript `Human: … Assistant: …`")
    turns: Turns = []
    for number, (speaker, content) in enumerate(zip(pieces[1::2], pieces[2::2], strict=True), start=1):
        content = text_of(content, f"`{name}` turn {number} ({speaker})").strip()
        turns.append({"role": TRANSCRIPT_ROLES[speaker], "content": content})
    return turns


FOLLOWS = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant", "user")}
"""Role to the roles that may follow it. A tool result may follow any assistant turn, whose text may hold the call."""


def check_order(turns: Turns, name: str, *, first: str = "user", last: str) -> None:
    """Check the order of roles, from ``first`` (after an optional system turn) to ``last``.

    A prompt that must end with the user may also end with a tool's result.

    Raises:
        BadRowError: the order is wrong.
    """
    spoken = turns[1:] if turns and turns[0]["role"] == "system" and first == "user" else turns
    if not spoken:
        raise BadRowError(f"`{name}` has no turn but the system's", f"a turn of the {first}")
    skipped = len(turns) - len(spoken)
    expected: tuple[str, ...] = (first,)
    for number, turn in enumerate(spoken, start=skipped + 1):
        if turn["role"] not in expected:
            is_again = number > skipped + 1 and turn["role"] == turns[number - 2]["role"]
            remedy = "join turns of one speaker" if is_again else ""
            raise BadRowError(f"`{name}` turn {number} is of role {turn['role']}", " or ".join(expected), remedy)
        expected = FOLLOWS[turn["role"]]
    ended = spoken[-1]["role"]
    if ended != last and not (ended == "tool" and last == "user"):
        raise BadRowError(f"`{name}` ends with a turn of the {ended}", f"the {last}")
