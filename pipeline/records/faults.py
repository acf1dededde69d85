"""Why a row is bad, in the words a user reads beside file and line; and texts, checked."""

from __future__ import annotations

import json
from typing import Any

from pipeline.errors import sentences
from pipeline.records.opening import is_unicode


class BadRowError(Exception):
    """Why a row is bad: what was found in it, what was expected, and what to do where there is more than one way."""

    def __init__(self, statement: str, expected: str = "", remedy: str = "") -> None:
        super().__init__(sentences(statement, expected, remedy))


def text_of(value: object, name: str) -> str:
    """Return a text that is there, is not blank, and can be written as UTF-8; it is not changed.

    Raises:
        BadRowError: it is not.
    """
    if not isinstance(value, str):
        raise BadRowError(f"{name} is {kind_of_value(value)}", "text")
    if not value or value.isspace():
        raise BadRowError(f"{name} is empty", "text")
    if not is_unicode(value):
        raise BadRowError(f"{name} holds half of a surrogate pair", "Unicode text")
    return value


def json_in(text: str, here: str, expected: str = "JSON") -> Any:
    """Return what a text in a column says as JSON.

    Raises:
        BadRowError: it is none, or an object in it has two equal keys: which of the two is meant cannot be known.
    """
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, here))
    except ValueError as error:
        raise BadRowError(f"{here} is text that is not JSON ({error})", expected) from None
    except RecursionError:
        raise BadRowError(f"{here} is nested too deeply", expected) from None


def _once(pairs: list[tuple[str, Any]], here: str) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        keys = [key for key, _ in pairs]
        raise twice_error(next(key for at, key in enumerate(keys) if key in keys[:at]), here)
    return mapping


def twice_error(key: object, here: str) -> BadRowError:
    """Return that a key stands twice in one object of a text."""
    return BadRowError(f"{here} has the key `{key}` twice in one object", "once")


def kind_of_value(value: object) -> str:
    """Name what a column holds instead of what was wanted."""
    if value is None:
        return "missing"
    if isinstance(value, list | dict | str):
        name = {list: "list", dict: "object", str: "text"}[type(value)]
        return f"an empty {name}" if not value else f"a{'n' if name == 'object' else ''} {name}"
    return f"{value!r}"[:40]
