"""Databases, a recipe whose answers are to be compared, and the app as the command runs it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from ports import free_port

pytest.importorskip("sqlalchemy", reason="labels are kept with SQLAlchemy: pip install 'trueup[collect]'")

from pipeline.preferences.events import Role
from pipeline.preferences.gate import Hosts
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.labels import Batch
from pipeline.preferences.ledger import Ledger
from pipeline.preferences.serving import listen, make_server

ROWS = [
    {"prompt": f"What is {n} plus {n}?", "chosen": f"right-{n}: {2 * n}", "rejected": f"wrong-{n}: {2 * n + 1}"}
    for n in range(1, 7)
]
RECIPE = """
name: people
data:
  answers: {path: answers.jsonl}
  pairs: {artifact: labels, file: preferences.jsonl}
stages:
  labels: {kind: collect, data: answers, guidelines: Prefer what is right.}
"""


def _programs() -> Path | None:
    """Return the folder of PostgreSQL's server programs; Debian keeps them out of the path."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb else folders[-1] if folders else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Run a PostgreSQL server of our own and return the URL of its database.

    Its folder is not among pytest's, which nobody but their owner may enter.
    """
    pytest.importorskip("psycopg", reason="PostgreSQL's driver: pip install 'trueup[collect]'")
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    user: dict[str, Any] = {}
    if os.getuid() == 0:  # the server refuses to be root
        try:
            someone = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        user = {"user": someone.pw_uid, "group": someone.pw_gid, "extra_groups": []}
    with tempfile.TemporaryDirectory(prefix="trueup-postgres-") as made:
        folder, port = Path(made), free_port()
        if user:
            shutil.chown(folder, user["user"], user["group"])
        with _serving(programs, folder, port, user):
            yield f"postgresql+psycopg://trueup@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def _serving(programs: Path, folder: Path, port: int, user: dict[str, Any]) -> Iterator[None]:
    import psycopg

    data = folder / "data"
    command = [programs / "initdb", "--pgdata", data, "--username", "trueup", "--auth", "trust", "--encoding", "UTF8"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, **user)
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **user,
    )
    deadline = time.monotonic() + 800
    try:
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(host="127.0.0.1", port=port, user="trueup", dbname="postgres").close()
                break
            assert server.poll() is None and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)
        yield
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=800)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a database, of both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres"))


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Return a recipe with a collection of six pairs."""
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    recipe = tmp_path / "people.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return recipe


@dataclass
class Server:
    """The app, as `trueup collect` runs it."""

    process: subprocess.Popen[str]
    address: str
    tokens: dict[str, str]

    def post(self, name: str, token: str, body: bytes) -> tuple[int, str]:
        """Return status and text of the reply to a request."""
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.address}/api/{name}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=800) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ask(self, route: str, who: str, status: int = 200, /, **body: Any) -> Any:
        """Return what an address of the app answers an annotator."""
        code, text = self.post(route, self.tokens.get(who, who), json.dumps(body).encode())
        assert code == status, text
        return json.loads(text)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Run `trueup collect …` until it listens, and stop it after the test."""
    running = []

    def start(arguments: list[str], folder: Path, **around: str) -> Server:
        command = [sys.executable, "-m", "pipeline.cli", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **around}
        process = subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE)
        running.append(process)
        tokens, address = {}, ""
        assert process.stdout is not None
        for line in process.stdout:
            name, _, link = line.strip().partition(": ")
            if "#" in link:
                tokens[name] = link.partition("#")[2]
            if line.startswith("listening on "):
                address = line.split()[2].rstrip(";")
                break
        assert address, process.wait(timeout=800)
        return Server(process, address, tokens)

    yield start
    for process in running:
        process.terminate()
        process.wait(timeout=800)


@pytest.fixture
def open_app(people: Path, serve: Callable[..., Server]) -> Callable[..., Server]:
    """Start `trueup collect` for annotators of the six pairs."""

    def start(*annotators: str, url: str, batch: str = "", more: tuple[str, ...] = ()) -> Server:
        batch = batch or people.parent.name
        port = () if "--port" in more else ("--port", "0")
        line = ["collect", str(people), "labels", *port, *more, "--annotators", ",".join(annotators)]
        return serve([*line, "--set", f"stages.labels.batch={batch}"], people.parent, TRUEUP_LEDGER=url)

    return start


@pytest.fixture(scope="module")
def browser_arguments() -> list[str]:
    """Further arguments of the browser; a file of tests may give its own."""
    return []


@pytest.fixture(scope="module")
def browser(browser_arguments: list[str]) -> Iterator[Any]:
    """Run Debian's Chromium, without a window."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no chromium is installed (Debian: chromium)")
    sync_api.expect.set_options(timeout=120_000)  # no test depends on speed
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", *browser_arguments])
        yield running
        running.close()


@dataclass
class InProcess:
    """The app in a thread of the test's own process, and its queue."""

    queue: LabelQueue
    port: int
    tokens: dict[str, str]
    server: uvicorn.Server

    @property
    def address(self) -> str:
        """Where it is reached."""
        return f"http://127.0.0.1:{self.port}"

    def invite(self, who: str, role: Role = "annotator") -> str:
        """Give somebody a link."""
        self.tokens[who] = self.queue.invite(who, role)
        return self.tokens[who]

    def send(self, path: str, body: bytes = b"{}", method: str = "POST", **headers: str) -> tuple[int, str]:
        """Send a request with these headers and no other, and return status and text of the reply."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=800)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, names)
        reply = connection.getresponse()
        said = reply.status, reply.read().decode()
        connection.close()
        return said

    def ask(self, route: str, who: str, status: int = 200, /, **body: Any) -> Any:
        """Return what an address of the API answers somebody."""
        headers = {"Authorization": f"Bearer {self.tokens.get(who, who)}", "Content_Type": "application/json"}
        code, text = self.send(f"/api/{route}", json.dumps(body).encode(), **headers)
        assert code == status, text
        return json.loads(text)


@pytest.fixture
def in_process(tmp_path: Path) -> Iterator[Callable[..., InProcess]]:
    """Serve the app of a batch from a thread; stop it after the test."""
    running = []

    def start(batch: Batch, guidelines: str = "", hosts: Hosts | None = None, **server: Any) -> InProcess:
        queue = LabelQueue(batch, Ledger(f"sqlite:///{tmp_path / 'in-process.db'}", "batch"), guidelines)
        listener = listen("127.0.0.1", 0)
        made = make_server(queue, "labels", guidelines, hosts or Hosts(), **server)
        thread = threading.Thread(target=made.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((made, thread))
        return InProcess(queue, listener.getsockname()[1], {}, made)

    yield start
    for made, thread in running:
        made.should_exit = True
        thread.join(timeout=800)
