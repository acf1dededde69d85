"""The HTTP API of the lead's page: people are invited, paused and sent away, and the batch ends, without a restart.

A lead looks after annotators. Leads themselves are added and revoked on the command line, so that no lead can shut the
others out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field
from starlette.routing import Route

from pipeline.errors import PipelineError, Problem
from pipeline.plain_data import JsonObject
from pipeline.preferences.events import Access
from pipeline.preferences.gate import Gate, Given, Nothing
from pipeline.preferences.label_queue import LONGEST_NAME, LabelQueue


class Invite(Given):
    """Somebody gets a link."""

    name: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
    replaces: bool = False


class SetAccess(Given):
    """A link is paused, works again, or ends."""

    name: Annotated[str, Field(max_length=LONGEST_NAME)]
    access: Access


class Close(Given):
    """The batch ends, or goes on."""

    closed: bool


class LeadApi:
    """The HTTP API of the lead's page: each method answers one kind of request of a lead.

    Args:
        queue: queue of the labels.
        title: title of the page, the stage's name.
    """

    def __init__(self, queue: LabelQueue, title: str) -> None:
        self.queue, self.title = queue, title

    def routes(self, gate: Gate) -> list[Route]:
        """Return the routes of the API; the gate lets leads in."""
        answers: dict[str, tuple[type[Given], Callable[[str, Any], JsonObject]]] = {
            "hello": (Nothing, self.hello),
            "invite": (Invite, self.invite),
            "access": (SetAccess, self.set_access),
            "close": (Close, self.close),
        }
        return [Route(f"/api/lead/{name}", gate.serve(*answer), methods=["POST"]) for name, answer in answers.items()]

    def hello(self, name: str, given: Nothing) -> JsonObject:
        """Return who the lead is."""
        return {"lead": name, "title": self.title}

    def invite(self, name: str, given: Invite) -> JsonObject:
        """Give an annotator a link, and return its token: the only time that it is told."""
        invited = given.name.strip()
        return {"name": invited, "token": self.queue.invite(invited, replaces=given.replaces)}

    def set_access(self, name: str, given: SetAccess) -> JsonObject:
        """Pause an annotator, let them go on, or end their link."""
        person = self.queue.people().get(given.name)
        if person is not None and person.role == "lead":
            statement = f"{given.name} is a lead"
            raise PipelineError(
                Problem(statement, "an annotator", f"trueup labels people RECIPE STAGE --revoke {given.name}")
            )
        self.queue.set_access(given.name, given.access)
        return {}

    def close(self, name: str, given: Close) -> JsonObject:
        """End the batch with the labels it has, or open it again."""
        self.queue.close(given.closed)
        return {}
