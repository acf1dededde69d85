"""The labelling app: a page operated by keyboard, and its HTTP API.

Every API request carries the annotator's token. The page takes it from the fragment (`#`) of its link, so that no
server log contains it. The page loads nothing from other servers, and no error response contains a traceback.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pipeline.errors import PipelineError
from pipeline.plain_data import JsonObject
from pipeline.preferences.label_queue import LabelQueue

LOG = logging.getLogger("trueup.collect")
PAGE = files("pipeline.preferences") / "page"
TYPES = {"index.html": "text/html", "app.js": "text/javascript", "style.css": "text/css"}
AHEAD = 2
"""Number of pairs sent to a browser at a time: the one shown and the next."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src data:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

Answer = Callable[[LabelQueue, str, JsonObject], Any]


def make_app(queue: LabelQueue, title: str, guidelines: str = "") -> Starlette:
    """Build the web app.

    Args:
        queue: queue that assigns pairs and records answers.
        title: title of the page, the stage's name.
        guidelines: plain text shown on the page.
    """

    async def healthz(request: Request) -> Response:
        await run_in_threadpool(queue.state)
        return PlainTextResponse("ok\n", headers=HEADERS)

    def page(name: str) -> Callable[[Request], Awaitable[Response]]:
        text = (PAGE / name).read_text(encoding="utf-8")

        async def serve(request: Request) -> Response:
            return Response(text, media_type=TYPES[name], headers=HEADERS)

        return serve

    def api(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        async def serve(request: Request) -> Response:
            given = await _body(request)
            token = request.headers.get("authorization", "").removeprefix("Bearer ")
            try:
                annotator = await run_in_threadpool(queue.annotator, token)
                if annotator is None:
                    return _refusal("this link is not valid any more: ask for a new one", 401)
                answer_data = await run_in_threadpool(answer, queue, annotator, given)
            except PipelineError as error:
                return _refusal("; ".join(str(problem) for problem in error.problems), 409)
            return JSONResponse(answer_data, headers=HEADERS)

        return serve

    def hello(queue: LabelQueue, annotator: str, given: JsonObject) -> Any:
        return {"annotator": annotator, "title": title, "guidelines": guidelines}

    apis: dict[str, Answer] = {
        "hello": hello, "next": _next, "label": _label, "skip": _left("skip"), "flag": _left("flag"), "undo": _undo
    }  # fmt: skip
    routes = [
        Route("/healthz", healthz),
        Route("/", page("index.html")),
        *(Route(f"/{name}", page(name)) for name in ("app.js", "style.css")),
        *(Route(f"/api/{name}", api(answer), methods=["POST"]) for name, answer in apis.items()),
    ]
    return Starlette(routes=routes, exception_handlers={404: _missing, Exception: _broken})


def _next(queue: LabelQueue, annotator: str, given: JsonObject) -> Any:
    return {"items": queue.next(annotator, AHEAD), "progress": queue.progress(annotator)}


def _label(queue: LabelQueue, annotator: str, given: JsonObject) -> Any:
    seconds = given.get("seconds")
    took = float(seconds) if isinstance(seconds, int | float) else 0.0
    strength = given.get("strength", 1)
    queue.label(annotator, str(given.get("item")), str(given.get("choice")), strength, took)
    return _next(queue, annotator, given)


def _left(kind: Literal["skip", "flag"]) -> Answer:
    def leave(queue: LabelQueue, annotator: str, given: JsonObject) -> Any:
        queue.leave(kind, annotator, str(given.get("item")), str(given.get("reason", "")))
        return _next(queue, annotator, given)

    return leave


def _undo(queue: LabelQueue, annotator: str, given: JsonObject) -> Any:
    undone = queue.undo(annotator)
    return {"undone": undone, **_next(queue, annotator, given)}


async def _body(request: Request) -> JsonObject:
    try:
        given = await request.json()
    except ValueError:
        return {}
    return given if isinstance(given, dict) else {}


def _refusal(text: str, status: int) -> Response:
    return JSONResponse({"error": text}, status_code=status, headers=HEADERS)


async def _missing(request: Request, error: Exception) -> Response:
    return PlainTextResponse("there is nothing here: open the link you were given\n", status_code=404, headers=HEADERS)


async def _broken(request: Request, error: Exception) -> Response:
    LOG.error("a request broke", exc_info=error)
    return _refusal("something broke here; nothing you said is lost. Try again in a moment", 500)
