"""The HTTP API of the page of live dialogues; `pipeline/preferences/app.py` says who asks and serves it.

Every answer is the dialogue as it stands. The page asks again until both models have answered, so that no request waits
for a model, and how long a model takes cannot be seen.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import Field

from pipeline.plain_data import JsonObject
from pipeline.preferences.app import Flag, Label, Leave, RequestId, Undo
from pipeline.preferences.details import Choice
from pipeline.preferences.gate import Answers, Given, Nothing
from pipeline.preferences.live.answering import Answering
from pipeline.preferences.live.conversations import LONGEST_MESSAGE, Conversations


class Open(Given):
    """A new dialogue."""

    request: RequestId = ""


class Say(Given):
    """A message."""

    text: Annotated[str, Field(max_length=LONGEST_MESSAGE)]
    request: RequestId = ""


class Choose(Label):
    """A choice between the two answers, and with which the dialogue goes on."""

    goes_on: Literal["left", "right", "either", "again"] = "either"


class LiveApi:
    """The answers to the page of live dialogues.

    Args:
        conversations: the dialogues.
        answering: where models answer.
    """

    def __init__(self, conversations: Conversations, answering: Answering) -> None:
        self.conversations, self.answering = conversations, answering

    def answers(self) -> Answers:
        """Return what answers each request of the page."""
        return {
            "dialogue": (Nothing, self.dialogue),
            "open": (Open, self.open),
            "say": (Say, self.say),
            "choose": (Choose, self.choose),
            "skip": (Leave, partial(self.leave, "skip")),
            "flag": (Flag, partial(self.leave, "flag")),
            "undo": (Undo, self.undo),
        }

    def dialogue(self, name: str, given: Nothing) -> JsonObject:
        """Return the dialogue that the person is in."""
        return self._dialogue(name)

    def open(self, name: str, given: Open) -> JsonObject:
        """Begin a dialogue."""
        self.conversations.open(name, given.request)
        return self._dialogue(name)

    def say(self, name: str, given: Say) -> JsonObject:
        """Record a message."""
        self.conversations.say(name, given.text, given.request)
        return self._dialogue(name)

    def choose(self, name: str, given: Choose) -> JsonObject:
        """Record a choice."""
        told = (given.comment, given.edit, given.ratings)
        choice = Choice(given.choice, given.strength, given.seconds, given.request, *told)
        self.conversations.choose(name, given.item, choice, given.goes_on)
        return self._dialogue(name)

    def leave(self, kind: Literal["skip", "flag"], name: str, given: Leave) -> JsonObject:
        """Skip the two answers, or flag them."""
        flag = given.flag if isinstance(given, Flag) else None
        self.conversations.leave(kind, name, given.item, given.reason, given.request, flag)
        return self._dialogue(name)

    def undo(self, name: str, given: Undo) -> JsonObject:
        """Take the last choice, skip or flag back."""
        undone = self.conversations.undo(name, given.request)
        return {"undone": undone, **self._dialogue(name)}

    def _dialogue(self, name: str) -> JsonObject:
        shown = self.conversations.shown(name)
        if shown["phase"] == "answering":
            self.answering.wake()  # it may be that another server recorded the message
            if self.answering.is_asking_again(name):
                shown["note"] = "again"
        return {**shown}
