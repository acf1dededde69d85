"""A person labels with the keyboard in a real browser, and the ledger has what they saw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import PICTURES, SIZES, Page, sync_api

from pipeline.preferences.labels import State
from pipeline.preferences.ledger import Ledger


def test_a_person_labels_undoes_and_ends_with_keys_alone(
    browser: Any, open_app: Callable[..., Any], url: str, people: Path
) -> None:
    app = open_app("ada", url=url)
    shown = Page(browser)
    shown.open(app, "ada")
    assert "Prefer what is right." in shown.read("#guidelines")
    prompts = []
    for done in range(1, 4):  # a preference of each strength
        prompts.append(shown.read("#prompt"))
        shown.press(*[shown.better()] * done, "Enter")
        shown.wait(done)
    undone = prompts[-1]
    shown.press("u")
    shown.wait(2)
    assert shown.read("#prompt") == undone and "taken back" in shown.read("#message")
    shown.press("4", "Enter")
    shown.wait(3)
    shown.press("s")
    shown.page.keyboard.type("too long, said s")  # letters that are keys elsewhere
    shown.press("Enter")
    shown.page.wait_for_selector("#why:not([open])", state="attached")
    shown.press("f", "Escape")  # thought better of it
    shown.press("3", "Enter")
    shown.wait(4)
    shown.press("5", "Enter")
    sync_api.expect(shown.page.locator("#work")).to_be_hidden(timeout=120_000)
    assert "Nothing is left" in shown.read("#message")
    assert shown.wrong == []
    shown.context.close()
    state = State().take(Ledger(url, people.parent.name).events())
    said = sorted(
        (one.number, one.kind, one.verdict, one.strength, one.reason) for one in state.answers["ada"].values()
    )
    assert [one[1:] for one in said] == [
        ("label", "first", 1, ""),
        ("label", "first", 2, ""),
        ("label", "both bad", 1, ""),
        ("skip", None, 1, "too long, said s"),
        ("label", "tie", 1, ""),
        ("label", "both good", 1, ""),
    ]


def test_two_browsers_never_show_the_same_pair(browser: Any, open_app: Callable[..., Any], tmp_path: Path) -> None:
    app = open_app("ada", "grace", url=f"sqlite:///{tmp_path / 'l.db'}")
    pages = [Page(browser), Page(browser)]
    for shown, who in zip(pages, ("ada", "grace"), strict=True):
        shown.open(app, who)
    seen = []
    for done in range(1, 5):
        shown = pages[done % 2]
        seen.append(shown.read("#prompt"))
        shown.press("1", "Enter")
        shown.wait(done)
    assert len(set(seen)) == 4


def test_a_label_outlives_a_server_that_goes_away(browser: Any, open_app: Callable[..., Any], tmp_path: Path) -> None:
    """The page says so, sends the label again until the server is back, and it counts once."""
    url = f"sqlite:///{tmp_path / 'l.db'}"
    app = open_app("ada", url=url)
    shown = Page(browser)
    shown.open(app, "ada")
    app.process.kill()
    app.process.wait(timeout=800)
    shown.press("1", "Enter")
    shown.page.wait_for_selector("#message.bad")
    assert "The server cannot be reached. Nothing you said is lost" in shown.read("#message")
    port = app.address.rpartition(":")[2]
    open_app("ada", url=url, more=("--port", port))
    shown.wait(1)
    sync_api.expect(shown.page.locator("#message")).to_have_text("")
    kinds = [event.kind for event in Ledger(url, tmp_path.name).events()]
    assert kinds.count("label") == 1


def test_a_label_whose_reply_is_lost_counts_once(browser: Any, open_app: Callable[..., Any], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'l.db'}"
    app = open_app("ada", url=url)
    shown = Page(browser)
    shown.open(app, "ada")
    lost = []

    def lose(route: Any) -> None:
        if lost:
            route.continue_()
            return
        lost.append(route.fetch().status)  # the server has saved it
        route.abort()

    shown.page.route("**/api/label", lose)
    shown.press("2", "Enter")
    shown.wait(1)
    assert lost == [200]
    kinds = [event.kind for event in Ledger(url, tmp_path.name).events()]
    assert kinds.count("label") == 1


def test_offline_keeps_the_choice_until_the_network_is_back(
    browser: Any, open_app: Callable[..., Any], tmp_path: Path
) -> None:
    app = open_app("ada", url=f"sqlite:///{tmp_path / 'l.db'}")
    shown = Page(browser)
    shown.open(app, "ada")
    shown.context.set_offline(True)
    shown.press("1", "Enter")
    shown.page.wait_for_selector("#message.bad")
    assert "You are offline" in shown.read("#message")
    shown.context.set_offline(False)
    shown.wait(1)


def test_keys_on_a_button_press_that_button_and_arrows_choose(
    browser: Any, open_app: Callable[..., Any], tmp_path: Path
) -> None:
    app = open_app("ada", url=f"sqlite:///{tmp_path / 'l.db'}")
    shown = Page(browser)
    shown.open(app, "ada")
    shown.press("ArrowRight")
    assert shown.page.get_attribute("[data-choice=right]", "aria-checked") == "true"
    shown.page.focus("#skip")
    shown.press("Enter")  # not a saved label
    shown.page.wait_for_selector("#why[open]")
    shown.press("Escape")
    shown.page.focus("[data-choice=tie]")
    shown.press("Enter")
    assert shown.page.get_attribute("[data-choice=tie]", "aria-checked") == "true"
    assert shown.read("#progress").startswith("0 of ")
    shown.page.click("[data-choice=left]")  # by mouse: Enter saves then
    shown.press("Enter")
    shown.wait(1)


def test_the_last_label_is_taken_back_at_the_end_too(
    browser: Any, open_app: Callable[..., Any], tmp_path: Path
) -> None:
    app = open_app("ada", url=f"sqlite:///{tmp_path / 'l.db'}")
    shown = Page(browser)
    shown.open(app, "ada")
    for done in range(1, 7):
        shown.press("3", "Enter")
        shown.wait(done)
    sync_api.expect(shown.page.locator("#work")).to_be_hidden()
    assert shown.page.is_visible("#undo") and not shown.page.is_visible("#submit")
    shown.press("u")
    shown.wait(5)
    assert shown.page.is_visible("#work")


@pytest.mark.parametrize("size", SIZES)
def test_the_choices_are_in_sight_beside_long_answers(
    browser: Any, open_app: Callable[..., Any], tmp_path: Path, people: Path, size: str
) -> None:
    answers = people.parent / "answers.jsonl"
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    answers.write_text("".join(json.dumps({**row, "chosen": "word " * 1500}) + "\n" for row in rows))
    app = open_app("ada", url=f"sqlite:///{tmp_path / 'l.db'}")
    shown = Page(browser, size)
    shown.open(app, "ada")
    inside = """(name) => { const box = document.querySelector(name).getBoundingClientRect();
      return box.top >= 0 && box.bottom <= innerHeight; }"""
    for name in ("[data-choice=left]", "[data-choice='both good']", "#submit", "#undo"):
        assert shown.page.evaluate(inside, name), name
    if PICTURES:
        shown.page.screenshot(path=Path(PICTURES) / f"collect-{size}-long.png")


def test_a_wrong_link_says_what_to_do(browser: Any, open_app: Callable[..., Any], tmp_path: Path) -> None:
    app = open_app("ada", url=f"sqlite:///{tmp_path / 'l.db'}")
    shown = Page(browser)
    for link, told in (("", "Open the link you were given"), ("#nothing", "ask for a new one")):
        shown.page.goto("about:blank")
        shown.page.goto(f"{app.address}/{link}")
        shown.page.wait_for_selector("#message.bad")
        assert told in shown.read("#message") and not shown.page.is_visible("#work")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_fits_and_can_be_read(
    browser: Any, open_app: Callable[..., Any], tmp_path: Path, size: str, scheme: str
) -> None:
    app = open_app("ada", url=f"sqlite:///{tmp_path / 'l.db'}")
    shown = Page(browser, size, scheme)
    shown.open(app, "ada")
    shown.press("2")
    if PICTURES:
        shown.page.screenshot(path=Path(PICTURES) / f"collect-{size}-{scheme}.png", full_page=True)
    assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    unnamed = "[...document.querySelectorAll('button')].filter(b => !b.textContent.trim()).length"
    assert shown.page.evaluate(unnamed) == 0
    contrast = """() => {
      const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
        .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      const light = (c) => 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2];
      const ground = (e) => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor; if (!c.endsWith(', 0)')) return c; }
        return 'rgb(255, 255, 255)'; };
      return ['#progress', '#left .turn', 'button[aria-checked="true"]', '#skip', '#strength'].map((s) => {
        const e = document.querySelector(s);
        const [a, b] = [light(rgb(getComputedStyle(e).color)), light(rgb(ground(e)))].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05); }); }"""
    assert min(shown.page.evaluate(contrast)) >= 4.5  # WCAG 2.2, 1.4.3
