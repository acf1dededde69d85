"""Normalises the tools, tool calls and tool results of a conversation, and reads which turns are trained on.

Whatever form a file has, arguments become objects, and calls and tools get their `function`. Null fields are removed,
because Arrow fills every call with the fields of all others; arguments that a file holds as JSON text keep theirs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from pipeline.plain_data import JsonObject, JsonView, Row
from pipeline.records.faults import BadRowError, json_in, kind_of_value, text_of
from pipeline.records.files.opening import is_unicode

TRAIN_KEYS = ("train", "weight", "loss_mask", "loss_weight", "training", "loss", "trainable")
"""Keys with which data sets say whether an assistant turn is trained on: true or 1, false or 0."""

ARGUMENTS = ("arguments", "parameters", "args", "input")
"""Keys of a call's arguments: OpenAI's, Llama's, LangChain's and Anthropic's."""

CALL_KEYS = ("tool_calls", "function_call")
READ_IN_CALLS = frozenset({"id", "type", "function", "name", *ARGUMENTS})


class CalledFunction(TypedDict):
    """The function that a call names, with its arguments."""

    name: str
    arguments: JsonObject


class _Identity(TypedDict, total=False):
    id: str


class ToolCall(_Identity):
    """A tool call in OpenAI's form.

    Attributes:
        id: the call's id, if the file gives one.
        type: always ``function``.
        function: what is called.
    """

    type: Literal["function"]
    function: CalledFunction


def is_trained(message: JsonView, here: str) -> bool:
    """Return whether a turn is trained on; it is unless one of `TRAIN_KEYS` says no.

    Raises:
        BadRowError: a value is neither 0 nor 1.
    """
    trained = True
    for key in TRAIN_KEYS:
        value = message.get(key)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise BadRowError(f"{here} has {key} {value!r}"[:80], "0 or 1")
        trained = trained and bool(value)
    return trained


def calls_of(message: JsonView, here: str) -> list[ToolCall]:
    """Return the calls of an assistant turn, from `tool_calls` or the older `function_call`.

    Raises:
        BadRowError: a value is not a call, or the two keys differ.
    """
    value = _parsed(message.get("tool_calls"), f"{here} `tool_calls`") or []
    older = filled(_parsed(message.get("function_call"), f"{here} `function_call`"))
    if older and value and _call(older, here)["function"] not in [_call(one, here)["function"] for one in value]:
        raise BadRowError(f"{here} has `tool_calls` and another call in `function_call`", "all calls in `tool_calls`")
    if older and not value:
        value = [{"function": older}]
    if not isinstance(value, list):
        raise BadRowError(f"{here} `tool_calls` is {kind_of_value(value)}", "a list of calls")
    return [_call(call, f"{here} call {number}") for number, call in enumerate(value, start=1)]


def call_of_text(value: object, here: str) -> list[ToolCall]:
    """Return the calls of a turn whose text is the JSON of one call or of a list of calls.

    Raises:
        BadRowError: the text is not a call.
    """
    parsed = _parsed(value, here)
    calls = parsed if isinstance(parsed, list) else [parsed]
    return [_call(call, f"{here} call {number}") for number, call in enumerate(calls, start=1)]


def _call(value: object, here: str) -> ToolCall:
    """Return a call in OpenAI's form: `type`, `id` if given, and `function` with `name` and `arguments`."""
    value = _parsed(value, here)
    function = _parsed(value.get("function"), here) if isinstance(value, Mapping) else None
    inner = function if isinstance(function, Mapping) else value
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise BadRowError(f"{here} is {kind_of_value(value)}", "a call with the `name` of a function")
    identity: _Identity = {}
    if isinstance(value, Mapping) and value.get("id") not in (None, ""):
        identity["id"] = text_of(value["id"], f"{here} `id`")
    called: CalledFunction = {"name": inner["name"], "arguments": _checked(_arguments(inner, here), here)}
    return {"type": "function", **identity, "function": called}


