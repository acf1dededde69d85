"""The error of a bad row, which a user reads beside file and line, and checks of texts."""

from __future__ import annotations

import json
from typing import Any

from pipeline.errors import sentences
from pipeline.plain_data import JsonObject
from pipeline.records.files.opening import is_unicode


class BadRowError(Exception):
    """Why a row is bad: what it holds, what was expected, and a remedy if there is more than one."""

    def __init__(self, statement: str, expected: str = "", remedy: str = "") -> None:
        super().__init__(sentences(statement, expected, remedy))


def text_of(value: object, name: str) -> str:
    """Return a text unchanged after checking it.

    Raises:
        BadRowError: the value is not text, is blank, or cannot be written as UTF-8.
    """
    if not isinstance(value, str):
        raise BadRowError(f"{name} is {kind_of_value(value)}", "text")
    if not value or value.isspace():
        raise BadRowError(f"{name} is empty", "text")
    if not is_unicode(value):
        raise BadRowError(f"{name} holds half of a surrogate pair", "Unicode text")
    return value


def json_in(text: str, here: str, expected: str = "JSON") -> Any:
    """Parse the JSON text of a column.

    Raises:
        BadRowError: the text is not JSON, or an object in it has a key twice, which is ambiguous.
    """
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, here))
    except ValueError as error:
        raise BadRowError(f"{here} is text that is not JSON ({error})", expected) from None
    except RecursionError:
        raise BadRowError(f"{here} is nested too deeply", expected) from None


def _once(pairs: list[tuple[str, Any]], here: str) -> JsonObject:
    """Return key-value pairs as a dictionary; raise if a key occurs twice."""
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        keys = [key for key, _ in pairs]
        raise twice_error(next(key for at, key in enumerate(keys) if key in keys[:at]), here)
    return mapping


def twice_error(key: object, here: str) -> BadRowError:
    """Return the error of a key that occurs twice in one JSON object."""
    return BadRowError(f"{here} has the key `{key}` twice in one object", "once")


def kind_of_value(value: object) -> str:
    """Describe the value of a column for a message: its type, or the value itself if it is short."""
    if value is None:
        return "missing"
    if isinstance(value, list | dict | str):
        name = {list: "list", dict: "object", str: "text"}[type(value)]
        return f"an empty {name}" if not value else f"a{'n' if name == 'object' else ''} {name}"
    return f"{value!r}"[:40]
