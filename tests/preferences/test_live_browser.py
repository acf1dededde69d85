"""A person talks with two real checkpoints in a real browser, and the ledger has what they said and chose."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.preferences.anchors import default_url
from pipeline.preferences.ledger import Ledger

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
SIZES = {"wide": (1280, 800), "phone": (390, 844)}
PICTURES = os.environ.get("TRUEUP_TEST_PICTURES")
"""A folder to leave pictures of the page in, for people to look at."""

RECIPE = """
name: talk
stages:
  labels:
    kind: labels
    models: [{sft}, {dpo}]
    live: {{labels: 40, turns: 4, max_new_tokens: 6, temperature: 1.2}}
    guidelines: Prefer what is polite.
compute: {{threads: 1}}
"""
QUESTION = "which colour has the grass ?"


@pytest.fixture
def talk(tmp_path: Path, chain: Any, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Start the app of the dialogues, whose secret is the same in every run."""
    monkeypatch.delenv("TRUEUP_LEDGER", raising=False)
    recipe = tmp_path / "talk.yaml"
    recipe.write_text(RECIPE.format(sft=chain["sft"].path, dpo=chain["dpo"].path))
    ledger = Ledger(default_url(tmp_path / "store"), "labels")
    ledger.append(lambda known: ("batch", {"salt": "6b7f0f2fd2c64b0b8f4c5d3a91e0c7aa"}))
    ledger.close()

    def start(*more: str, port: str = "0") -> Any:
        return serve(["collect", str(recipe), "labels", "--store", "store", "--port", port, *more], tmp_path)

    return start


class Page:
    """The page of a person, and what went wrong in it."""

    def __init__(self, browser: Any, app: Any, who: str, size: str = "wide", scheme: str = "light") -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" else None)
        self.page.goto(f"{app.address}/#{app.tokens[who]}")
        self.page.wait_for_selector("#controls:not([hidden])")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def read(self, part: str) -> str:
        return str(self.page.inner_text(part))

    def sees(self, part: str, text: str | re.Pattern[str]) -> None:
        sync_api.expect(self.page.locator(part)).to_contain_text(text, timeout=120_000)

    def waits_for(self, part: str) -> None:
        self.page.wait_for_selector(f"{part}:not([hidden])")

    def say(self, text: str) -> None:
        """Say something by keyboard until two answers wait for a choice."""
        for attempt in itertools.count():
            self.page.wait_for_selector("#compose:not([hidden]), #pair:not([hidden]), #message:not(:empty)")
            if self.page.is_visible("#pair"):
                return
            if not self.page.is_visible("#compose"):
                self.press("n")
                self.waits_for("#compose")
            sync_api.expect(self.page.locator("#text")).to_be_focused()
            self.page.keyboard.type(text)
            before = self.page.locator("#dialogue .turn").count()
            self.press("Enter")
            sync_api.expect(self.page.locator("#dialogue .turn").nth(before)).to_be_visible()
            self.page.wait_for_selector("#waiting", state="hidden")
            assert attempt < 20

    def picture(self, name: str) -> None:
        if PICTURES:
            self.page.screenshot(path=Path(PICTURES) / f"{name}.png")


