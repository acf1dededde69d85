"""The HTTP API of the page of live dialogues; `pipeline/preferences/app.py` says who asks and serves it.

Every answer is the dialogue as it stands. The page asks again until both models have answered, so that no request waits
for a model, and how long a model takes cannot be seen.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.plain_data import JsonObject
from pipeline.preferences.app import RequestId, Undo
from pipeline.preferences.events import EventBody
from pipeline.preferences.gate import Answers, Given, Nothing
from pipeline.preferences.label_queue import STRONGEST
from pipeline.preferences.live.answering import Answering
from pipeline.preferences.live.conversations import LONGEST_MESSAGE, Conversations


class Open(Given):
    """A new dialogue."""

    request: RequestId = ""


class Say(Given):
    """A message."""

    text: Annotated[str, Field(max_length=LONGEST_MESSAGE)]
    request: RequestId = ""


class Choose(Given):
    """A choice between the two answers, and with which the dialogue goes on."""

    item: Annotated[str, Field(max_length=64)]
    choice: Literal["left", "right", "tie", "both good", "both bad"]
    goes_on: Literal["left", "right", "either", "again"] = "either"
    strength: Annotated[int, Field(ge=1, le=STRONGEST)] = 1
    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 0.0
    request: RequestId = ""


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
        label = EventBody(strength=given.strength, seconds=given.seconds, request=given.request)
        self.conversations.choose(name, given.item, label, given.choice, given.goes_on)
        return self._dialogue(name)

    def undo(self, name: str, given: Undo) -> JsonObject:
        """Take the last choice back."""
        undone = self.conversations.undo(name, given.request)
        return {"undone": undone, **self._dialogue(name)}

    def _dialogue(self, name: str) -> JsonObject:
        shown = self.conversations.shown(name)
        if shown["phase"] == "answering":
            self.answering.wake()  # it may be that another server recorded the message
        return {**shown}
