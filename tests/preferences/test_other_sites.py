"""Pages of other sites, in a real browser: what they send to the app is refused; what it answers they cannot read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.preferences.items import items_of
from pipeline.preferences.labels import Batch

ITEMS, _ = items_of(
    {
        "prompt": [{"role": "user", "content": "question"}],
        "chosen": [{"role": "assistant", "content": "one"}],
        "rejected": [{"role": "assistant", "content": "other"}],
    }
    for _ in range(1)
)
FORM = """<form method=post enctype="text/plain" action="{action}"><input name='{name}' value='"}}'></form>
<script>document.forms[0].submit()</script>"""
SCRIPT = """async ([url, token, body]) => {
  try {
    const headers = { 'Content-Type': 'application/json', Authorization: `Bearer ${token}` };
    return (await fetch(url, { method: 'POST', headers, body })).status;
  } catch (error) { return String(error); } }"""


@pytest.fixture(scope="module")
def browser_arguments() -> list[str]:
    return ["--host-resolver-rules=MAP evil.example 127.0.0.1"]  # the attacker's own name server says so


def _page(browser: Any, html: str) -> Any:
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.route("http://evil.example/", lambda route: route.fulfill(body=html, content_type="text/html"))
    return page


def test_a_page_of_another_site_labels_nothing_and_reads_nothing(browser: Any, in_process: Callable[..., Any]) -> None:
    app = in_process(Batch(ITEMS))
    app.invite("ada")
    item = app.ask("next", "ada")["items"][0]["item"]
    label = {"item": item, "choice": "left"}
    before = app.queue.ledger.events()
    name = json.dumps({**label, "request": ""})[:-2]  # a form of plain text is this, an equals sign, and the value
    form = _page(browser, FORM.format(action=f"{app.address}/api/label", name=name))
    with form.expect_response("**/api/label") as answered:
        form.goto("http://evil.example/")
    assert answered.value.status == 403  # the origin is told; without it there is still no token
    script = _page(browser, "<p>evil</p>")
    script.goto("http://evil.example/")
    body = json.dumps(label)
    read = script.evaluate(SCRIPT, [f"{app.address}/api/label", app.tokens["ada"], body])
    assert "Failed to fetch" in str(read)  # also with a token that leaked
    assert app.queue.ledger.events() == before


def test_a_name_that_resolves_to_this_machine_shows_no_page(browser: Any, in_process: Callable[..., Any]) -> None:
    app = in_process(Batch(ITEMS))
    page = browser.new_page()
    reply = page.goto(f"http://evil.example:{app.port}/")
    assert reply.status == 400 and "another name" in page.inner_text("body")
    page.goto(f"http://localhost:{app.port}/")
    assert page.is_visible("#title")