def test_a_person_talks_chooses_undoes_and_goes_on_with_keys_alone(
    browser: Any, talk: Callable[..., Any], tmp_path: Path
) -> None:
    app = talk("--annotators", "ada")
    shown = Page(browser, app, "ada")
    assert "Prefer what is polite." in shown.read("#guidelines")
    shown.say(QUESTION)
    left = shown.read("#left .turn")
    shown.press("1", "1")
    shown.sees("#strength", "clearly better")
    shown.press("Enter")
    shown.sees("#progress", "1 of 40 labels, 1 yours")
    assert left in shown.read("#dialogue")
    shown.say("tell me the colour of the sky please")
    shown.press("3", "3")  # the dialogue goes on with A
    shown.sees("#strength", "the dialogue goes on with A")
    tied = shown.read("#left .turn")
    shown.press("Enter")
    shown.sees("#progress", "2 of 40 labels")
    assert tied in shown.read("#dialogue")
    shown.waits_for("#compose")
    shown.press("Escape", "u")
    shown.sees("#message", "taken back")
    shown.sees("#progress", "1 of 40 labels")
    assert shown.read("#left .turn") == tied
    shown.page.reload()
    shown.waits_for("#pair")
    assert shown.read("#left .turn") == tied and left in shown.read("#dialogue")

    app.process.kill()  # with a choice on its way
    app.process.wait(timeout=800)
    shown.press("2", "Enter")
    shown.sees("#message", "The server cannot be reached. Nothing you said is lost")
    shown.wrong.clear()  # the browser says that nobody listens
    talk(port=app.address.rpartition(":")[2])
    shown.sees("#progress", "2 of 40 labels")
    shown.say(QUESTION)
    shown.press("4", "4", "4", "4")
    shown.sees("#strength", "both answer again")
    bad = shown.read("#left .turn"), shown.read("#right .turn")
    shown.press("Enter")
    shown.sees("#progress", "3 of 40 labels")
    shown.say(QUESTION)
    assert (shown.read("#left .turn"), shown.read("#right .turn")) != bad
    shown.press("1", "Enter")
    shown.sees("#progress", "4 of 40 labels")
    shown.page.wait_for_selector("#compose:not([hidden]), #message:not(:empty)")
    if shown.page.is_visible("#compose"):
        shown.press("Escape")
    shown.press("n")
    sync_api.expect(shown.page.locator("#dialogue .turn")).to_have_count(0, timeout=120_000)
    assert [said for said in shown.wrong if "ERR_CONNECTION_REFUSED" not in said] == []
    shown.context.close()
    events = Ledger(default_url(tmp_path / "store"), "labels").events()
    labels = [event.body for event in events if event.kind == "label"]
    assert [body["verdict"] in ("first", "second") for body in labels] == [True, False, True, False, True]
    assert labels[0]["strength"] == 2 and labels[3]["goes_on"] == "again"
    assert all(body["seconds"] > 0 and len(body["guidelines"]) == 12 for body in labels)
    assert [event.kind for event in events].count("undo") == 1


def test_the_page_fits_can_be_read_and_shows_markup_as_text(browser: Any, talk: Callable[..., Any]) -> None:
    people = {
        "ada": ("wide", "light"),
        "grace": ("wide", "dark"),
        "mary": ("phone", "light"),
        "joan": ("phone", "dark"),
    }
    app = talk("--annotators", ",".join(people))
    for count, (who, (size, scheme)) in enumerate(people.items(), start=1):
        shown = Page(browser, app, who, size, scheme)
        shown.waits_for("#compose")
        shown.picture(f"live-{size}-{scheme}-begin")
        shown.page.fill("#text", "<img src=x onerror=alert(1)> **which colour** has the grass ?")
        shown.context.set_offline(who == "mary")
        shown.page.click("#send")
        if who == "mary":
            shown.sees("#message", "You are offline. Nothing you said is lost")
            shown.wrong.clear()
            shown.context.set_offline(False)
        shown.sees("#dialogue", "<img src=x onerror=alert(1)> which colour has the grass")
        assert shown.page.locator("#dialogue strong").inner_text() == "which colour"
        assert shown.page.locator("#dialogue img").count() == 0
        shown.page.wait_for_selector("#waiting", state="hidden")
        shown.say(QUESTION)
        shown.press("2")
        shown.press("m")
        shown.sees("#dialogue", "<img src=x onerror=alert(1)> **which colour**")
        shown.press("m")
        shown.sees("#dialogue", "<img src=x onerror=alert(1)> which colour has the grass")
        shown.picture(f"live-{size}-{scheme}-choose")
        _can_be_read(shown)
        shown.page.evaluate("document.querySelector('#left .turn').textContent = 'word '.repeat(1500)")
        _can_be_read(shown)
        shown.picture(f"live-{size}-{scheme}-long")
        shown.page.click("#submit")
        shown.sees("#progress", f"{count} of 40 labels, 1 yours")
        shown.page.wait_for_selector("#compose:not([hidden]), #message:not(:empty)")
        shown.picture(f"live-{size}-{scheme}-goes-on")
        assert shown.wrong == []
        shown.context.close()


def _can_be_read(shown: Page) -> None:
    assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    inside = """(name) => { const box = document.querySelector(name).getBoundingClientRect();
      return box.top >= 0 && box.bottom <= innerHeight; }"""
    for name in ("[data-choice=left]", "[data-choice='both good']", "#submit", "#undo", "#new"):
        assert shown.page.evaluate(inside, name), name
    contrast = """() => {
      const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
        .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      const light = (c) => 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2];
      const ground = (e) => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor; if (!c.endsWith(', 0)')) return c; }
        return 'rgb(255, 255, 255)'; };
      const parts = ['#progress', '#left .turn', '.turn.user b', 'button[aria-checked="true"]', '#new', '#strength'];
      return parts.map((s) => {
        const e = document.querySelector(s);
        const [a, b] = [light(rgb(getComputedStyle(e).color)), light(rgb(ground(e)))].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05); }); }"""
    assert min(shown.page.evaluate(contrast)) >= 4.5  # WCAG 2.2, 1.4.3
