"""The page for people who hear it, see little, or use keys alone: axe-core's rules, focus, motion, 30 pairs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import SIZES, Page, sync_api

from pipeline.preferences.labels import State
from pipeline.preferences.ledger import Ledger

ANSWER = "**Yes**, `x`:\n\n```\n" + "long code " * 40 + "\n```\n\n"
ANSWER += "| a | b |\n|---|---|\n| $x^2$ | [more](https://example.org) |\n"


@pytest.fixture
def open_many(people: Path, open_app: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Start the app with so many pairs, and two dimensions."""

    def start(*who: str, pairs: int, answer: str = ANSWER, dimensions: bool = True) -> Any:
        rows = [{"prompt": f"Question {n}?", "chosen": f"{n} {answer}", "rejected": f"no {n}"} for n in range(pairs)]
        (people.parent / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if dimensions:
            more = "kind: collect, dimensions: [{name: helpful, rated: 3}, {name: honest, rationale: true}],"
            people.write_text(people.read_text().replace("kind: collect,", more))
        return open_app(*who, url=f"sqlite:///{tmp_path / 'l.db'}")

    return start


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_has_nothing_to_say_of_any_state_of_the_page(
    browser: Any, open_many: Callable[..., Any], size: str, scheme: str
) -> None:
    app = open_many("ada", pairs=1)
    shown = Page(browser, size, scheme)
    shown.load_axe()
    shown.open(app, "ada")
    wrong: dict[str, list[str]] = {}

    def look(state: str) -> None:
        shown.picture(f"state-{state}-{size}-{scheme}")
        if told := shown.violations():
            wrong[state] = told

    look("start")
    shown.press("1", "1", "d")
    look("compared")
    shown.press("m", "e")
    look("edit")
    shown.press("Control+a")
    shown.page.keyboard.type("mine")
    shown.press("Control+Enter", "r", "3", "1", "2")
    shown.page.keyboard.type("a reason")
    shown.press("Enter", "c")
    assert shown.page.is_visible("#write")
    look("comment")
    shown.page.keyboard.type("a comment")
    shown.press("Control+Enter", "m")
    look("all said")
    shown.press("s")
    assert shown.page.is_visible("#why")
    look("skip")
    shown.press("Escape", "f")
    assert shown.page.is_visible("#why")
    look("flag")
    shown.press("Escape")
    shown.context.set_offline(True)
    shown.press("Enter")
    shown.page.wait_for_selector("#message.bad")
    shown.page.evaluate("scrollTo(0, 10**6)")
    box = shown.page.locator("#message").bounding_box()
    assert box is not None and box["y"] >= 0  # it is read from any place of a long pair
    look("offline")
    shown.context.set_offline(False)
    sync_api.expect(shown.page.locator("#message")).to_contain_text("Nothing is left")
    look("end")
    shown.page.goto("about:blank")
    shown.page.goto(f"{app.address}/#nothing")
    shown.page.wait_for_selector("#message.bad")
    look("wrong link")
    assert wrong == {}, json.dumps(wrong, indent=1)


def test_the_focus_goes_through_the_page_in_its_order_and_is_never_behind_the_bar(
    browser: Any, open_many: Callable[..., Any]
) -> None:
    app = open_many("ada", pairs=1)
    shown = Page(browser)
    shown.open(app, "ada")
    shown.press("1")
    where = """() => { const e = document.activeElement; const box = e.getBoundingClientRect();
      const bar = document.getElementById('controls').getBoundingClientRect().top;
      const name = e.id || e.dataset.choice || e.closest('[id]')?.id || e.tagName;
      return [name, e === document.body || e.closest('#controls') !== null || box.bottom <= bar + 1]; }"""
    names = []
    for _ in range(40):
        shown.press("Tab")
        name, is_seen = shown.page.evaluate(where)
        assert is_seen, name
        if name == "BODY" or (names and name == names[0]):
            break
        if not names or names[-1] != name:
            names.append(name)
    order = ["guidelines", "raw", "compared", "left", "right", "dimensions"]
    order += ["left", "right", "submit", "skip", "flag", "comment"]  # the choices, then the actions
    assert [name for name in names if name in order] == order and names[-1] == "undo"
    shown.page.emulate_media(reduced_motion="reduce")
    moving = "() => document.getAnimations().length"
    assert shown.page.evaluate(moving) == 0


def test_landmarks_live_regions_and_the_language_are_there(browser: Any, open_many: Callable[..., Any]) -> None:
    app = open_many("ada", pairs=1)
    shown = Page(browser)
    shown.open(app, "ada")
    for role in ("banner", "main", "contentinfo"):
        assert shown.page.get_by_role(role).count() == 1, role
    assert shown.page.get_by_role("article", name="Answer A").count() == 1
    assert shown.page.get_by_role("radiogroup", name="Your choice").get_by_role("radio").count() == 5
    assert shown.page.get_by_role("status").count() == 1
    assert shown.page.get_attribute("html", "lang") == "en"
    shown.press("2", "2")
    assert shown.read("#strength").startswith("B is clearly better")


def test_thirty_pairs_by_keyboard_alone(browser: Any, open_many: Callable[..., Any], tmp_path: Path) -> None:
    app = open_many("ada", pairs=30, answer="yes", dimensions=False)
    shown = Page(browser)
    shown.open(app, "ada")
    keys = (["1"], ["2", "2"], ["3"], ["4"], ["5"], ["ArrowLeft"], ["ArrowRight", "ArrowRight", "ArrowRight"])
    for done in range(1, 31):
        shown.press(*keys[done % len(keys)], "Enter")
        shown.wait(done)
        if done == 12:
            for left in (11, 10):
                shown.press("u")
                shown.wait(left)
            for again in (11, 12):
                shown.press("3", "Enter")
                shown.wait(again)
        if done == 20:
            shown.page.reload()
            shown.page.wait_for_selector("#work:not([hidden])")
    sync_api.expect(shown.page.locator("#message")).to_contain_text("Nothing is left")
    assert shown.wrong == []
    state = State().take(Ledger(f"sqlite:///{tmp_path / 'l.db'}", tmp_path.name).events())
    assert len(state.answers["ada"]) == 30
    assert {one.verdict for one in state.answers["ada"].values()} == {
        "first", "second", "tie", "both good", "both bad"
    }  # fmt: skip


@pytest.mark.parametrize("dimensions", [False, True])
def test_the_bar_is_in_sight_and_leaves_room_at_1280_by_800(
    browser: Any, open_many: Callable[..., Any], dimensions: bool
) -> None:
    app = open_many("ada", pairs=1, answer="word " * 3000, dimensions=dimensions)
    shown = Page(browser)
    shown.open(app, "ada")
    shown.press("1", "c")
    shown.page.keyboard.type("a long comment " * 30)
    shown.press("Control+Enter")
    for place in (0, 1500, 10**6):
        shown.page.evaluate(f"scrollTo(0, {place})")
        top, bottom = shown.page.evaluate(
            "() => { const b = document.getElementById('controls').getBoundingClientRect(); return [b.top, b.bottom]; }"
        )
        assert bottom <= 801 and bottom - top < 0.3 * 800
    assert shown.wrong == []


@pytest.mark.parametrize(("width", "height"), [(640, 400), (320, 256), (844, 390)])
def test_large_type_and_low_windows_leave_room_for_the_answers(
    browser: Any, open_many: Callable[..., Any], width: int, height: int
) -> None:
    """1280 x 800 and 1280 x 1024 at 200 and 400 %, and a phone on its side: half of the height is the answers'."""
    app = open_many("ada", pairs=1, dimensions=False)
    shown = Page(browser)
    shown.page.set_viewport_size({"width": width, "height": height})
    shown.open(app, "ada")
    shown.press("2", "2")
    bar = shown.page.locator("#controls").bounding_box()
    assert bar is not None and bar["height"] <= height / 2 and bar["y"] + bar["height"] <= height + 1
    assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for button in shown.page.locator("#controls button").all():
        box = button.bounding_box()
        assert box is not None and box["height"] >= 24 and box["width"] >= 24


def test_what_is_chosen_is_seen_in_the_colours_of_the_system(browser: Any, open_many: Callable[..., Any]) -> None:
    app = open_many("ada", pairs=1, dimensions=False)
    shown = Page(browser)
    shown.page.emulate_media(forced_colors="active")
    shown.open(app, "ada")
    shown.press("2", "d")
    style = "e => getComputedStyle(e).outlineStyle"
    chosen, other = (shown.page.locator(f"[data-choice={side}]").evaluate(style) for side in ("right", "left"))
    assert (chosen, other) == ("solid", "none") and shown.page.locator("#compared").evaluate(style) == "solid"
