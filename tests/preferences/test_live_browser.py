"""A person talks with two real checkpoints in a real browser, and the ledger has what they said and chose."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import SIZES, sync_api
from browsing import Page as Browsing

from pipeline.preferences.anchors import default_url
from pipeline.preferences.ledger import Ledger

RECIPE = """
name: talk
stages:
  labels:
    kind: labels
    models: [{sft}, {dpo}]
    live: {{labels: 40, turns: 4, max_new_tokens: 6, temperature: 1.2}}
    guidelines: Prefer what is polite.
    dimensions: [{{name: kind, rated: 3}}]
compute: {{threads: 1}}
"""
QUESTION = "which colour has the grass ?"
MARKUP = "<img src=x onerror=alert(1)> **which colour** has the grass ?"


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


class Page(Browsing):
    """The page of a person, opened."""

    def __init__(self, browser: Any, app: Any, who: str, size: str = "wide", scheme: str = "light") -> None:
        super().__init__(browser, size, scheme)
        self.page.goto(f"{app.address}/#{app.tokens[who]}")
        self.page.wait_for_selector("#controls:not([hidden])")

    def sees(self, part: str, text: str | re.Pattern[str]) -> None:
        sync_api.expect(self.page.locator(part)).to_contain_text(text, timeout=120_000)

    def waits_for(self, part: str) -> None:
        self.page.wait_for_selector(f"{part}:not([hidden])")

    def waits_for_answers(self) -> None:
        sync_api.expect(self.page.locator("#waiting")).not_to_contain_text("Both are answering")

    def say(self, text: str) -> None:
        """Say something by keyboard until two answers wait for a choice."""
        for attempt in itertools.count():
            self.page.wait_for_selector("#compose:not([hidden]), #pair:not([hidden]), #message:not(:empty)")
            if self.page.is_visible("#pair"):
                return
            if not self.page.is_visible("#compose"):
                self.press("n")
                self.waits_for("#compose")
            sync_api.expect(self.page.locator("#said")).to_be_focused()
            self.page.keyboard.type(text)
            before = self.page.locator("#dialogue .turn").count()
            self.press("Enter")
            sync_api.expect(self.page.locator("#dialogue .turn").nth(before)).to_be_visible()
            self.waits_for_answers()
            assert attempt < 20


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
    shown.sees("#progress", "1 of 40 labels; you answered 1")
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
        shown.page.fill("#said", MARKUP)
        shown.context.set_offline(who == "mary")
        shown.page.click("#send")
        if who == "mary":
            shown.sees("#message", "You are offline. Nothing you said is lost")
            shown.wrong.clear()
            shown.context.set_offline(False)
        shown.sees("#dialogue", "<img src=x onerror=alert(1)> which colour has the grass")
        assert shown.page.locator("#dialogue strong").inner_text() == "which colour"
        assert shown.page.locator("#dialogue img").count() == 0
        shown.waits_for_answers()
        shown.say(MARKUP)  # again, where a dialogue ended without two answers to compare
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
        shown.sees("#progress", f"{count} of 40 labels; you answered 1")
        shown.page.wait_for_selector("#compose:not([hidden]), #message:not(:empty)")
        shown.picture(f"live-{size}-{scheme}-goes-on")
        assert shown.wrong == []
        shown.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_said_of_the_answers_by_keys_alone_reaches_the_ledger_and_axe_has_nothing_to_say(
    browser: Any, talk: Callable[..., Any], tmp_path: Path, size: str, scheme: str
) -> None:
    app = talk("--annotators", "ada")
    shown = Page(browser, app, "ada", size, scheme)
    shown.load_axe()
    shown.page.reload()
    shown.waits_for("#compose")
    wrong: dict[str, list[str]] = {}

    def look(state: str) -> None:
        shown.picture(f"live-{state}-{size}-{scheme}")
        if told := shown.violations():
            wrong[state] = told

    look("begin")
    shown.say(QUESTION)
    look("choose")
    shown.press("e")  # nothing is chosen yet
    shown.sees("#message", "Choose A or B first")
    shown.press("1", "r", "3", "1", "c")
    shown.page.keyboard.type("no greeting")
    look("comment")
    shown.press("Control+Enter", "e", "Control+a")
    shown.page.keyboard.type("as green as I say it is")
    look("edit")
    shown.press("Control+Enter")
    shown.sees("#left .turn", "as green as I say it is")
    shown.sees("#note", "Comment: no greeting")
    shown.press("d")
    assert shown.page.locator("#pair mark").count() > 0
    look("said")
    shown.press("d", "Enter")
    shown.sees("#progress", "1 of 40 labels; you answered 1")
    shown.sees("#dialogue .turn:last-child", "as green as I say it is")
    shown.say(QUESTION)
    shown.press("1", "s", "2")
    assert shown.page.is_visible("#why")
    look("skip")
    shown.press("Enter")
    shown.sees("#message", "Skipped")
    shown.sees("#progress", "1 of 40 labels; you answered 2")
    shown.say(QUESTION)
    before = shown.read("#left .turn"), shown.read("#right .turn")
    shown.press("f", "Enter")  # a kind is needed
    assert shown.page.is_visible("#why")
    shown.press("3")
    look("flag")
    shown.press("Enter")
    shown.sees("#progress", "1 of 40 labels; you answered 3")
    shown.waits_for_answers()
    assert before[0] not in shown.read("#dialogue .turn:last-child")
    if shown.page.is_visible("#compose"):
        shown.press("Escape")
    shown.press("u")
    shown.sees("#message", "taken back")
    assert (shown.read("#left .turn"), shown.read("#right .turn")) == before
    look("undone")
    assert wrong == {}, json.dumps(wrong, indent=1)
    assert shown.wrong == []
    shown.context.close()
    events = Ledger(default_url(tmp_path / "store"), "labels").events()
    label, skip, flag = (
        next(event.body for event in events if event.kind == kind) for kind in ("label", "skip", "flag")
    )
    assert (label["edit"], label["comment"], skip["reason"], flag["flag"]) == (
        "as green as I say it is", "no greeting", "I cannot decide", "broken"
    )  # fmt: skip
    place, other = ("second", "first") if label["swapped"] else ("first", "second")
    assert label["ratings"] == {"kind": {place: 3, other: 1}} and label["verdict"] == place


def test_what_is_not_saved_outlives_a_reload_a_pause_and_a_killed_server(
    browser: Any, talk: Callable[..., Any]
) -> None:
    app = talk("--annotators", "ada", "--lead", "lin")
    shown = Page(browser, app, "ada")
    shown.waits_for("#compose")
    shown.page.keyboard.type("half a mess")
    shown.page.reload()
    sync_api.expect(shown.page.locator("#said")).to_have_value("half a mess")
    shown.page.fill("#said", "")
    shown.say(QUESTION)
    shown.press("2", "2", "c")
    shown.page.keyboard.type("kept")
    shown.press("Control+Enter")
    app.ask("lead/access", "lin", name="ada", access="paused")
    shown.press("Enter")
    shown.sees("#message", "is paused: ask who gave you the link. What you chose and wrote is kept in this tab")
    app.ask("lead/access", "lin", name="ada", access="active")
    shown.page.reload()
    shown.sees("#strength", "B is clearly better")
    shown.sees("#note", "Comment: kept")
    shown.context.set_offline(True)
    shown.press("Enter")
    shown.sees("#message", "You are offline. Nothing you said is lost")
    shown.press("1")  # what is on its way is not changed
    shown.sees("#strength", "B is clearly better")
    app.process.kill()
    app.process.wait(timeout=800)
    shown.context.set_offline(False)
    shown.sees("#message", "The server cannot be reached")
    talk(port=app.address.rpartition(":")[2])
    shown.sees("#progress", "1 of 40 labels; you answered 1")
    app.ask("lead/access", "lin", name="ada", access="revoked")
    shown.page.wait_for_selector("#compose:not([hidden]), #message:not(:empty)")
    shown.page.click("#new")
    shown.sees("#message", "This link is not valid any more: ask for a new one")
    shown.context.close()


def test_keys_and_the_focus_do_what_they_say(browser: Any, talk: Callable[..., Any]) -> None:
    app = talk("--annotators", "ada")
    shown = Page(browser, app, "ada")
    shown.say(QUESTION)
    shown.press("ArrowRight")
    shown.sees("#strength", "B is slightly better")
    shown.page.focus("#raw")
    shown.press("Enter")  # presses this button, and saves nothing
    assert shown.page.get_attribute("#raw", "aria-pressed") == "true"
    shown.sees("#progress", "0 of 40 labels")
    shown.page.reload()
    shown.waits_for("#pair")
    shown.press("1")
    names = []
    where = """() => { const e = document.activeElement; const box = e.getBoundingClientRect();
      const bar = document.getElementById('controls').getBoundingClientRect().top;
      const name = e.id || e.dataset.choice || e.closest('[id]')?.id || e.tagName;
      return [name, e === document.body || e.closest('#controls') !== null || box.bottom <= bar + 1]; }"""
    for _ in range(40):
        shown.press("Tab")
        name, is_seen = shown.page.evaluate(where)
        assert is_seen, name
        if name == "BODY" or (names and name == names[0]):
            break
        if not names or names[-1] != name:
            names.append(name)
    order = ["raw", "compared", "left", "right", "dimensions"]  # it begins where the answers are
    order += ["left", "right", "submit", "skip", "flag", "comment", "undo"]  # the choices, then the actions
    assert [name for name in names if name in order] == order and names[-1] == "new"
    assert shown.page.get_attribute("#said", "dir") == "auto"
    for role in ("banner", "main", "contentinfo"):
        assert shown.page.get_by_role(role).count() == 1, role
    shown.page.evaluate("document.querySelector('#left .turn').textContent = 'word '.repeat(3000)")
    for place in (0, 1500, 10**6):
        shown.page.evaluate(f"scrollTo(0, {place})")
        bar = shown.page.locator("#controls").bounding_box()
        assert bar["y"] + bar["height"] <= 801 and bar["height"] < 0.3 * 800
    shown.context.close()


def test_a_lead_sees_how_dialogues_go_and_what_has_no_meaning_there(browser: Any, talk: Callable[..., Any]) -> None:
    app = talk("--annotators", "ada", "--lead", "lin")
    ada = Page(browser, app, "ada")
    for key in ("1", "s"):
        ada.say(QUESTION)
        ada.press(key, "Enter")
        ada.sees("#progress", "1 of 40 labels; you answered 1" if key == "1" else "1 of 40 labels; you answered 2")
    ada.context.close()
    lead = Browsing(browser)
    lead.load_axe()
    expect = sync_api.expect
    lead.page.goto(f"{app.address}/lead#{app.tokens['lin']}")
    lead.page.wait_for_selector("#item:not([hidden])")
    expect(lead.page.locator("#progress")).to_have_text("1 of 40 labels")
    expect(lead.page.locator("#figures")).to_contain_text("nobody else sees a person's dialogue")
    expect(lead.page.locator("#labels")).to_contain_text("ada skipped it")
    expect(lead.page.locator("#no-verdict")).to_be_visible()
    assert not lead.page.is_visible("#choices") and not lead.page.is_visible("#save")
    assert lead.read("#people thead").split() == ["Person", "Labels", "Per", "hour", "Median", "Fast", "Left", "Link"]
    assert lead.violations() == []
    lead.page.click("[data-list=chosen]")
    expect(lead.page.locator("#labels")).to_contain_text("is slightly better")
    lead.press("1")  # no verdict
    lead.page.click("#drop")
    lead.page.click("#sure-ok")
    expect(lead.page.locator("#message")).to_have_text("The choice is dropped.")
    expect(lead.page.locator("#progress")).to_have_text("0 of 40 labels")
    lead.page.click("#people button:has-text('Pause')")
    expect(lead.page.locator("#message")).to_have_text("ada is paused.")
    lead.page.click("#close")
    lead.page.click("#sure-ok")
    expect(lead.page.locator("#progress")).to_contain_text("closed")
    lead.picture("live-lead", full=True)
    assert lead.wrong == []
    lead.context.close()


def _can_be_read(shown: Page) -> None:
    assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    inside = """(name) => { const box = document.querySelector(name).getBoundingClientRect();
      return box.top >= 0 && box.bottom <= innerHeight; }"""
    for name in ("[data-choice=left]", "[data-choice='both good']", "#submit", "#skip", "#flag", "#comment", "#undo"):
        assert shown.page.evaluate(inside, name), name
    contrast = """() => {
      const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
        .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      const light = (c) => 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2];
      const ground = (e) => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor; if (!c.endsWith(', 0)')) return c; }
        return 'rgb(255, 255, 255)'; };
      const parts = ['#progress', '#left .turn', '.turn.user b', 'button[aria-checked="true"]', '#undo', '#strength'];
      return parts.map((s) => {
        const e = document.querySelector(s);
        const [a, b] = [light(rgb(getComputedStyle(e).color)), light(rgb(ground(e)))].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05); }); }"""
    assert min(shown.page.evaluate(contrast)) >= 4.5  # WCAG 2.2, 1.4.3