def _arguments(call: JsonView, here: str) -> JsonObject:
    """Return the arguments of a call, under whichever of `ARGUMENTS` they are."""
    read: dict[str, JsonObject] = {}
    for key in ARGUMENTS:
        value = call.get(key)
        if value is None or value == "":
            continue
        arguments = _parsed(value, f"{here} {key}") or {}
        if not isinstance(arguments, Mapping):
            raise BadRowError(f"{here} has {key} that are {kind_of_value(arguments)}", "an object")
        read[key] = dict(arguments if isinstance(value, str) else filled(arguments))
    first = next(iter(read), "")
    other = next((key for key in read if read[key] != read[first]), None)
    if other is not None:
        raise BadRowError(f"{here} has `{first}` and others in `{other}`", "all arguments in `arguments`")
    return read.get(first, {})


def unread_in_calls(message: JsonView) -> list[str]:
    """Return the keys of a turn's calls that have a value and are not read, as ``tool_calls[].key``."""
    unread: dict[str, None] = {}
    for column in CALL_KEYS:
        value = message.get(column)
        for call in value if isinstance(value, list) else [value]:
            inner = call.get("function") if isinstance(call, Mapping) else None
            for part in (one for one in (call, inner) if isinstance(one, Mapping)):
                holds = (key for key in part.keys() - READ_IN_CALLS if part[key] not in (None, "", [], {}))
                unread |= {f"{column}{'[]' * isinstance(value, list)}.{key}": None for key in holds}
    return sorted(unread)


def tool_result(value: object, here: str) -> str:
    """Return a tool's result as text; a value that is not text becomes JSON.

    Raises:
        BadRowError: the text cannot be written as UTF-8.
    """
    text = "" if value is None else value if isinstance(value, str) else json.dumps(filled(value), ensure_ascii=False)
    if not is_unicode(text):
        raise BadRowError(f"{here} holds half of a surrogate pair", "Unicode text")
    return text


def tools_of(row: Row) -> list[JsonObject]:
    """Return the tools a row offers the assistant, each with its `function`; empty if it offers none.

    Raises:
        BadRowError: the column does not hold tools, or `tools` and `functions` differ.
    """
    both = [
        tools for column in ("tools", "functions") if row.get(column) for tools in [_tools_in(row, column)] if tools
    ]
    if len(both) == 2 and both[0] != both[1]:
        raise BadRowError("has `tools` and others in `functions`", "all of them in `tools`")
    return both[0] if both else []


def _tools_in(row: Row, column: str) -> list[JsonObject]:
    value = _parsed(row[column], f"`{column}`") or []
    if not isinstance(value, list):
        raise BadRowError(f"`{column}` is {kind_of_value(value)}", "a list of tools")
    tools = []
    for number, tool in enumerate(value, start=1):
        here = f"`{column}` tool {number}"
        parsed = _parsed(tool, here)
        named = parsed.get("function", parsed) if isinstance(parsed, Mapping) else None
        if not isinstance(parsed, Mapping) or not isinstance(named, Mapping) or not named.get("name"):
            raise BadRowError(f"{here} is {kind_of_value(parsed)}", "an object with the `name` of a function")
        definition = parsed if isinstance(tool, str) or isinstance(row[column], str) else filled(parsed)
        wrapped = (
            definition
            if isinstance(definition.get("function"), Mapping)
            else {"type": "function", "function": definition}
        )
        tools.append(_checked(dict(wrapped), here))
    return tools


def filled(value: object) -> Any:
    """Return a value without null fields, at every depth."""
    if isinstance(value, Mapping):
        return {key: filled(one) for key, one in value.items() if one is not None}
    return [filled(one) for one in value] if isinstance(value, list) else value


def _checked(value: JsonObject, here: str) -> JsonObject:
    """Return a value unchanged if a chat template can write it as JSON.

    Raises:
        BadRowError: it cannot be written as JSON in UTF-8.
    """
    try:
        written = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadRowError(f"{here} cannot be written as JSON ({error})", "texts, numbers, lists and objects") from None
    if not is_unicode(written):
        raise BadRowError(f"{here} holds half of a surrogate pair", "Unicode text")
    return value


def _parsed(value: object, here: str) -> Any:
    """Return a value, parsed if it is JSON text; None for blank text."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    return json_in(value, here)
