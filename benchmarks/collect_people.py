"""The server of the labelling app, and the people of `benchmarks/collect.py` who ask it over HTTP."""

from __future__ import annotations

import http.client
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
JsonBody = dict[str, Any]


class Reply(NamedTuple):
    """A reply of the server."""

    status: int
    text: bytes


class App:
    """The server, and the links of the people who label."""

    def __init__(self, folder: Path, url: str, people: int) -> None:
        self.folder, self.url, self.people = folder, url, people
        self.tokens: dict[str, str] = {}
        self.lead = ""
        self.process: subprocess.Popen[str] | None = None
        self.port = 0
        self.statuses: Counter[int] = Counter()
        self._counting = threading.Lock()

    def start(self) -> float:
        """Start the server and return the seconds until it listens."""
        started = time.perf_counter()
        people = ",".join(f"person-{n}" for n in range(self.people))
        line = [sys.executable, "-m", "pipeline.cli", "collect", "bench.yaml", "labels", "--annotators", people]
        line += ["--lead", "lead"]
        around = {**os.environ, "TRUEUP_LEDGER": self.url, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [*line, "--port", str(self.port)], cwd=self.folder, env=around, text=True, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        for text in self.process.stdout:
            name, _, link = text.strip().partition(": ")
            if "/lead#" in link:
                self.lead = link.partition("#")[2]
            elif "/#" in link:
                self.tokens[name] = link.partition("#")[2]
            if text.startswith("listening on "):
                self.port = urlsplit(text.split()[2].rstrip(";")).port or 0
                return time.perf_counter() - started
        sys.exit(f"the app did not start: exit code {self.process.wait()}")

    def ask(self, connection: http.client.HTTPConnection, token: str, path: str, body: JsonBody | None) -> Reply:
        """Send a request, GET without a body, and count its reply by status."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), headers)
        reply = connection.getresponse()
        text = reply.read()
        with self._counting:
            self.statuses[reply.status] += 1
        return Reply(reply.status, text)

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection to the app."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def peak_memory_mib(self) -> float:
        """Return the most memory that the server has had."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def stop(self, number: int = signal.SIGINT) -> None:
        """Send the server a signal and wait until it has ended."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait()


class Person(threading.Thread):
    """Somebody who labels until told to stop.

    Args:
        app: the server.
        name: who it is.
        every: seconds between two labels; 0 for as fast as possible.
        until: the time of `time.perf_counter` to stop at.
    """

    def __init__(self, app: App, name: str, every: float, until: float) -> None:
        super().__init__()
        self.app, self.who, self.every, self.until = app, name, every, until
        self.milliseconds: list[float] = []
        self.acknowledged: list[str] = []
        self.failed = 0

    def run(self) -> None:
        """Label; send a label again when its reply was lost."""
        connection: http.client.HTTPConnection | None = None
        rng = random.Random(self.who)
        items: list[Any] = []
        pending: dict[str, Any] | None = None
        time.sleep(rng.uniform(0, self.every))
        while time.perf_counter() < self.until or pending:
            if connection is None:
                connection = self.app.connect()
            try:
                if not items:
                    items = self._ask(connection, "next", {})["items"]
                    if not items:
                        return
                if pending is None:
                    choice = rng.choice(["left", "right", "tie"])
                    request = secrets.token_hex(8)
                    pending = {"item": items[0]["item"], "choice": choice, "seconds": 1.0, "request": request}
                started = time.perf_counter()
                items = self._ask(connection, "label", pending)["items"]
                self.milliseconds.append((time.perf_counter() - started) * 1000)
                self.acknowledged.append(pending["request"])
                pending = None
                time.sleep(rng.uniform(0.5, 1.5) * self.every)
            except (OSError, http.client.HTTPException):
                self.failed += 1
                connection.close()
                connection = None
                time.sleep(0.2)  # the same label is sent again

    def _ask(self, connection: http.client.HTTPConnection, name: str, body: JsonBody) -> Any:
        reply = self.app.ask(connection, self.app.tokens[self.who], f"/api/{name}", body)
        if reply.status != 200:
            raise http.client.HTTPException(f"{reply.status}: {reply.text[:200]!r}")
        return json.loads(reply.text)


class Visitor(threading.Thread):
    """Somebody who does what the page can do, in no order, until the app has answered a number of requests.

    `ACTIONS` has the share of each request. A refusal is an answer as well: of the pair that somebody else flagged, for
    example.

    Args:
        app: the server.
        who: name of the annotator.
        requests: number of answered requests of all people at which everybody stops.
    """

    ACTIONS: ClassVar = {"label": 60, "next": 15, "undo": 10, "skip": 5, "flag": 1, "hello": 5, "page": 4}

    def __init__(self, app: App, who: str, requests: int) -> None:
        super().__init__()
        self.app, self.who, self.requests = app, who, requests
        self.acknowledged: list[str] = []

    def run(self) -> None:
        """Ask."""
        connection, rng = self.app.connect(), random.Random(self.who)
        items: list[Any] = []
        while self.app.statuses.total() < self.requests:
            action = rng.choices([*self.ACTIONS], [*self.ACTIONS.values()])[0]
            if action == "page":
                self.app.ask(connection, "", "/", None)
                continue
            body: JsonBody = {}
            if action in ("label", "skip", "flag") and not items:
                action = "next"
            if action in ("label", "skip", "flag", "undo"):
                body = {"request": secrets.token_hex(8)}
            if action in ("label", "skip", "flag"):
                body |= {"item": items[0]["item"]}
            if action == "label":
                body |= {"choice": rng.choice(["left", "right", "tie", "both bad"]), "seconds": 1.0}
            reply = self.app.ask(connection, self.app.tokens[self.who], f"/api/{action}", body)
            if reply.status == 200 and action == "label":
                self.acknowledged.append(body["request"])
            if action != "hello":
                items = json.loads(reply.text)["items"] if reply.status == 200 else []


class Lead(threading.Thread):
    """A lead who looks at figures and lists and decides pairs, until the app has answered a number of requests."""

    def __init__(self, app: App, requests: int) -> None:
        super().__init__()
        self.app, self.requests = app, requests

    def run(self) -> None:
        """Ask."""
        connection, rng = self.app.connect(), random.Random("lead")
        while self.app.statuses.total() < self.requests:
            self.app.ask(connection, self.app.lead, "/api/lead/overview", {})
            name = rng.choice(["disagreements", "flagged", "skipped", "stuck", "open", "adjudicated"])
            reply = self.app.ask(connection, self.app.lead, "/api/lead/items", {"name": name, "offset": 0})
            for item in json.loads(reply.text)["items"][:2]:
                body = {"item": item["item"], "choice": rng.choice(["left", "right", None]), "reason": "a benchmark"}
                self.app.ask(connection, self.app.lead, "/api/lead/adjudicate", body)
            time.sleep(0.5)
