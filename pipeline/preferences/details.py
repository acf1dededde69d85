"""What a person may say of a pair besides the verdict: a comment, an edited response, ratings, the kind of a flag.

An edit is a verdict, too: the person prefers the response as they wrote it over the other one. Knows nothing of the
ledger or the web.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from pipeline.errors import PipelineError, Problem
from pipeline.preferences.dimensions import SideRating, by_response
from pipeline.preferences.events import EventBody, FlagKind, Rating
from pipeline.preferences.items import Item

LONGEST_COMMENT = 2000
LONGEST_EDIT = 48_000
"""Most characters of a comment and of an edited response."""


class Details(NamedTuple):
    """What an answer says besides verdict and reason.

    Attributes:
        comment: what the person wrote about the pair.
        edit: the preferred response as the person wants it: the text of its last turn; empty without an edit.
        flag: kind of a flag; None where none was given.
        ratings: what the person said in each dimension, by its name.
    """

    comment: str = ""
    edit: str = ""
    flag: FlagKind | None = None
    ratings: Mapping[str, Rating] = MappingProxyType({})


class Choice(NamedTuple):
    """A label as a browser sends it.

    Attributes:
        side: `left`, `right`, `tie`, `both good` or `both bad`; `left` and `right` are sides of the screen.
        strength: strength of the preference, 1 to 3.
        seconds: time the choice took.
        request: id of the request; empty without one.
        comment: what the person wrote about the pair.
        edit: the preferred response as the person wants it.
        ratings: what the person said in each dimension, by its name.
    """

    side: str
    strength: int = 1
    seconds: float = 0.0
    request: str = ""
    comment: str = ""
    edit: str = ""
    ratings: Mapping[str, SideRating] = MappingProxyType({})


def details_of(body: EventBody) -> Details | None:
    """Return the details of an event; None for one without any, which most are."""
    if body.keys().isdisjoint(Details._fields):
        return None
    return Details(body.get("comment", ""), body.get("edit", ""), body.get("flag"), body.get("ratings", {}))


def details_body(choice: Choice, item: Item, said: EventBody) -> EventBody:
    """Return the fields of a label's event that hold its details.

    Args:
        choice: the label as the browser sent it.
        item: the item.
        said: verdict of the label, and whether the sides were exchanged.

    Raises:
        PipelineError: no response is preferred but one is edited, the edited one calls tools, or the edit is one of the
            two responses.
    """
    body = EventBody()
    if choice.comment.strip():
        body["comment"] = choice.comment
    if ratings := by_response(choice.ratings, swapped=bool(said["swapped"])):
        body["ratings"] = ratings
    if edit := choice.edit:
        if said["verdict"] not in ("first", "second"):
            statement = f"an edited answer and the choice {choice.side!r}"
            raise PipelineError(Problem(statement, "the edited answer as the better one"))
        if not edit.strip() or any(_plain(edit) == _plain(str(turns[-1]["content"])) for turns in item.responses):
            raise PipelineError(Problem("the edited answer is empty or one of the two", "a text of its own"))
        preferred = item.responses[0 if said["verdict"] == "first" else 1]
        if preferred[-1].get("tool_calls"):
            raise PipelineError(Problem("the edited answer calls tools", "an answer of text", "choose without an edit"))
        body["edit"] = edit
    return body


def _plain(text: str) -> str:
    return " ".join(text.split())
