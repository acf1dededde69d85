"""The HTTP API of the lead's page: figures, the items that need a decision, people, and the end of the batch.

A lead looks after annotators, without a restart of the app. Leads themselves are added and revoked on the command line,
so that no lead can shut the others out.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.routing import Route

from pipeline.errors import PipelineError, Problem
from pipeline.plain_data import JsonObject
from pipeline.preferences.adjudication import Adjudication, Side
from pipeline.preferences.details import Details
from pipeline.preferences.events import STRONGEST, Access
from pipeline.preferences.gate import Answers, Gate, Given, Nothing
from pipeline.preferences.label_queue import LONGEST_REASON, LabelQueue
from pipeline.preferences.labels import Tiers
from pipeline.preferences.lead_figures import LeadFigures, Listing, OpenItem
from pipeline.preferences.people import LONGEST_NAME, plain_name
from pipeline.preferences.rankings import ScreenTiers

ITEMS_AT_ONCE = 10
"""Most items of a list in one reply."""


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


class List(Given):
    """Some items of a list are to be shown."""

    name: Listing
    offset: Annotated[int, Field(ge=0, le=10_000_000)] = 0


class Decide(Given):
    """A verdict; without a choice, an earlier one is taken back."""

    item: Annotated[str, Field(max_length=64)]
    choice: Side | None
    ranking: ScreenTiers | None = None
    strength: Annotated[int, Field(ge=1, le=STRONGEST)] = 1
    reason: Annotated[str, Field(max_length=LONGEST_REASON)] = ""


class Drop(Given):
    """An item that is taken out of the batch."""

    item: Annotated[str, Field(max_length=64)]
    reason: Annotated[str, Field(max_length=LONGEST_REASON)] = ""


class LeadApi:
    """The HTTP API of the lead's page: each method answers one kind of request of a lead.

    Args:
        queue: queue of the labels.
        title: title of the page, the stage's name.
        figures: the figures of live dialogues; None for those of a batch of pairs.
    """

    def __init__(self, queue: LabelQueue, title: str, figures: LeadFigures | None = None) -> None:
        self.queue, self.title = queue, title
        self.figures = figures or LeadFigures(queue.batch, queue.ledger)
        self.adjudication = Adjudication(queue, self.figures.items)
        if any(person.role == "lead" for person in queue.people().values()):
            self.figures.start()  # the first to open the page need not wait for it

    def routes(self, gate: Gate) -> list[Route]:
        """Return the routes of the API; the gate lets leads in."""
        answers = self.answers()
        return [Route(f"/api/lead/{name}", gate.serve(*answer), methods=["POST"]) for name, answer in answers.items()]

    def answers(self) -> Answers:
        """Return what answers each request of the page."""
        return {
            "hello": (Nothing, self.hello),
            "overview": (Nothing, self.overview),
            "items": (List, self.items),
            "adjudicate": (Decide, self.adjudicate),
            "drop": (Drop, self.drop),
            "invite": (Invite, self.invite),
            "access": (SetAccess, self.set_access),
            "close": (Close, self.close),
        }

    def hello(self, name: str, given: Nothing) -> JsonObject:
        """Return who the lead is."""
        return {"lead": name, "title": self.title, "ranked": self.queue.batch.is_ranked}

    def overview(self, name: str, given: Nothing) -> JsonObject:
        """Return the figures, and whether they know of the last event."""
        last = self.queue.last_event()
        figures = self.figures.overview(after=last)
        return {**figures, "is_fresh": figures["event"] >= last}

    def items(self, name: str, given: List) -> JsonObject:
        """Return some items of a list, as this lead may see them."""
        total, items = self.figures.listing(given.name, given.offset, ITEMS_AT_ONCE)
        return {"total": total, "items": [self._shown(name, item) for item in items]}

    def _shown(self, lead: str, item: OpenItem) -> JsonObject:
        side = self.adjudication.side
        final = item.final
        return {
            **self.adjudication.shown(lead, item.item),
            "labels": [
                {"name": who, "choice": side(lead, item.item, label.verdict), "strength": label.strength}
                | self._ranking(lead, item.item, label.tiers)
                | {"seconds": label.seconds, "comment": details.comment, "edit": details.edit}
                for who, label in item.labels.items()
                for details in [label.details or Details()]
            ],
            "skips": [{"name": who, "reason": reason} for who, reason in item.skips.items()],
            "flags": [{"name": who, "reason": reason} for who, reason in item.flags.items()],
            "missing": item.missing,
            "final": final
            and {"name": final.lead, "choice": side(lead, item.item, final.verdict), "strength": final.strength}
            | self._ranking(lead, item.item, final.tiers)
            | {"reason": final.reason},
        }

    def _ranking(self, lead: str, item: str, tiers: Tiers | None) -> JsonObject:
        """Return a ranking by places on a lead's screen; nothing of a pair."""
        return {"ranking": self.adjudication.ranking(lead, item, tiers)} if tiers else {}

    def adjudicate(self, name: str, given: Decide) -> JsonObject:
        """Record a verdict that decides an item."""
        told = (given.choice, given.strength, given.reason, given.ranking)
        self.adjudication.adjudicate(name, given.item, *told)
        return {}

    def drop(self, name: str, given: Drop) -> JsonObject:
        """Take an item out of the batch."""
        self.adjudication.drop(name, given.item, given.reason)
        return {}

    def invite(self, name: str, given: Invite) -> JsonObject:
        """Give an annotator a link, and return its token: the only time that it is told."""
        invited = plain_name(given.name)
        return {"name": invited, "token": self.queue.invite(invited, replaces=given.replaces, by=name)}

    def set_access(self, name: str, given: SetAccess) -> JsonObject:
        """Pause an annotator, let them go on, or end their link."""
        person = self.queue.people().get(given.name)
        if person is not None and person.role == "lead":
            statement = f"{given.name} is a lead"
            raise PipelineError(
                Problem(statement, "an annotator", f"trueup labels people RECIPE STAGE --revoke {given.name}")
            )
        self.queue.set_access(given.name, given.access, name)
        return {}

    def close(self, name: str, given: Close) -> JsonObject:
        """End the batch with the labels it has, or open it again."""
        self.queue.close(given.closed, name)
        return {}
