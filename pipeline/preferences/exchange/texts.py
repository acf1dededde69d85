"""Turns as the texts of other tools, and the key by which an item is known by its texts.

HH's transcripts have two speakers and no escapes, so not every conversation can be one. Label Studio and CSV have text
only: one turn is its content, several are JSON in CSV and lines with a speaker in Label Studio.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Sequence

from pipeline.preferences.items import Item, text_of
from pipeline.records.shapes.turns import Turn, content_of

SPEAKERS = {"user": "Human", "assistant": "Assistant"}
_SPOKEN = re.compile(r"\n\n(Human|Assistant):")

Key = tuple[str, frozenset[str]]
"""The words of a prompt, and those of both responses, in no order."""


def transcript(turns: Sequence[Turn]) -> str | None:
    r"""Return turns as in Anthropic's HH, ``\n\nHuman: … \n\nAssistant: …``; None when a turn cannot be said so.

    These are turns of a system or a tool, turns with more than a content, and contents that look like a new speaker.
    """
    spoken = []
    for turn in turns:
        content = turn["content"]
        is_plain = turn["role"] in SPEAKERS and turn.keys() == {"role", "content"} and content == content.strip()
        if not is_plain or _SPOKEN.search(f"\n\n{content}"):
            return None
        spoken.append(f"\n\n{SPEAKERS[turn['role']]}: {content}")
    return "".join(spoken)


def cell(turns: Sequence[Turn]) -> str:
    """Return turns as the text of a table: the content of a single plain turn, else JSON messages."""
    if len(turns) == 1 and turns[0].keys() == {"role", "content"}:
        return turns[0]["content"]
    return json.dumps(list(turns), ensure_ascii=False)


def readable(turns: Sequence[Turn]) -> str:
    """Return turns as people read them: the content of a single turn, else a paragraph with its speaker for each."""
    if len(turns) == 1:
        return content_of(turns[0])
    return "\n\n".join(f"{turn['role'].capitalize()}: {content_of(turn)}" for turn in turns)


def words(value: object) -> str:
    """Return the words of a text, of turns, or of JSON messages in a text, each parted by one space."""
    if isinstance(value, str):
        if not value.lstrip().startswith("[{"):
            return " ".join(value.split())
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, list | tuple) and all(isinstance(turn, dict) and "content" in turn for turn in value):
        value = text_of(value)
    return " ".join(str(value).split())


def forms_of(turns: Sequence[Turn]) -> frozenset[str]:
    """Return the words of turns in each form in which a tool may have written them."""
    return frozenset(words(form) for form in (turns, text_of(turns), readable(turns)))


def keys_of(item: Item) -> Iterable[Key]:
    """Return the keys under which an item is found, whichever tool wrote its texts."""
    is_plain = all(len(turns) == 1 for turns in (item.prompt, *item.responses))  # both texts are the same
    for form in (lambda turns: turns, text_of) if is_plain else (lambda turns: turns, text_of, readable):
        prompt, *responses = (words(form(turns)) for turns in (item.prompt, *item.responses))
        yield prompt, frozenset(responses)
