"""The labelling app: a page operated by keyboard, and its HTTP API.

Every API request carries the annotator's token. The page takes it from the fragment (`#`) of its link, so that no
server log contains it. A request is refused before its body is read when its token is unknown, when it comes too fast,
or when it is too large. The page loads nothing from other servers, and no error response contains a traceback.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.resources import files
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pipeline.errors import PipelineError
from pipeline.plain_data import JsonObject
from pipeline.preferences.label_queue import LONGEST_REASON, LONGEST_REQUEST, STRONGEST, LabelQueue
from pipeline.preferences.rate_limit import RateLimit

LOG = logging.getLogger("trueup.collect")
PAGE = files("pipeline.preferences") / "page"
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
AHEAD = 2
"""Number of pairs sent to a browser at a time: the one shown and the next."""

LARGEST_BODY = 64 * 1024
"""Most bytes in the body of a request."""

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

Endpoint = Callable[[Request], Awaitable[Response]]
Answers = dict[str, tuple["type[Given]", Callable[[str, Any], JsonObject]]]
"""By the name of a request: what its body is, and what answers an annotator who sends it."""

RequestId = Annotated[str, Field(max_length=LONGEST_REQUEST)]


class Given(BaseModel):
    """The body of a request; other keys and other types are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Nothing(Given):
    """A request that says nothing."""


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
        live: answers of a batch of live dialogues, which has no pairs to assign; None of a batch of pairs.
    """

    def __init__(self, queue: LabelQueue, title: str, guidelines: str, live: Answers | None = None) -> None:
        self.queue, self.title, self.guidelines, self.live = queue, title, guidelines, live
        self._wrong_tokens = RateLimit(per_second=0.5, burst=20)
        self._requests = RateLimit(per_second=50, burst=200)

    def routes(self) -> list[Route]:
        """Return the routes of the API."""
        answers: Answers = {
            "hello": (Nothing, self.hello),
            "next": (Nothing, lambda name, given: self._following(name)),
            "label": (Label, self.label),
            "skip": (Leave, partial(self.leave, "skip")),
            "flag": (Leave, partial(self.leave, "flag")),
            "undo": (Undo, self.undo),
        }
        if self.live is not None:
            answers = {"hello": answers["hello"], **self.live}
        return [Route(f"/api/{name}", self._serve(*answer), methods=["POST"]) for name, answer in answers.items()]

    def _serve(self, given_type: type[Given], answer: Callable[[str, Any], JsonObject]) -> Endpoint:
        async def serve(request: Request) -> Response:
            try:
                name = await self._annotator(request)
                given = _parsed(given_type, await _body(request))
                return JSONResponse(await run_in_threadpool(answer, name, given), headers=HEADERS)
            except PipelineError as error:
                return _refusal("; ".join(str(problem) for problem in error.problems), 409)

        return serve

    async def _annotator(self, request: Request) -> str:
        """Return who asks, or refuse the request."""
        address = request.client.host if request.client is not None else ""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        # Whoever guesses costs no look into the ledger any more; who has a token is let in from the same address.
        is_new = self._wrong_tokens.is_left(address)
        who = await run_in_threadpool(self.queue.annotator, token, is_new=is_new)
        if who is None and not self._wrong_tokens.take(address):
            raise HTTPException(429, "too many links that are not valid came from this address: wait a minute")
        if who is None:
            raise HTTPException(401, "this link is not valid any more: ask for a new one")
        name, access = who
        if access == "paused":
            raise HTTPException(403, "your labelling is paused: ask who gave you the link")
        if not self._requests.take(name):
            raise HTTPException(429, "these are more requests than a person makes: wait a moment")
        return name

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


def make_app(queue: LabelQueue, title: str, guidelines: str = "", live: Answers | None = None) -> Starlette:
    """Build the web app.

    Args:
        queue: queue that assigns pairs and records answers.
        title: title of the page, the stage's name.
        guidelines: plain text shown on the page.
        live: answers of a batch of live dialogues, whose page takes the place of that of pairs.
    """

    async def healthz(request: Request) -> Response:
        await run_in_threadpool(queue.refresh)
        return PlainTextResponse("ok\n", headers=HEADERS)

    def page(name: str) -> Endpoint:
        text = (PAGE / name).read_text(encoding="utf-8")

        async def serve(request: Request) -> Response:
            return Response(text, media_type=TYPES[name.rpartition(".")[2]], headers=HEADERS)

        return serve

    routes = [
        Route("/healthz", healthz),
        Route("/", page("index.html" if live is None else "chat.html")),
        *(Route(f"/{name}", page(name)) for name in ("app.js", "chat.js", "style.css", "chat.css")),
        *LabelApi(queue, title, guidelines, live).routes(),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _refused, Exception: _broken})


async def _body(request: Request) -> bytes:
    """Read the body of a request, at most `LARGEST_BODY` bytes of it."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise HTTPException(413, f"the request is larger than {LARGEST_BODY // 1024} KiB")
    return body


def _parsed(given_type: type[Given], body: bytes) -> Given:
    """Parse the body of a request, or refuse it."""
    try:
        return given_type.model_validate(json.loads(body or b"{}", parse_constant=_not_finite))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the request"
        raise HTTPException(422, f"{where}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
    except (ValueError, RecursionError):
        raise HTTPException(422, "the request is not JSON") from None


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _refusal(text: str, status: int) -> Response:
    return JSONResponse({"error": text}, status_code=status, headers=HEADERS)


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 404:
        text = "there is nothing here: open the link you were given\n"
        return PlainTextResponse(text, status_code=404, headers=HEADERS)
    return _refusal(str(getattr(error, "detail", "")), status)


async def _broken(request: Request, error: Exception) -> Response:
    LOG.error("a request broke", exc_info=error)
    return _refusal("something broke here; nothing you said is lost. Try again in a moment", 500)
