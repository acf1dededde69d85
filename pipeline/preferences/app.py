"""The labelling app: a page operated by keyboard, and its HTTP API.

Every API request carries the caller's token (`gate.py`). The page takes it from the fragment (`#`) of its link, so that
no server log contains it. The page loads nothing from other servers, and no error response contains a traceback.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pipeline.plain_data import JsonObject
from pipeline.preferences.details import LONGEST_COMMENT, LONGEST_EDIT, Choice
from pipeline.preferences.dimensions import SideRating, shown_dimensions
from pipeline.preferences.events import STRONGEST, FlagKind
from pipeline.preferences.gate import (
    HEADERS,
    Answers,
    Endpoint,
    Gate,
    Given,
    HostGuard,
    Hosts,
    Nothing,
    broken,
    refused,
)
from pipeline.preferences.label_queue import LONGEST_REASON, LONGEST_REQUEST, LabelQueue
from pipeline.preferences.labels import AHEAD
from pipeline.preferences.lead import LeadApi
from pipeline.preferences.page_files import PageFile, page_files
from pipeline.preferences.rankings import Ranked, ScreenTiers
from pipeline.preferences.rate_limit import RateLimit

RequestId = Annotated[str, Field(max_length=LONGEST_REQUEST)]


class Label(Given):
    """A choice between the two responses of a pair."""

    item: Annotated[str, Field(max_length=64)]
    choice: Literal["left", "right", "tie", "both good", "both bad"]
    strength: Annotated[int, Field(ge=1, le=STRONGEST)] = 1
    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 0.0
    request: RequestId = ""
    comment: Annotated[str, Field(max_length=LONGEST_COMMENT)] = ""
    edit: Annotated[str, Field(max_length=LONGEST_EDIT)] = ""
    ratings: dict[str, SideRating] = Field(default_factory=dict)


class Ranking(Given):
    """A ranking of a group: places on the screen in tiers, best first."""

    item: Annotated[str, Field(max_length=64)]
    ranking: ScreenTiers
    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 0.0
    request: RequestId = ""
    comment: Annotated[str, Field(max_length=LONGEST_COMMENT)] = ""


class Leave(Given):
    """A pair that is skipped or flagged."""

    item: Annotated[str, Field(max_length=64)]
    reason: Annotated[str, Field(max_length=LONGEST_REASON)] = ""
    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 0.0
    request: RequestId = ""


class Flag(Leave):
    """A pair that is flagged, and what is wrong with it."""

    flag: FlagKind | None = None


class Live(NamedTuple):
    """What a batch of live dialogues has in place of pairs.

    Attributes:
        answers: answers to the requests of its page.
        lead: the API of its lead's page.
    """

    answers: Answers
    lead: LeadApi


class Undo(Given):
    """The last answer is taken back."""

    request: RequestId = ""


class LabelApi:
    """The HTTP API of the page: each method answers one kind of request of an annotator.

    Args:
        queue: queue that assigns pairs and records answers.
        title: title of the page, the stage's name.
        guidelines: Markdown shown on the page.
        live: answers of a batch of live dialogues, which has no pairs to assign; None of a batch of pairs.
    """

    def __init__(self, queue: LabelQueue, title: str, guidelines: str, live: Answers | None = None) -> None:
        self.queue, self.title, self.guidelines, self.live = queue, title, guidelines, live
        self.is_ranked = live is None and queue.batch.is_ranked

    def routes(self, gate: Gate) -> list[Route]:
        """Return the routes of the API; the gate lets annotators in."""
        answers: Answers = {
            "hello": (Nothing, self.hello),
            "next": (Nothing, lambda name, given: self._following(name, has_read=False)),
            **({"rank": (Ranking, self.rank)} if self.is_ranked else {"label": (Label, self.label)}),
            "skip": (Leave, partial(self.leave, "skip")),
            "flag": (Flag, partial(self.leave, "flag")),
            "undo": (Undo, self.undo),
        }
        if self.live is not None:
            answers = {"hello": answers["hello"], **self.live}
        return [Route(f"/api/{name}", gate.serve(*answer), methods=["POST"]) for name, answer in answers.items()]

    def hello(self, name: str, given: Nothing) -> JsonObject:
        """Return who the annotator is and what the page says."""
        dimensions = shown_dimensions(self.queue.dimensions)
        told = {"annotator": name, "title": self.title, "guidelines": self.guidelines, "dimensions": dimensions}
        return {**told, "ranked": self.is_ranked}

    def label(self, name: str, given: Label) -> JsonObject:
        """Record a choice, and return the next pairs."""
        told = (given.comment, given.edit, given.ratings)
        self.queue.choose(name, given.item, Choice(given.choice, given.strength, given.seconds, given.request, *told))
        return self._following(name)

    def rank(self, name: str, given: Ranking) -> JsonObject:
        """Record a ranking, and return the next groups."""
        self.queue.rank(name, given.item, Ranked(given.ranking, given.seconds, given.request, given.comment))
        return self._following(name)

    def leave(self, kind: Literal["skip", "flag"], name: str, given: Leave) -> JsonObject:
        """Skip or flag a pair, and return the next pairs."""
        flag = given.flag if isinstance(given, Flag) else None
        self.queue.leave(kind, name, given.item, given.reason, given.request, flag)
        return self._following(name)

    def undo(self, name: str, given: Undo) -> JsonObject:
        """Take the last answer back, and return its pair before the next ones."""
        return self._following(name, undone=self.queue.undo(name, given.request))

    def _following(self, name: str, *, has_read: bool = True, **more: Any) -> JsonObject:
        items = self.queue.next(name, AHEAD, has_read=has_read)
        later = not items and self.queue.comes_back(name)
        return {**more, "items": items, "progress": self.queue.progress(name, has_read=True), "later": later}


def make_app(
    queue: LabelQueue, title: str, guidelines: str = "", hosts: Hosts | None = None, live: Live | None = None
) -> Starlette:
    """Build the web app.

    Args:
        queue: queue that assigns pairs and records answers.
        title: title of the page, the stage's name.
        guidelines: Markdown shown on the page.
        hosts: names under which the app is reached; this machine's own without them.
        live: what a batch of live dialogues has in place of pairs.
    """
    gate = Gate(queue)
    checks = RateLimit(per_second=5, burst=20)

    async def healthz(request: Request) -> Response:
        if not checks.take("everybody"):
            raise HTTPException(429, "the app is asked too often whether it is well")
        await run_in_threadpool(queue.refresh)
        return PlainTextResponse("ok\n", headers=HEADERS)

    def page(file: PageFile) -> Endpoint:
        kept = {"Cache-Control": "public, max-age=31536000, immutable"} if file.is_versioned else {}

        async def serve(request: Request) -> Response:
            return Response(file.content, media_type=file.media_type, headers={**HEADERS, **kept})

        return serve

    routes = [
        Route("/healthz", healthz),
        *(Route(file.path, page(file)) for file in page_files("index.html" if live is None else "chat.html")),
        *LabelApi(queue, title, guidelines, live and live.answers).routes(gate),
        *(LeadApi(queue, title) if live is None else live.lead).routes(gate),
    ]
    guard = Middleware(HostGuard, hosts=hosts or Hosts())
    app = Starlette(routes=routes, middleware=[guard], exception_handlers={HTTPException: refused, Exception: broken})
    app.router.redirect_slashes = False  # a redirection has none of our headers, and names http behind a proxy
    return app
