"""The gate of the app: who may call which route, from where, and how large a request may be.

Every route under `/api/` needs a token, as `Authorization: Bearer …`: those under `/api/lead/` a lead's, the others an
annotator's. A browser never adds this header by itself, as it does a cookie, so a form that a page of another site
posts here is refused. A request is refused before its body is parsed when its token is unknown, when it comes too fast,
or when it is too large.

`HostGuard` refuses requests for a host that is not this app's: else a page of another site could have its own name
resolve to this machine, and read what the app answers (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import urlsplit

import anyio
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.errors import PipelineError
from pipeline.machine.disk import CannotWrite
from pipeline.plain_data import JsonObject
from pipeline.preferences.events import Role
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.ledger import LedgerUnavailable
from pipeline.preferences.rate_limit import RateLimit

LOG = logging.getLogger("trueup.collect")
LARGEST_BODY = 64 * 1024
"""Most bytes in the body of a request."""

LARGEST_REFUSED = 1024 * 1024
"""Most bytes of a refused request that are read and thrown away, so that its sender gets the answer."""

LONGEST_TOKEN = 128
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types dompurify"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Answers = dict[str, tuple["type[Given]", Callable[[str, Any], JsonObject]]]
"""By the name of a request: what its body is, and what answers a person who sends it."""

Endpoint = Callable[[Request], Awaitable[Response]]


class Given(BaseModel):
    """The body of a request; other keys and other types are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Nothing(Given):
    """A request that says nothing."""


def role_of(path: str) -> Role | None:
    """Return the role that a route is for; None for a page that everybody may read."""
    if path.startswith("/api/lead/"):
        return "lead"
    return "annotator" if path.startswith("/api/") else None


@dataclass(frozen=True)
class Hosts:
    """The names under which the app is reached.

    Attributes:
        names: host names and addresses, in lower case and without ports.
        takes_addresses: whether any IP address is one too: the app listens on all of this machine's. A page of another
            site has a name, so an address gives nothing away.
        origin: scheme, host and port that browsers show, behind a proxy; empty without one.
    """

    names: frozenset[str] = frozenset({"localhost", "127.0.0.1", "::1"})
    takes_addresses: bool = False
    origin: str = ""

    @classmethod
    def of(cls, listening: str, url: str | None) -> Hosts:
        """Return the names of an app that listens on an address, and that people reach under a URL."""
        own = cls()
        reached = urlsplit(url) if url else None
        names = {listening.lower(), *([reached.hostname] if reached and reached.hostname else [])}
        is_any = _address(listening) in (ipaddress.ip_address("0.0.0.0"), ipaddress.ip_address("::"))
        origin = _origin(url) if url else ""
        return cls(own.names | names, is_any, origin)

    def has(self, host: str) -> bool:
        """Return whether a `Host` header names this app."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        return name in self.names or (self.takes_addresses and _address(name) is not None)

    def is_own(self, origin: str, host: str) -> bool:
        """Return whether an `Origin` header is that of the app's own pages."""
        own = {_origin(f"http://{host}"), _origin(f"https://{host}"), self.origin}
        return bool(origin) and origin.lower() in own - {""}


def _origin(url: str) -> str:
    """Return a URL as browsers show it in `Origin`: without path, and without the port that the scheme has anyway."""
    try:
        parts = urlsplit(url.lower())
        port = parts.port
    except ValueError:
        return ""
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{name}" + ("" if port in (None, usual) else f":{port}")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


