"""Whatever happened to a pair, a key or the server: the page goes on, and says what it did."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browsing import Page, sync_api

from pipeline.preferences.items import items_of
from pipeline.preferences.labels import LEASE_S, Batch, State

PRESSED = """([key, code, more]) => document.body.dispatchEvent(
  new KeyboardEvent('keydown', {key, code, bubbles: true, cancelable: true, ...more}))"""


def _batch(count: int, answer: str = "one", **more: Any) -> Batch:
    rows = (
        {
            "prompt": [{"role": "user", "content": f"question {n}"}],
            "chosen": [{"role": "assistant", "content": f"{answer} {n}"}],
            "rejected": [{"role": "assistant", "content": f"other {n}"}],
        }
        for n in range(count)
    )
    return Batch(items_of(rows)[0], **more)


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Page]]:
    """Open somebody's link in a window."""
    opened = []

    def start(app: Any, who: str = "ada", size: str = "wide") -> Page:
        shown = Page(browser, size)
        opened.append(shown)
        if who not in app.tokens:
            app.invite(who)
        shown.open(app, who)
        return shown

    yield start
    for shown in opened:
        shown.context.close()


def _says(shown: Page, text: str) -> None:
    sync_api.expect(shown.page.locator("#message")).to_contain_text(text)


def _question(shown: Page, number: int) -> None:
    sync_api.expect(shown.page.locator("#prompt")).to_contain_text(f"question {number}")


def test_a_pair_that_was_answered_in_another_tab_gives_way_to_the_next(
    in_process: Callable[..., Any], open_page: Callable[..., Page]
) -> None:
    app = in_process(_batch(4))
    one, other = open_page(app), open_page(app)
    for number in range(2):
        one.press("1", "Enter")
        one.wait(number + 1)
    _question(other, 0)
    other.press("2", "Enter")
    _says(
        other, "This pair was answered already, perhaps in another tab. Undo takes that answer back. This is the next"
    )
    _question(other, 2)
    other.press("2", "Enter")
    other.wait(3)
    _says(other, "")
    one.press("1", "Enter")  # answered there meanwhile
    _says(one, "answered already")
    _question(one, 3)


