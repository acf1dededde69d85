"""What somebody may send who means harm: it is refused, runs nowhere, costs little, and keeps nobody from labelling."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.preferences.connections import ConnectionLimits
from pipeline.preferences.gate import Hosts
from pipeline.preferences.items import items_of
from pipeline.preferences.labels import Batch
from pipeline.preferences.ledger import Ledger

PAGE = Path(__file__).resolve().parents[2] / "pipeline" / "preferences" / "page"
SHORT = ConnectionLimits(idle_s=0.3, body_s=0.3, response_s=800, most=20)
MARKUP = (
    "<script>window.hacked = 1</script>"
    "<img src=x onerror='window.hacked = 2'><svg onload='window.hacked = 3'>"
    "<a href='javascript:window.hacked=4'>x</a><iframe srcdoc='<script>top.hacked=5</script>'></iframe>"
    "[x](javascript:window.hacked=6) ![x](https://evil.example/x.png) </script>`${window.hacked=7}`"
)
SQL = ("'; DROP TABLE trueup_events; --", '" OR ""="', "1) OR 1=1 --", "%' UNION SELECT * FROM trueup_events --", "\\'")


def _items(count: int, more: str = "") -> list[Any]:
    rows = (
        {
            "prompt": [{"role": "user", "content": f"question {n} {more}"}],
            "chosen": [{"role": "assistant", "content": f"one {n} {more}"}],
            "rejected": [{"role": "assistant", "content": f"other {n} {more}"}],
        }
        for n in range(count)
    )
    return items_of(rows)[0]


def _app(in_process: Callable[..., Any], **how: Any) -> Any:
    app = in_process(Batch(_items(6)), **how)
    app.invite("ada")
    app.invite("lin", "lead")
    return app


def _head(app: Any, path: str, length: int, token: str = "") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{app.port}", "Content-Type: application/json"]
    lines += [f"Authorization: Bearer {token}"] if token else []
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def _drip(app: Any, start: bytes, byte: bytes) -> None:
    """Send a byte now and then until the server ends the connection."""
    with socket.create_connection(("127.0.0.1", app.port), timeout=800) as slow, contextlib.suppress(OSError):
        slow.sendall(start)
        slow.settimeout(0.02)
        while True:
            slow.sendall(byte)
            with contextlib.suppress(TimeoutError):
                if not slow.recv(65536):
                    return


SLOW = {
    "nothing at all": (b"", b""),
    "headers without an end": (b"GET / HTTP/1.1\r\n", b"X-A: b\r\n"),
    "one header without an end": (b"GET / HTTP/1.1\r\nHost: ", b"a"),
    "a body without an end": (None, b" "),
}


@pytest.mark.parametrize("case", SLOW)
def test_who_sends_slowly_is_cut_off_and_keeps_nobody_waiting(in_process: Callable[..., Any], case: str) -> None:
    app = _app(in_process, limits=SHORT)
    start, byte = SLOW[case]
    if start is None:
        start = _head(app, "/api/label", 60_000, app.tokens["ada"])
    slow = [threading.Thread(target=_drip, args=(app, start, byte)) for _ in range(10)]
    for one in slow:
        one.start()
    while True:  # meanwhile; on a busy machine this test itself may be too slow for its limits
        with contextlib.suppress(ConnectionError):
            assert app.ask("hello", "ada")["annotator"] == "ada"
            break
    for one in slow:
        one.join(timeout=800)
        assert not one.is_alive()


def test_a_body_that_stops_half_way_writes_nothing(in_process: Callable[..., Any]) -> None:
    app = _app(in_process, limits=SHORT)
    before = app.queue.ledger.events()
    for token in (app.tokens["ada"], "wrong"):
        with socket.create_connection(("127.0.0.1", app.port), timeout=800) as stopped:
            stopped.sendall(_head(app, "/api/undo", 100, token) + b"{")
            with contextlib.suppress(ConnectionError):
                while stopped.recv(65536):
                    pass
    assert app.queue.ledger.events() == before


def test_more_connections_than_there_may_be_close_those_that_say_nothing(in_process: Callable[..., Any]) -> None:
    app = _app(in_process, limits=ConnectionLimits(idle_s=800, most=20))
    with contextlib.ExitStack() as opened:
        for _ in range(120):
            opened.enter_context(socket.create_connection(("127.0.0.1", app.port), timeout=800))
        for _ in range(3):
            assert app.ask("hello", "ada")["annotator"] == "ada"
        assert len(app.server.server_state.connections) <= 21


def _peak_mib(pid: int) -> float:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", text).group(1)) / 1024  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc here")
def test_fifty_megabytes_are_refused_without_being_kept(open_app: Callable[..., Any], tmp_path: Path) -> None:
    app = open_app("ada", url=f"sqlite:///{tmp_path / 'l.db'}", more=("--lead", "lin"))
    app.port = int(app.address.rpartition(":")[2])
    app.ask("hello", "ada")
    before = _peak_mib(app.process.pid)
    part, size = b"x" * 65536, 50 * 1024 * 1024
    paths = {"/api/label": app.tokens["ada"], "/api/skip": "wrong", "/api/lead/drop": app.tokens["lin"], "/": ""}
    for path, token in paths.items():
        sent, said = 0, b""
        with socket.create_connection(("127.0.0.1", app.port), timeout=800) as sender:
            try:
                sender.sendall(_head(app, path, size, token))
                while sent < size:
                    sender.sendall(part)
                    sent += len(part)
            except OSError:  # the server has closed the connection
                pass
            with contextlib.suppress(OSError):
                said = sender.recv(100)
        assert sent < size, path
        assert not said or said.split()[1] in (b"413", b"401", b"405"), said
    assert _peak_mib(app.process.pid) - before < 30
    assert app.ask("hello", "ada")["annotator"] == "ada"
    kinds = [event.kind for event in Ledger(f"sqlite:///{tmp_path / 'l.db'}", tmp_path.name).events()]
    assert set(kinds) <= {"batch", "guidelines", "annotator"}


@pytest.mark.slow
def test_ten_thousand_wrong_links_are_refused_and_who_has_one_is_served(in_process: Callable[..., Any]) -> None:
    app = _app(in_process)
    reads = []
    real = app.queue.ledger.events
    app.queue.ledger.events = lambda *after: (reads.append(after), real(*after))[1]
    codes: list[int] = []
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", app.port), timeout=800) as guessing:
        for first in range(0, 10_000, 50):
            tokens = [f"guess-{first + n:017d}" for n in range(50)]
            guessing.sendall(b"".join(_head(app, "/api/hello", 2, token) + b"{}" for token in tokens))
            said = b""
            while said.count(b"HTTP/1.1 ") < 50 or not said.endswith(b"}"):
                said += guessing.recv(65536)
            codes += [int(code) for code in re.findall(rb"HTTP/1\.1 (\d+)", said)]
            if first % 1000 == 0:
                assert app.ask("hello", "ada")["annotator"] == "ada"  # from the same address
    assert len(codes) == 10_000
    assert set(codes) == {401, 429} and codes[:20] == [401] * 20
    # Twenty, and one more in two seconds, were looked up in the ledger; beside them, what ada asked.
    assert len(reads) <= 20 + 1 + (time.monotonic() - started) / 2 + 10
    app.invite("grace")
    assert app.ask("hello", "grace")["annotator"] == "grace"  # a new link, too


def test_who_guesses_chooses_no_address_of_their_own(in_process: Callable[..., Any]) -> None:
    """Behind a proxy its header says who asks; without one, whoever sends it would never be slowed down."""
    behind = Hosts.of("127.0.0.1", "https://labels.example.org")
    for hosts, last in ((Hosts(), 429), (behind, 401)):
        app = _app(in_process, hosts=hosts)
        for n in range(40):
            guess = {"Authorization": f"Bearer guess-{n}", "X_Forwarded_For": f"192.0.2.{n}"}
            code, _ = app.send("/api/hello", Content_Type="application/json", **guess)
        assert code == last


PATHS = (
    "/lead/",
    "/app.js/",
    "//lead/",
    "/../../../../etc/passwd",
    "/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/..%2f..%2f..%2fetc%2fpasswd",
    "/..\\..\\gate.py",
    "//etc/passwd",
    "/app.js/../../gate.py",
    "/lead/../gate.py",
    "/page/index.html",
    "/gate.py",
    "/lead.js%00.py",
    "/lead.html",
    "/.labels/ledger.db",
    "/api/../gate.py",
    "/api/lead/..;/hello",
    "/vendor/../../gate.py",
    "/vendor/%2e%2e/%2e%2e/gate.py",
    "http://evil.example/",
)


def test_no_path_leads_to_another_file(in_process: Callable[..., Any]) -> None:
    app = _app(in_process)
    for path in PATHS:
        code, text = app.send(path, b"", "GET")
        assert code in (400, 404, 405), (path, code)
        assert "root:" not in text and "import annotations" not in text and "SQLite" not in text


def test_what_looks_like_sql_is_a_text(in_process: Callable[..., Any]) -> None:
    app = _app(in_process)
    for text in SQL:
        app.ask("hello", text, 401)
        app.tokens[text] = app.ask("lead/invite", "lin", name=text)["token"]
        assert app.ask("hello", text)["annotator"] == text
        item = app.ask("next", text)["items"][0]["item"]
        app.ask("skip", text, item=item, reason=text)
        app.ask("label", "ada", 409, item=text, choice="left")
        app.ask("label", "ada", 422, item=item, choice=text)
        app.ask("lead/items", "lin", 422, name=text)
        app.ask("lead/access", "lin", name=text, access="paused")
        app.ask("lead/drop", "lin", 409, item=text, reason=text)
    assert set(SQL) <= app.queue.people().keys()
    reasons = [event.body["reason"] for event in app.queue.ledger.events() if event.kind == "skip"]
    assert reasons == list(SQL) and app.queue.ledger.problems() == []


def test_no_log_contains_a_token(
    in_process: Callable[..., Any], caplog: pytest.LogCaptureFixture, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = _app(in_process)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "trueup.collect", "sqlalchemy.engine"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
        caplog.set_level(logging.DEBUG, logger=name)
    caplog.set_level(logging.DEBUG)
    told = app.ask("lead/invite", "lin", name="grace")["token"]
    app.ask("hello", "ada")
    app.ask("hello", "a-wrong-token-of-somebody", 401)
    monkeypatch.setattr(app.queue, "next", lambda *a, **k: 1 / 0)
    assert "nothing you said is lost" in app.ask("next", "ada", 500)["error"]
    with socket.create_connection(("127.0.0.1", app.port), timeout=800) as odd:
        odd.sendall(f"POST /api/hello HTTP/9\r\nAuthorization: Bearer {app.tokens['ada']}\r\n\r\n".encode())
        odd.recv(1000)
    said = caplog.text + "".join(capfd.readouterr())
    assert "ZeroDivisionError" in said  # the log has what broke
    for token in (*app.tokens.values(), told, "a-wrong-token-of-somebody"):
        assert token not in said
    assert told not in json.dumps([event.body for event in app.queue.ledger.events()])


def test_every_page_forbids_foreign_scripts_and_has_none_inside(in_process: Callable[..., Any]) -> None:
    app = _app(in_process)
    for path in (
        "/",
        "/lead",
        "/app.js",
        "/style.css",
        "/lead.js",
        "/lead.css",
        "/healthz",
        "/nothing",
        "/lead/",
        "/api/hello",
    ):
        connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=800)
        connection.request("GET", path)
        headers = dict(connection.getresponse().getheaders())
        connection.close()
        policy = headers.get("content-security-policy", headers.get("Content-Security-Policy", ""))
        if path == "/api/hello":
            continue  # only POST is there; what it answers is JSON
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy, path
        assert "frame-ancestors 'none'" in policy and "base-uri 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers and not any(name.startswith("access-control") for name in headers)
    for file in PAGE.glob("*.html"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=|javascript:|https?://", text), file
    for file in PAGE.glob("*.js"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(
            r"\beval\(|new Function|document\.write|insertAdjacentHTML|localStorage|document\.cookie", text
        ), file


def test_scripts_in_what_people_wrote_never_run(browser: Any, in_process: Callable[..., Any]) -> None:
    """In prompts, answers, guidelines, names and reasons, on both pages; and no page asks another server."""
    app = in_process(Batch(_items(3, MARKUP), per_item=2), MARKUP)
    name = MARKUP[:64]
    app.invite(name)
    app.invite("ada")
    app.invite("lin", "lead")
    item = app.ask("next", name)["items"][0]["item"]
    app.ask("flag", name, item=item, reason=MARKUP)
    for who, choice in ((name, "left"), ("ada", "left"), ("ada", "tie")):
        app.ask("label", who, item=app.ask("next", who)["items"][0]["item"], choice=choice)
    asked: list[str] = []
    for path, ready in ((f"#{app.tokens[name]}", "#work"), (f"lead#{app.tokens['lin']}", "#item")):
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{app.address}/{path}")
        page.wait_for_selector(f"{ready}:not([hidden])")
        if path.startswith("lead"):
            for tab in page.locator("[role=tab]").all():
                tab.click()
                page.wait_for_timeout(100)
        assert page.evaluate("window.hacked ?? null") is None
        assert page.locator("iframe, img[onerror], svg[onload], a[href^='javascript:']").count() == 0
        page.close()
    assert {url.split("/")[2] for url in asked if not url.startswith("data:")} == {f"127.0.0.1:{app.port}"}
