"""Turns of a conversation: read from what a row holds, and checked.

Owns roles and their order. Raises `BadRowError` with the reason a user reads beside file and line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.records.files import is_unicode

Turns = list[dict[str, str]]

ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant"}
TRANSCRIPT_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


class BadRowError(Exception):
    """Why a row is bad: what was found in it, and what was expected."""


def text_of(value: object, name: str) -> str:
    """Return a text that is there, is not blank, and can be written as UTF-8.

    Raises:
        BadRowError: it is not.
    """
    if not isinstance(value, str):
        raise BadRowError(f"{name} is {_kind(value)}, expected text")
    if not value or value.isspace():
        raise BadRowError(f"{name} is empty, expected text")
    if not is_unicode(value):
        raise BadRowError(f"{name} holds half of a surrogate pair, expected Unicode text")
    return value


def turns_of(
    value: object,
    name: str,
    *,
    role_key: str = "role",
    content_key: str = "content",
    roles: Mapping[str, str] = ROLES,
) -> Turns:
    """Return the turns of a list of messages, with our names of roles; blank system turns are left out.

    Args:
        value: what the column holds: a list, or (from CSV) JSON text of one.
        name: of the column, for messages.
        role_key: where a message names its speaker.
        content_key: where a message holds its text.
        roles: the speaker's name in the data to ours.

    Raises:
        BadRowError: it is no list of messages, a role is unknown, or a text is missing.
    """
    turns: Turns = []
    for number, message in enumerate(_listed(value, name), start=1):
        here = f"`{name}` turn {number}"
        if not isinstance(message, Mapping) or role_key not in message or content_key not in message:
            raise BadRowError(f"{here} is {_kind(message)}, expected an object with `{role_key}` and `{content_key}`")
        given, content = message[role_key], message[content_key]
        role = roles.get(given) if isinstance(given, str) else None
        if role is None:
            raise BadRowError(f"{here} has unknown role {json.dumps(given)}, expected one of {', '.join(roles)}")
        if isinstance(content, list):
            content = _joined_parts(content, here)
        if role == "system" and isinstance(content, str) and not content.strip():
            continue
        turns.append({"role": role, "content": text_of(content, here)})
    return turns


def _listed(value: object, name: str) -> Sequence[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRowError(f"`{name}` is text that is not JSON ({error}), expected a list of messages") from None
    if not isinstance(value, list) or not value:
        raise BadRowError(f"`{name}` is {_kind(value)}, expected a list of messages")
    return value


def _joined_parts(parts: list[Any], here: str) -> str:
    """Join the parts of a message that are written as ``{"type": "text", "text": …}``."""
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise BadRowError(f"{here} has a part that is not text, expected text only")
    return "".join(str(text) for text in texts)


def transcript_turns(text: str, name: str) -> Turns:
    r"""Return the turns of ``\n\nHuman: … \n\nAssistant: …``, without the white space around each.

    Raises:
        BadRowError: it does not start with a speaker, or a turn is empty.
    """
    pieces = TRANSCRIPT_TURN.split(text)
    if pieces[0].strip() or len(pieces) < 3:
        raise BadRowError(f"`{name}` does not start with a speaker, expected a transcript `Human: … Assistant: …`")
    turns = []
    for number, (speaker, content) in enumerate(zip(pieces[1::2], pieces[2::2], strict=True), start=1):
        content = text_of(content, f"`{name}` turn {number} ({speaker})").strip()
        turns.append({"role": TRANSCRIPT_ROLES[speaker], "content": content})
    return turns


def check_order(turns: Turns, name: str, *, first: str = "user", last: str) -> None:
    """Check that roles alternate, from ``first`` (after one system turn) to ``last``.

    Raises:
        BadRowError: they do not.
    """
    spoken = turns[1:] if turns and turns[0]["role"] == "system" and first == "user" else turns
    if not spoken:
        raise BadRowError(f"`{name}` has no turn but the system's, expected a turn of the {first}")
    skipped = len(turns) - len(spoken)
    expected = first
    for number, turn in enumerate(spoken, start=skipped + 1):
        if turn["role"] != expected:
            raise BadRowError(f"`{name}` turn {number} is of role {turn['role']}, expected {expected}")
        expected = "assistant" if expected == "user" else "user"
    if spoken[-1]["role"] != last:
        raise BadRowError(f"`{name}` ends with a turn of the {spoken[-1]['role']}, expected the {last}")


def _kind(value: object) -> str:
    """Name what a column holds instead of what was wanted."""
    if value is None:
        return "missing"
    if isinstance(value, list | dict | str):
        name = {list: "list", dict: "object", str: "text"}[type(value)]
        return f"an empty {name}" if not value else f"a{'n' if name == 'object' else ''} {name}"
    return f"{value!r}"[:40]
