"""Who may call which route, from where: every route, with every kind of link, from this app's pages and from others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from pipeline.errors import PipelineError, Problem
from pipeline.preferences.app import make_app
from pipeline.preferences.gate import Hosts, role_of
from pipeline.preferences.items import items_of
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.labels import Batch
from pipeline.preferences.ledger import Ledger, LedgerUnavailable
from pipeline.preferences.page_files import page_files

ITEMS, _ = items_of(
    {
        "prompt": [{"role": "user", "content": f"question {n}"}],
        "chosen": [{"role": "assistant", "content": f"one {n}"}],
        "rejected": [{"role": "assistant", "content": f"other {n}"}],
    }
    for n in range(4)
)
PUBLIC = {"/healthz", *(file.path for file in page_files())}
"""Paths that hold nothing of a batch: whether the app is well, and the files of the package."""


@pytest.fixture
def app(in_process: Callable[..., Any]) -> Any:
    """The app with somebody of every kind."""
    started = in_process(Batch(ITEMS))
    for who in ("annotator", "paused annotator", "revoked annotator"):
        started.invite(who)
    for who in ("lead", "paused lead", "revoked lead"):
        started.invite(who, "lead")
    for who in ("annotator", "lead"):
        started.queue.set_access(f"paused {who}", "paused")
        started.queue.set_access(f"revoked {who}", "revoked")
    return started


def _routes(app: Any) -> list[Any]:
    return [route for route in make_app(app.queue, "labels").routes if isinstance(route, Route)]


def test_every_route_refuses_everybody_it_is_not_for(app: Any) -> None:
    callers = {"": 401, "x" * 22: 401, "x" * 4000: 401, "é" * 22: 401, app.tokens["annotator"][:-1]: 401}
    callers |= {app.tokens[who]: 401 for who in app.tokens if who.startswith("revoked")}
    callers |= {app.tokens[who]: 403 for who in app.tokens if who.startswith("paused")}
    api = [route for route in _routes(app) if route.path.startswith("/api/")]
    assert {role_of(route.path) for route in api} == {"annotator", "lead"} and len(api) > 8
    before = app.queue.ledger.events()
    for route in api:
        other = "annotator" if role_of(route.path) == "lead" else "lead"
        for token, status in {**callers, app.tokens[other]: 403}.items():
            sent = {"Authorization": f"Bearer {token}", "Content_Type": "application/json"}
            code, text = app.send(route.path, **sent)
            # After twenty wrong links from an address, the next are not even looked up.
            assert code == status or (status, code) == (401, 429), (route.path, token, text)
        code, _ = app.send(route.path, Content_Type="application/json")  # no token at all
        assert code in (401, 429)
        assert app.send(route.path, method="GET")[0] == 405
    assert app.queue.ledger.events() == before
    for route in _routes(app):
        assert route.path in PUBLIC or role_of(route.path), f"{route.path}: a page for everybody goes into PUBLIC"


def test_everybody_is_let_in_where_they_belong(app: Any) -> None:
    assert app.ask("hello", "annotator")["annotator"] == "annotator"
    assert app.ask("lead/hello", "lead")["lead"] == "lead"
    assert "opens /lead" in app.ask("hello", "lead", 403)["error"]
    assert "for the lead" in app.ask("lead/hello", "annotator", 403)["error"]


def test_a_lead_looks_after_annotators_and_after_no_lead(app: Any) -> None:
    told = app.ask("lead/invite", "lead", name=" grace ")
    app.tokens["grace"] = told["token"]
    assert told["name"] == "grace" and app.ask("hello", "grace")["annotator"] == "grace"
    assert "has a link already" in app.ask("lead/invite", "lead", 409, name="grace")["error"]
    old = app.tokens["grace"]
    app.tokens["grace"] = app.ask("lead/invite", "lead", name="grace", replaces=True)["token"]
    app.ask("hello", old, 401)
    for access, status in (("paused", 403), ("active", 200), ("revoked", 401)):
        app.ask("lead/access", "lead", name="grace", access=access)
        app.ask("hello", "grace", status)
    assert "is a lead" in app.ask("lead/access", "lead", 409, name="paused lead", access="active")["error"]
    assert "is a lead already" in app.ask("lead/invite", "lead", 409, name="lead", replaces=True)["error"]
    assert "nobody here is called" in app.ask("lead/access", "lead", 409, name="nobody", access="paused")["error"]
    for name in (" ", "a\nb", "\x1b[31m"):
        assert "the name" in app.ask("lead/invite", "lead", 409, name=name)["error"]
    app.ask("lead/close", "lead", closed=True)
    assert app.ask("next", "annotator")["progress"]["closed"]
    app.ask("lead/close", "lead", closed=False)
    assert app.ask("next", "annotator")["items"]


def test_a_form_of_another_site_is_refused(app: Any) -> None:
    """A form sends one of three types of content and no header of its choice; a script names its origin."""
    token = app.tokens["annotator"]
    item = app.ask("next", "annotator")["items"][0]["item"]
    label = json.dumps({"item": item, "choice": "left"}).encode()
    forms = ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain")
    before = app.queue.ledger.events()
    for content in forms:
        assert app.send("/api/label", label, Content_Type=content)[0] == 401
        assert app.send("/api/label", label, Content_Type=content, Cookie=f"token={token}")[0] == 401
        assert app.send(f"/api/label?token={token}", label, Content_Type=content)[0] == 401
        # With the token, too: what is no JSON comes from no page of ours.
        assert app.send("/api/label", label, Content_Type=content, Authorization=f"Bearer {token}")[0] == 415
    sent = {"Content_Type": "application/json", "Authorization": f"Bearer {token}"}
    for origin in ("https://evil.example", "null", f"{app.address}.evil.example", "http://127.0.0.1:1", ""):
        code, text = app.send("/api/label", label, Origin=origin, **sent)
        assert code == 403 and "another site" in text, origin
    assert app.queue.ledger.events() == before
    assert app.send("/api/label", label, Origin=app.address, **sent)[0] == 200


def test_a_request_for_another_host_is_refused(app: Any) -> None:
    """A site that lets its name resolve to this machine gets no answer, not even a page."""
    hosts = ("evil.example", f"evil.example:{app.port}", "127.0.0.1.evil.example", "", "[", "10.0.0.1", "0.0.0.0")
    for path in ("/", "/app.js", "/healthz", "/api/hello"):
        for host in hosts:
            code, text = app.send(path, b"", "GET", Host=host)
            assert code == 400 and "Traceback" not in text, (path, host)
    for host in ("localhost", f"LOCALHOST:{app.port}", "127.0.0.1", f"[::1]:{app.port}"):
        assert app.send("/", b"", "GET", Host=host)[0] == 200


HOSTS = {
    "this machine": (("127.0.0.1", None), {"localhost:8700": True, "192.168.1.5": False, "a.example": False}),
    "a network address": (("192.168.1.5", None), {"192.168.1.5:8700": True, "192.168.1.6": False}),
    "all addresses": (("0.0.0.0", None), {"192.168.1.5:8700": True, "[fe80::1]": True, "a.example": False}),
    "all of IPv6": (("::", None), {"192.168.1.5:8700": True, "a.example": False}),
    "a proxy": (("0.0.0.0", "https://A.example/labels"), {"a.example": True, "b.example": False, "xa.example": False}),
}


@pytest.mark.parametrize("case", HOSTS)
def test_the_names_of_the_app_follow_from_where_it_listens(case: str) -> None:
    given, names = HOSTS[case]
    hosts = Hosts.of(*given)
    assert {name: hosts.has(name) for name in names} == names


def test_a_proxy_that_changes_the_host_passes_its_own_pages() -> None:
    hosts = Hosts.of("127.0.0.1", "https://labels.example.org/")
    assert hosts.is_own("https://labels.example.org", "127.0.0.1:8700")
    assert not hosts.is_own("https://labels.example.com", "127.0.0.1:8700")
    assert not Hosts().is_own("", "127.0.0.1")


def test_a_name_has_one_role_and_leads_are_not_counted_on_for_labels(tmp_path: Path) -> None:
    queue = LabelQueue(Batch(ITEMS, per_item=2), Ledger(f"sqlite:///{tmp_path / 'l.db'}", "b"))
    queue.invite("ada")
    token = queue.invite("mary", "lead")
    again = LabelQueue(queue.batch, queue.ledger)
    assert again.identify(token) == ("mary", "active", "lead")
    with pytest.raises(PipelineError, match="mary is a lead already; expected another name for an annotator"):
        queue.invite("mary")
    with pytest.raises(PipelineError, match="ada is an annotator already"):
        queue.invite("ada", "lead")
    assert queue.active() == 1 and len(queue.stuck()) == len(ITEMS)
    queue.set_access("mary", "paused")
    assert again.identify(token) == ("mary", "paused", "lead")


@pytest.mark.slow
def test_the_commands_make_leads(open_app: Callable[..., Any], people: Path, call: Any, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'l.db'}"
    app = open_app("ada", url=url, more=("--lead", "mary"))
    assert app.ask("lead/hello", "mary")["lead"] == "mary"
    line = ("labels", "people", people, "labels", "--ledger", url, "--set", f"stages.labels.batch={tmp_path.name}")
    said = call(*line, "--add", "joan", "--lead", cwd=tmp_path).stdout
    assert "joan: http://127.0.0.1:8700/lead#" in said
    assert "ada (active)" in said and "joan (lead, active)" in said and "mary (lead, active)" in said
    app.tokens["joan"] = said.partition("#")[2].split()[0]
    assert app.ask("lead/hello", "joan")["lead"] == "joan"
    both = call("collect", people, "labels", "--annotators", "ada", "--lead", "ada", "--port", "0", cwd=tmp_path)
    assert both.returncode == 2 and "ada" in both.stderr and len(both.stderr.splitlines()) == 1
    alone = call(*line, "--lead", cwd=tmp_path)
    assert alone.returncode == 2 and "--lead without --add" in alone.stderr


def test_a_port_that_the_scheme_has_anyway_is_no_other_origin() -> None:
    hosts = Hosts.of("127.0.0.1", "https://labels.example.org:443")
    assert hosts.is_own("https://labels.example.org", "127.0.0.1:8700")
    assert not hosts.is_own("https://labels.example.org:444", "127.0.0.1:8700") and not hosts.is_own("", "x")


def test_a_ledger_that_is_out_of_reach_is_no_answer_of_the_person(in_process: Callable[..., Any]) -> None:
    """The page sends it again; and the reply does not say where the ledger is."""
    started = in_process(Batch(ITEMS))
    started.invite("ada")

    def unavailable(*_: Any, **__: Any) -> Any:
        raise LedgerUnavailable(Problem("the ledger postgresql://user@secret/labels cannot be used"))

    started.queue.ledger.events = unavailable
    told = started.ask("next", "ada", 503)
    assert "secret" not in told["error"] and "again" in told["error"]


def test_names_that_look_equal_are_one_and_odd_ones_are_refused(people: Path, call: Any, tmp_path: Path) -> None:
    start = ("labels", "people", people, "labels", "--ledger", f"sqlite:///{tmp_path / 'l.db'}")
    told = call(*start, "--add", " Andr\u00e9", "--add", "Andre\u0301 ", cwd=people.parent)
    assert (
        told.returncode == 0 and told.stdout.count("#") == 1 and told.stdout.splitlines()[-1] == "Andr\u00e9 (active)"
    )
    assert "paused" in call(*start, "--pause", "Andre\u0301", cwd=people.parent).stdout
    for name in ("ada,grace", "a\u202eb", "a\u200bb", "x" * 65, " ", "a\tb"):
        assert call(*start, "--add", name, cwd=people.parent).returncode == 2
    for address in ("junk", "ftp://host", "http://", "http://host/#x", "http://ho st", "http://host:port"):
        refused = call(*start, "--add", "ada", "--url", address, cwd=people.parent)
        assert refused.returncode == 2 and "--url" in refused.stderr, address
    assert "ada" not in call(*start, cwd=people.parent).stdout