class HostGuard:
    """Refuses requests for other hosts, and those that pages of other sites send.

    Args:
        app: the app behind it.
        hosts: the names of the app.
    """

    def __init__(self, app: ASGIApp, hosts: Hosts) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.hosts.has(host):
            text = "this app has another name: open the link you were given, or start it with --url\n"
            await PlainTextResponse(text, 400, headers=HEADERS)(scope, receive, send)
        elif origin is not None and not self.hosts.is_own(origin, host):
            text = "a page of another site sent this: open the link you were given, or start the app with --url"
            await refusal(text, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class Gate:
    """Lets people in by their tokens.

    Args:
        queue: knows the people.
    """

    def __init__(self, queue: LabelQueue) -> None:
        self.queue = queue
        self._wrong_tokens = RateLimit(per_second=0.5, burst=20)
        self._requests = RateLimit(per_second=50, burst=200)

    def serve(self, given_type: type[Given], answer: Callable[[str, Any], JsonObject]) -> Endpoint:
        """Return an endpoint that lets the right people in, parses what they send, and answers them.

        Args:
            given_type: what the body of a request has to be.
            answer: called with the caller's name and the body, in a thread of its own.
        """

        async def serve(request: Request) -> Response:
            try:
                try:
                    name = await self._admit(request)
                except HTTPException:
                    await _discard(request)
                    raise
                given = _parsed(given_type, await _body(request))
                return JSONResponse(await run_in_threadpool(answer, name, given), headers=HEADERS)
            except (LedgerUnavailable, CannotWrite) as error:
                LOG.error("%s", error)
                return refusal("the labels cannot be saved just now; your browser tries again", 503)
            except PipelineError as error:
                return refusal("; ".join(str(problem) for problem in error.problems), 409)

        return serve

    async def _admit(self, request: Request) -> str:
        """Return the name of who asks, or refuse the request."""
        address = _network(request.client.host if request.client is not None else "")
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        # Whoever guesses costs no look into the ledger any more; who has a token is let in from the same address.
        is_new = self._wrong_tokens.is_left(address)
        is_token = 0 < len(token) <= LONGEST_TOKEN
        caller = await run_in_threadpool(self.queue.identify, token, is_new=is_new) if is_token else None
        if caller is None and not self._wrong_tokens.take(address):
            raise HTTPException(429, "too many links that are not valid came from this address: wait a minute")
        if caller is None:
            raise HTTPException(401, "this link is not valid any more: ask for a new one")
        if caller.access == "paused":
            raise HTTPException(403, "your labelling is paused: ask who gave you the link")
        if caller.role != role_of(request.url.path):
            raise HTTPException(403, _ELSEWHERE[caller.role])
        if not self._requests.take(caller.name):
            raise HTTPException(429, "these are more requests than a person makes: wait a moment")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "the request is not application/json")
        return caller.name


_ELSEWHERE: dict[Role, str] = {
    "annotator": "this page is for the lead: your link opens the pairs to label",
    "lead": "this is a lead's link: it opens /lead. Who labels too has a second link, under another name",
}


def _network(address: str) -> str:
    """Return an address; of IPv6 the network, whose addresses one machine may have all of."""
    parsed = _address(address)
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address


async def _body(request: Request) -> bytes:
    """Read the body of a request, at most `LARGEST_BODY` bytes of it."""
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > LARGEST_BODY:
                await _discard(request)
                text = f"the request is larger than {LARGEST_BODY // 1024} KiB"
                raise HTTPException(413, text, {"Connection": "close"})
    except ClientDisconnect:
        raise HTTPException(400, "the request ends before its body does") from None
    return body


async def _discard(request: Request) -> None:
    """Read what a refused request still sends, `LARGEST_REFUSED` bytes at most: else its sender sees no answer."""
    size = 0
    with anyio.move_on_after(2):
        while size <= LARGEST_REFUSED:
            message = await request.receive()
            size += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return


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


def refusal(text: str, status: int, headers: dict[str, str] | None = None) -> Response:
    """Return the answer to a request that is refused."""
    return JSONResponse({"error": text}, status_code=status, headers={**HEADERS, **(headers or {})})


async def refused(request: Request, error: Exception) -> Response:
    """Answer a request that was refused, in words."""
    if not isinstance(error, HTTPException):
        return refusal("", 500)
    if error.status_code == 404:
        text = "there is nothing here: open the link you were given\n"
        return PlainTextResponse(text, status_code=404, headers=HEADERS)
    return refusal(error.detail, error.status_code, dict(error.headers or {}))


async def broken(request: Request, error: Exception) -> Response:
    """Answer a request that broke; the log has the reason, and no header of the request."""
    LOG.error("a request broke", exc_info=error)
    return refusal("something broke here; nothing you said is lost. Try again in a moment", 500)
