"""A small real HTTP server of chat completions whose answers, good and bad, a test decides."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEMPLATE = "Q:{prompt}\nA:{first}\nB:{second}\n{format}"
"""A short template that `sides` can read."""


@dataclass(frozen=True)
class Answer:
    """An answer of the server.

    Attributes:
        text: text of the completion.
        status: HTTP status; other than 200 it is an error.
        headers: further headers.
        raw: body instead of a completion.
        closes: whether the connection is closed without an answer.
        logprobs: most likely tokens at the place of the only token.
        finish: why the completion ends.
        counts: whether the tokens are counted.
    """

    text: str = "A"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    closes: bool = False
    logprobs: dict[str, float] | None = None
    finish: str | None = "stop"
    counts: bool = True

    def body(self) -> bytes:
        """Return the body as bytes."""
        if self.raw is not None:
            return self.raw
        if self.status != 200:
            return json.dumps({"error": {"message": "no luck"}}).encode()
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.finish}
        choice["message"] = {"role": "assistant", "content": self.text}
        if self.logprobs is not None:
            top = [{"token": token, "logprob": value, "bytes": None} for token, value in self.logprobs.items()]
            choice["logprobs"] = {"content": [{"token": self.text, "logprob": 0.0, "bytes": None, "top_logprobs": top}]}
        usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
        return json.dumps(
            {
                **{"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]},
                **({"usage": usage} if self.counts else {}),
            }
        ).encode()


def sides(text: str) -> tuple[str, str]:
    """Return both responses of a request by `TEMPLATE`."""
    first, second = re.search(r"^A:(.*)\nB:(.*)$", text, re.MULTILINE).groups()  # type: ignore[union-attr]
    return first, second


def longer(text: str, times: int) -> Answer:
    """Prefer the longer response, of two as long the one shown first."""
    first, second = sides(text)
    return Answer("A" if len(first) >= len(second) else "B")


Decide = Callable[[str, int], Answer]
"""Returns the answer to a request's text, which came so many times before."""


def last_text(body: dict[str, Any]) -> str:
    """Return the text of the last message of a request."""
    return str(body["messages"][-1]["content"])


class JudgeServer:
    """The running server; remembers what it was asked.

    Args:
        decide: decides on the answer.
        read: returns what of a request's body decides; by default the text of its last message.

    Attributes:
        url: base URL.
        asked: bodies of all requests, in their order.
        keys: values of their `Authorization` headers.
    """

    def __init__(self, decide: Decide, read: Callable[[dict[str, Any]], str] = last_text) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.lock = threading.Lock()
        self.most_at_once = self._at_once = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = read(body)
                with outer.lock:
                    times = sum(read(other) == text for other in outer.asked)
                    outer.asked.append(body)
                    outer.keys.append(self.headers.get("Authorization"))
                    outer._at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer._at_once)
                try:
                    self.send(decide(text, times))
                finally:
                    with outer.lock:
                        outer._at_once -= 1

            def send(self, answer: Answer) -> None:
                if answer.closes:
                    self.close_connection = True
                    self.connection.close()
                    return
                content = answer.body()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client was killed
                    self.send_response(answer.status)
                    for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def finish(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    super().finish()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def texts(self) -> list[str]:
        """The requests' texts, in their order."""
        return [body["messages"][-1]["content"] for body in self.asked]

    @contextlib.contextmanager
    def running(self) -> Iterator[JudgeServer]:
        """Serve until the block ends."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