@pytest.mark.parametrize("what", ["dropped", "flagged", "decided", "expired"])
def test_a_pair_that_takes_no_label_any_more_gives_way_to_the_next(
    what: str, in_process: Callable[..., Any], open_page: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = in_process(_batch(3, per_item=1 if what == "expired" else 2))
    shown = open_page(app)
    queue, item = app.queue, app.queue.batch.items[0].id
    if what == "dropped":
        queue.drop(item, "no good")
    elif what == "flagged":
        queue.leave("flag", "grace", queue.next("grace")[0]["item"])
    elif what == "decided":
        queue.record(lambda _: ("adjudicate", {"annotator": "lin", "item": item, "verdict": "tie"}))
    else:
        monkeypatch.setattr("pipeline.preferences.label_queue.time.time", lambda now=queue: 4e9)
        assert LEASE_S < 4e9
        queue.next("grace")
    shown.press("1", "Enter")
    _says(shown, "This is the next pair.")
    _question(shown, 1)
    shown.press("2", "Enter")
    shown.wait(1)


def test_a_closed_batch_is_said_and_an_undo_keeps_its_labels(
    in_process: Callable[..., Any], open_page: Callable[..., Page]
) -> None:
    app = in_process(_batch(3))
    shown = open_page(app)
    shown.press("1", "Enter")
    shown.wait(1)
    app.queue.close()
    shown.press("1", "Enter")
    _says(shown, "The batch was closed. No more labels are needed. Thank you!")
    shown.press("u")
    _says(shown, "The batch was closed: its labels stay as they are")
    assert app.queue.progress()["done"] == 1


def test_an_answer_whose_pair_is_not_shown_again_is_taken_back_in_words(
    in_process: Callable[..., Any], open_page: Callable[..., Page]
) -> None:
    app = in_process(_batch(3))
    shown = open_page(app)
    shown.press("1", "Enter")
    shown.wait(1)
    app.queue.drop(app.queue.batch.items[0].id, "no good")
    shown.press("u")
    _says(shown, "Your last answer is taken back. Its pair needs no label any more, so it is not shown.")
    _question(shown, 1)


def test_a_tab_that_stood_open_for_days_saves_its_label(
    browser: Any, in_process: Callable[..., Any], open_page: Callable[..., Page]
) -> None:
    app = in_process(_batch(2))
    app.invite("ada")
    shown = Page(browser)
    shown.page.clock.install()
    shown.open(app, "ada")
    shown.page.clock.fast_forward(3 * 86_400_000)
    shown.press("1", "Enter")
    shown.wait(1)
    state = State().take(app.queue.ledger.events())
    assert [one.seconds for one in state.answers["ada"].values()] == [86_400]
    shown.context.close()


def test_a_key_that_is_held_down_acts_once(in_process: Callable[..., Any], open_page: Callable[..., Page]) -> None:
    app = in_process(_batch(5))
    shown = open_page(app)
    for done in range(1, 4):
        shown.press("1", "Enter")
        shown.wait(done)
    shown.page.evaluate(PRESSED, ["u", "KeyU", {}])
    for _ in range(3):
        shown.page.evaluate(PRESSED, ["u", "KeyU", {"repeat": True}])
        shown.page.wait_for_timeout(100)
    shown.wait(2)
    shown.page.evaluate(PRESSED, ["1", "Digit1", {}])
    shown.page.evaluate(PRESSED, ["1", "Digit1", {"repeat": True}])
    assert shown.read("#strength").startswith("A is slightly better")


def test_enter_without_a_choice_says_what_is_missing(
    in_process: Callable[..., Any], open_page: Callable[..., Page]
) -> None:
    shown = open_page(in_process(_batch(2)))
    shown.press("Enter")
    _says(shown, "Choose first: which answer is better?")
    shown.press("2")
    _says(shown, "")
    assert shown.read("#progress").startswith("0 of")


KEYS = {
    "French, without Shift": ("&", "Digit1", "left"),
    "Arabic digit": ("٢", "Digit2", "right"),
    "number pad of an Arabic keyboard": ("٣", "Numpad3", "tie"),
}


@pytest.mark.parametrize("layout", KEYS)
def test_digits_of_other_keyboards_choose(
    layout: str, in_process: Callable[..., Any], open_page: Callable[..., Page]
) -> None:
    shown = open_page(in_process(_batch(2)))
    key, code, side = KEYS[layout]
    shown.page.evaluate(PRESSED, [key, code, {}])
    assert shown.page.get_attribute(f"[data-choice='{side}']", "aria-checked") == "true"


def test_letters_of_other_alphabets_are_those_of_their_place(
    in_process: Callable[..., Any], open_page: Callable[..., Page]
) -> None:
    shown = open_page(in_process(_batch(2)))
    shown.page.evaluate(PRESSED, [".", "KeyE", {}])  # a Dvorak keyboard has no letter there
    assert shown.read("#message") == ""
    shown.page.evaluate(PRESSED, ["ы", "KeyS", {}])
    assert shown.page.is_visible("#why[open]")
    shown.page.locator("#reasons input").first.dispatch_event(
        "keydown", {"key": "é", "code": "Digit2", "bubbles": True}
    )
    assert shown.page.locator("#reasons input").nth(1).is_checked()


def test_arrows_scroll_a_box_that_has_the_focus(in_process: Callable[..., Any], open_page: Callable[..., Page]) -> None:
    shown = open_page(in_process(_batch(1, answer="```\n" + "long code " * 60 + "\n```\n")))
    box = shown.page.locator("article pre")
    box.focus()
    shown.press("ArrowRight", "ArrowRight")
    shown.page.wait_for_function("() => document.querySelector('article pre').scrollLeft > 0")
    assert shown.page.locator("[role=radio][aria-checked=true]").count() == 0
    shown.page.evaluate("document.activeElement.blur()")
    shown.press("ArrowRight")
    assert shown.page.get_attribute("[data-choice=right]", "aria-checked") == "true"


def test_an_editor_that_is_opened_and_closed_changes_no_line_ends(
    in_process: Callable[..., Any], open_page: Callable[..., Page]
) -> None:
    app = in_process(_batch(1, answer="a\rb\r\nc"))
    shown = open_page(app)
    shown.press("1" if "one" not in shown.read("#left") and "b" in shown.read("#left") else "2", "e", "Control+Enter")
    assert "Edited" not in shown.read("#pair")


def test_who_has_nothing_left_gets_what_somebody_else_leaves(
    browser: Any, in_process: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = in_process(_batch(2))
    app.queue.next("grace", 2)
    app.invite("ada")
    shown = Page(browser)
    shown.page.clock.install()
    shown.page.goto(f"{app.address}/#{app.tokens['ada']}")
    _says(shown, "Nothing is left for you just now.")
    monkeypatch.setattr("pipeline.preferences.label_queue.time.time", lambda: 4e9)  # grace went away
    shown.page.clock.fast_forward(30_000)
    _question(shown, 0)
    shown.press("1", "Enter")
    shown.wait(1)
    shown.context.close()


@pytest.mark.parametrize("status", [503, 429, 502])
def test_a_server_that_cannot_just_now_says_so_in_its_own_words(
    status: int, in_process: Callable[..., Any], open_page: Callable[..., Page]
) -> None:
    shown = open_page(in_process(_batch(2)))
    body = "<h1>Bad gateway</h1>" if status == 502 else json.dumps({"error": "the labels cannot be saved just now"})
    asked = []

    def refuse(route: Any) -> None:  # until the message was read: a reply that is late cannot replace it
        asked.append(route.request.post_data)
        route.fulfill(status=status, body=body)

    shown.page.route("**/api/label", refuse)
    shown.press("1", "Enter")
    _says(shown, "The server answered 502." if status == 502 else "The labels cannot be saved just now.")
    assert re.search(r"Nothing you said is lost: it is sent again in \d+ s", shown.read("#message"))
    shown.page.unroute("**/api/label", refuse)
    shown.wait(1)
    assert len(set(asked)) == 1  # each try sends the same request id
