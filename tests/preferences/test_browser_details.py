"""What people say besides a verdict, in a real browser: comments, reasons, flags and edited answers outlive it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import SIZES, Page, sync_api

from pipeline.preferences.events import EventBody
from pipeline.preferences.ledger import Ledger


def _url(folder: Path) -> str:
    return f"sqlite:///{folder / 'l.db'}"


def _said(folder: Path, *kinds: str) -> list[EventBody]:
    return [event.body for event in Ledger(_url(folder), folder.name).events() if event.kind in kinds]


@pytest.fixture
def shown(browser: Any, open_app: Callable[..., Any], tmp_path: Path) -> Page:
    """Open the page of ada."""
    page = Page(browser)
    page.app = open_app("ada", url=_url(tmp_path))
    page.open(page.app, "ada")
    return page


def test_a_comment_and_an_edit_are_saved_with_the_choice(shown: Page, tmp_path: Path) -> None:
    shown.press("e")  # of which answer?
    assert "Choose A or B first" in shown.read("#message")
    shown.press("2", "c")
    shown.page.keyboard.type("c is a key, 1 too")
    shown.press("Control+Enter")
    sync_api.expect(shown.page.locator("#write")).to_be_hidden()
    assert shown.read("#note") == "Comment: c is a key, 1 too"
    rejected = shown.read("#left .turn")
    shown.press("e")
    original = shown.page.input_value("#text")
    assert original == shown.read("#right .turn")
    shown.press("Control+a")
    shown.page.keyboard.type("**my own**")
    shown.press("Enter")  # a new line
    shown.page.keyboard.type("text")
    shown.press("Control+Enter")
    sync_api.expect(shown.page.locator("#right strong")).to_have_text("my own")
    assert "Edited B" in shown.read("#right .edit")
    shown.press("2", "1")  # the other answer: the edit is not of it
    assert "Your edit of B is not saved unless B is better." in shown.read("#note")
    shown.press("2", "Enter")
    shown.wait(1)
    (label,) = _said(tmp_path, "label")
    assert (label["edit"], label["comment"]) == ("**my own**\ntext", "c is a key, 1 too")
    assert rejected and shown.wrong == []


def test_an_edit_that_is_closed_or_emptied_changes_nothing(shown: Page, tmp_path: Path) -> None:
    shown.press("1", "e")
    original = shown.page.input_value("#text")
    shown.page.keyboard.type(" more")
    shown.press("Escape", "e")
    assert shown.page.input_value("#text") == original + " more"  # what was typed is not lost
    shown.press("Escape")
    assert shown.read("#left .turn") == original
    shown.press("e", "Control+Enter")
    sync_api.expect(shown.page.locator("#left .turn")).to_have_text(original + " more")
    shown.page.click("#left .edit")
    shown.press("Control+a", "Delete", "Control+Enter")
    sync_api.expect(shown.page.locator("#left .turn")).to_have_text(original)
    shown.press("Enter")
    shown.wait(1)
    assert "edit" not in _said(tmp_path, "label")[0]


def test_a_text_that_is_too_long_is_said_before_it_is_sent(shown: Page) -> None:
    shown.press("1", "e")
    shown.page.fill("#text", "ß" * 24_001)  # two bytes each
    shown.press("Control+Enter")
    assert shown.page.is_visible("#write")
    assert "at most 48000" in shown.page.eval_on_selector("#text", "e => e.validationMessage")
    shown.page.fill("#text", '"' * 24_001)  # two bytes each as they are sent
    shown.press("Control+Enter")
    assert shown.page.is_visible("#write")
    shown.page.fill("#text", "ß" * 24_000)
    shown.press("Control+Enter", "Enter")
    shown.wait(1)
    assert shown.wrong == []


def test_reasons_are_chosen_by_number_and_said_in_own_words(shown: Page, tmp_path: Path) -> None:
    shown.press("s", "2", "Enter")
    sync_api.expect(shown.page.locator("#progress")).to_contain_text("you answered 1")
    shown.press("s", "3")
    shown.page.keyboard.type("xhosa, 2 words")
    shown.press("Enter")
    sync_api.expect(shown.page.locator("#progress")).to_contain_text("you answered 2")
    shown.press("f", "Enter")  # what is wrong has to be said
    assert shown.page.is_visible("#why")
    shown.press("2", "Tab")
    shown.page.keyboard.type("a phone number")
    shown.press("Enter")
    sync_api.expect(shown.page.locator("#progress")).to_contain_text("you answered 3")
    first, second, flag = _said(tmp_path, "skip", "flag")
    assert first["reason"] == "I cannot decide"
    assert second["reason"] == "I do not read this language: xhosa, 2 words"
    assert (flag["flag"], flag["reason"]) == ("personal data", "a phone number")
    assert shown.wrong == []


def test_what_was_written_comes_back_after_an_undo_and_a_reload(shown: Page, tmp_path: Path) -> None:
    shown.press("2", "2", "c")
    shown.page.keyboard.type("unsaved")
    shown.press("Control+Enter")
    shown.page.reload()
    shown.page.wait_for_selector("#work:not([hidden])")
    assert shown.read("#note") == "Comment: unsaved" and "B is clearly better" in shown.read("#strength")
    shown.press("Enter")
    shown.wait(1)
    assert shown.read("#note") == ""
    shown.press("u")
    shown.wait(0)
    assert shown.read("#note") == "Comment: unsaved" and not shown.page.is_enabled("#submit")  # chosen anew
    shown.press("1", "Enter")
    shown.wait(1)
    assert [(one["comment"], one["strength"]) for one in _said(tmp_path, "label")] == [("unsaved", 2), ("unsaved", 1)]


def test_a_link_that_is_revoked_while_labelling_keeps_what_was_typed(
    shown: Page, people: Path, call: Any, tmp_path: Path
) -> None:
    line = ("labels", "people", str(people), "labels", "--ledger", _url(tmp_path))
    line = (*line, "--set", f"stages.labels.batch={people.parent.name}")
    shown.press("1", "c")
    shown.page.keyboard.type("nearly")
    shown.press("Control+Enter")
    assert call(*line, "--revoke", "ada", cwd=people.parent).returncode == 0
    shown.press("Enter")
    shown.page.wait_for_selector("#message.bad")
    assert "ask for a new one. What you chose and wrote is kept" in shown.read("#message")
    assert shown.read("#note") == "Comment: nearly" and shown.page.is_enabled("#submit")
    shown.picture("revoked-wide-light")
    ended = call(*line, "--add", "ada", cwd=people.parent)
    token = ended.stdout.partition("/#")[2].split()[0]
    shown.page.goto(f"{shown.app.address}/#{token}")  # in the same tab: the page loads anew
    sync_api.expect(shown.page.locator("#message")).to_have_text("", timeout=120_000)
    shown.page.wait_for_selector("#work:not([hidden])")
    sync_api.expect(shown.page.locator("#note")).to_have_text("Comment: nearly")
    shown.press("Enter")
    shown.wait(1)
    assert _said(tmp_path, "label")[0]["comment"] == "nearly"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_boxes_fit(browser: Any, open_app: Callable[..., Any], tmp_path: Path, size: str, scheme: str) -> None:
    app = open_app("ada", url=_url(tmp_path))
    shown = Page(browser, size, scheme)
    shown.open(app, "ada")
    inside = """(name) => { const box = document.querySelector(name).getBoundingClientRect();
      return box.top >= 0 && box.bottom <= innerHeight && box.left >= 0 && box.right <= innerWidth; }"""
    shown.press("1")
    for key, name in (("s", "why"), ("f", "why"), ("c", "write"), ("e", "write")):
        shown.press(key)
        assert shown.page.evaluate(inside, f"#{name}"), key
        shown.picture(f"box-{key}-{size}-{scheme}")
        shown.press("Escape")
        sync_api.expect(shown.page.locator(f"#{name}")).to_be_hidden()
    assert shown.wrong == []


def test_a_box_that_is_opened_again_at_once_keeps_the_keys(shown: Page) -> None:
    """Its closing is told later, when it is open again: what has the keys then is not what is gone."""
    shown.press("1", "e")
    shown.page.evaluate(
        """() => {
          const key = (target, key) => target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
          const box = document.querySelector("#write");
          const told = new Promise((done) => box.addEventListener("close", () => setTimeout(done)));
          box.close();
          key(document.body, "e");
          return told;
        }"""
    )
    assert shown.page.evaluate("document.querySelector('#write').open && document.activeElement.id") == "text"
