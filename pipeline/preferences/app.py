"""The labelling app: a page operated by keyboard, and its HTTP API.

Every API request carries the caller's token (`gate.py`). The page takes it from the fragment (`#`) of its link, so that
no server log contains it. The page loads nothing from other servers, and no error response contains a traceback.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.resources import files
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pipeline.plain_data import JsonObject
from pipeline.preferences.gate import HEADERS, Endpoint, Gate, Given, HostGuard, Hosts, Nothing, broken, refused
from pipeline.preferences.label_queue import LONGEST_REASON, LONGEST_REQUEST, STRONGEST, LabelQueue
from pipeline.preferences.lead import LeadApi
from pipeline.preferences.rate_limit import RateLimit

PAGE = files("pipeline.preferences") / "page"
TYPES = {"index.html": "text/html", "app.js": "text/javascript", "style.css": "text/css"}
LEAD_TYPES = {"lead.html": "text/html", "lead.js": "text/javascript", "lead.css": "text/css"}
AHEAD = 2
"""Number of pairs sent to a browser at a time: the one shown and the next."""

RequestId = Annotated[str, Field(max_length=LONGEST_REQUEST)]


class Label(Given):
    """A choice between the two responses of a pair."""

    item: Annotated[str, Field(max_length=64)]
    choice: Literal["left", "right", "tie", "both good", "both bad"]
    strength: Annotated[int, Field(ge=1, le=STRONGEST)] = 1
    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 0.0
    request: RequestId = ""


class Leave(Given):
    """A pair that is skipped or flagged."""

    item: Annotated[str, Field(max_length=64)]
    reason: Annotated[str, Field(max_length=LONGEST_REASON)] = ""
    seconds: Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)] = 0.0
    request: RequestId = ""


class Undo(Given):
    """The last answer is taken back."""

    request: RequestId = ""


class LabelApi:
    """The HTTP API of the page: each method answers one kind of request of an annotator.

    Args:
        queue: queue that assigns pairs and records answers.
        title: title of the page, the stage's name.
        guidelines: plain text shown on the page.
    """

    def __init__(self, queue: LabelQueue, title: str, guidelines: str) -> None:
        self.queue, self.title, self.guidelines = queue, title, guidelines

    def routes(self, gate: Gate) -> list[Route]:
        """Return the routes of the API; the gate lets annotators in."""
        answers: dict[str, tuple[type[Given], Callable[[str, Any], JsonObject]]] = {
            "hello": (Nothing, self.hello),
            "next": (Nothing, lambda name, given: self._following(name)),
            "label": (Label, self.label),
            "skip": (Leave, partial(self.leave, "skip")),
            "flag": (Leave, partial(self.leave, "flag")),
            "undo": (Undo, self.undo),
        }
        return [Route(f"/api/{name}", gate.serve(*answer), methods=["POST"]) for name, answer in answers.items()]

    def hello(self, name: str, given: Nothing) -> JsonObject:
        """Return who the annotator is and what the page says."""
        return {"annotator": name, "title": self.title, "guidelines": self.guidelines}

    def label(self, name: str, given: Label) -> JsonObject:
        """Record a choice, and return the next pairs."""
        self.queue.label(name, given.item, given.choice, given.strength, given.seconds, given.request)
        return self._following(name)

    def leave(self, kind: Literal["skip", "flag"], name: str, given: Leave) -> JsonObject:
        """Skip or flag a pair, and return the next pairs."""
        self.queue.leave(kind, name, given.item, given.reason, given.request)
        return self._following(name)

    def undo(self, name: str, given: Undo) -> JsonObject:
        """Take the last answer back, and return its pair before the next ones."""
        return self._following(name, undone=self.queue.undo(name, given.request))

    def _following(self, name: str, **more: Any) -> JsonObject:
        return {**more, "items": self.queue.next(name, AHEAD), "progress": self.queue.progress(name)}


def make_app(queue: LabelQueue, title: str, guidelines: str = "", hosts: Hosts | None = None) -> Starlette:
    """Build the web app.

    Args:
        queue: queue that assigns pairs and records answers.
        title: title of the page, the stage's name.
        guidelines: plain text shown on the page.
        hosts: names under which the app is reached; this machine's own without them.
    """
    gate = Gate(queue)
    checks = RateLimit(per_second=5, burst=20)

    async def healthz(request: Request) -> Response:
        if not checks.take("everybody"):
            raise HTTPException(429, "the app is asked too often whether it is well")
        await run_in_threadpool(queue.refresh)
        return PlainTextResponse("ok\n", headers=HEADERS)

    def page(name: str) -> Endpoint:
        text = (PAGE / name).read_text(encoding="utf-8")

        async def serve(request: Request) -> Response:
            return Response(text, media_type={**TYPES, **LEAD_TYPES}[name], headers=HEADERS)

        return serve

    routes = [
        Route("/healthz", healthz),
        Route("/", page("index.html")),
        *(Route(f"/{name}", page(name)) for name in ("app.js", "style.css")),
        Route("/lead", page("lead.html")),
        *(Route(f"/{name}", page(name)) for name in ("lead.js", "lead.css")),
        *LabelApi(queue, title, guidelines).routes(gate),
        *LeadApi(queue, title).routes(gate),
    ]
    guard = Middleware(HostGuard, hosts=hosts or Hosts())
    return Starlette(routes=routes, middleware=[guard], exception_handlers={HTTPException: refused, Exception: broken})
