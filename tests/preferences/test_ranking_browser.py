"""A person ranks groups of answers in a real browser: by keys alone, by finger on a phone, heard and seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import SIZES, Page, sync_api

from pipeline.preferences.labels import State
from pipeline.preferences.ledger import Ledger

RECIPE = """
name: ranked
data:
  answers: {path: answers.jsonl}
  pairs: {artifact: labels, file: preferences.jsonl}
stages:
  labels: {kind: labels, data: answers, labels_per_item: 2, guidelines: "Prefer what is **right**."}
"""
TEXTS = ("right-0: **four**, as `2 + 2` is.", "fair-1: about four\n\n- or five", "poor-2: $x^2$", "wrong-3: forty-two")
"""Answers from the best to the worst."""


@pytest.fixture
def ranked(tmp_path: Path) -> Path:
    """A recipe with three groups of four answers, as `groups.jsonl` has them."""
    rows = []
    for n in range(3):
        candidates = [{"text": f"{text} {n} " + "and so on " * 12} for text in TEXTS]
        rows.append({"prompt": f"What is {n} plus {n}?", "row": n, "candidates": candidates, "propensity": 0.2})
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tmp_path / "ranked.yaml"
    recipe.write_text(RECIPE)
    return recipe


@pytest.fixture
def app(ranked: Path, serve: Callable[..., Any], tmp_path: Path) -> Any:
    """The app of the three groups, with an annotator and a lead."""
    line = ["collect", str(ranked), "labels", "--port", "0", "--annotators", "ada,grace", "--lead", "lin"]
    return serve(line, tmp_path, TRUEUP_LEDGER=f"sqlite:///{tmp_path / 'l.db'}")


def _state(folder: Path) -> State:
    return State().take(Ledger(f"sqlite:///{folder / 'l.db'}", "labels").events())


def _right_ranks(shown: Page) -> list[str]:
    """Return the keys that rank the answers on the screen from best to worst."""
    shown.page.wait_for_selector("#group article")
    texts = shown.page.locator("#group article").all_inner_texts()
    return [next(str(rank) for rank, text in enumerate(TEXTS, 1) if text.split(":")[0] in said) for said in texts]


def test_a_group_is_ranked_by_keys_alone(browser: Any, app: Any, tmp_path: Path) -> None:
    shown = Page(browser)
    shown.open(app, "ada")
    assert shown.read("#title") == "labels: rank the answers" and shown.page.is_hidden("#pair")
    assert shown.page.is_disabled("#submit")
    shown.press("Enter")  # nothing is ranked: nothing is saved
    keys = _right_ranks(shown)
    shown.press(*keys[:3])
    said = shown.read("#strength")  # which answer has which rank, also of those that are off the screen
    assert said.startswith("3 of 4 ranked: ") and "D" not in said and said.count(">") == 2
    assert shown.page.is_disabled("#submit")
    shown.press(keys[3])
    assert shown.read("#strength").count(">") == 3
    shown.press("Enter")
    shown.wait(1)
    shown.press("u")
    shown.wait(0)
    assert "taken back" in shown.read("#message")
    assert shown.read("#strength").count(">") == 3  # the ranks are there to be changed
    shown.page.evaluate("() => { document.body.style.paddingBottom = '99rem'; scrollTo(0, 300); }")
    shown.page.wait_for_timeout(100)
    told, row = shown.page.locator("#message").bounding_box(), shown.page.locator(".ranks").first.bounding_box()
    assert told and row and row["y"] >= told["y"] + told["height"]  # the ranks are not behind what the page says
    shown.press("ArrowRight", "ArrowRight")  # the second answer
    other = "1" if keys[1] != "1" else "2"
    shown.press(other)
    assert shown.read("#strength").count("=") == 1
    assert shown.read("#message") == ""
    shown.press("ArrowRight", "ArrowRight", keys[1], "Enter")
    shown.wait(1)
    _right_ranks(shown)
    shown.press("1", "1", "2", "2", "c")
    shown.page.keyboard.type("two and two")
    shown.press("Control+Enter")
    shown.page.reload()
    shown.page.wait_for_selector("#work:not([hidden])")
    assert shown.read("#strength") == "A = B > C = D" and "two and two" in shown.read("#note")
    shown.press("m")
    assert "**" in "".join(shown.page.locator("#group article").all_inner_texts())
    shown.press("Enter")
    shown.wait(2)
    shown.press("s")
    shown.page.keyboard.type("too much")
    shown.press("Enter")
    sync_api.expect(shown.page.locator("#message")).to_contain_text("Nothing is left")
    assert shown.wrong == []
    answers = sorted(_state(tmp_path).answers["ada"].values(), key=lambda one: one.number)
    assert [one.kind for one in answers] == ["label", "label", "skip"]
    assert answers[0].tiers == ((0,), (1,), (2,), (3,)) and sorted(answers[0].order or ()) == [0, 1, 2, 3]
    assert [len(tier) for tier in answers[1].tiers or ()] == [2, 2]
    assert answers[1].details is not None and answers[1].details.comment == "two and two"


def test_a_group_that_takes_no_ranking_any_more_gives_way_to_the_next(browser: Any, app: Any) -> None:
    shown = Page(browser)
    shown.open(app, "ada")
    (first, *_) = app.ask("next", "ada")["items"]
    app.ask("flag", "grace", item=app.ask("next", "grace")["items"][0]["item"], seconds=1.0, request="r" * 16)
    shown.press("1", "2", "3", "4", "Enter")
    sync_api.expect(shown.page.locator("#message")).to_contain_text("flagged this group. This is the next group.")
    assert app.ask("next", "ada")["items"][0]["item"] != first["item"]


def test_offline_keeps_the_ranking_and_it_counts_once(browser: Any, app: Any, tmp_path: Path) -> None:
    shown = Page(browser)
    shown.open(app, "ada")
    shown.press(*_right_ranks(shown))
    shown.context.set_offline(True)
    shown.press("Enter")
    shown.page.wait_for_selector("#message.bad")
    shown.context.set_offline(False)
    shown.wait(1)
    assert [one.tiers for one in _state(tmp_path).answers["ada"].values()] == [((0,), (1,), (2,), (3,))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_has_nothing_to_say_and_a_finger_is_enough(browser: Any, app: Any, size: str, scheme: str) -> None:
    shown = Page(browser, size, scheme)
    shown.load_axe()
    shown.open(app, "ada")
    wrong: dict[str, list[str]] = {}

    def look(state: str) -> None:
        shown.picture(f"rank-{state}-{size}-{scheme}")
        shown.picture(f"rank-{state}-{size}-{scheme}-full", full=True)
        if told := shown.violations():
            wrong[state] = told

    look("start")
    keys = _right_ranks(shown)
    for place, key in enumerate(keys):
        shown.page.locator("#group article").nth(place).locator(".ranks label").nth(int(key) - 1).click()
    look("ranked")
    width = shown.page.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]
    box = shown.page.locator(".ranks label").first.bounding_box()
    assert box is not None and min(box["width"], box["height"]) >= 40
    shown.page.click("#submit")
    shown.wait(1)
    look("next")
    assert wrong == {}, json.dumps(wrong, indent=1)
    assert shown.wrong == []


def test_a_screen_reader_hears_which_answer_is_ranked(browser: Any, app: Any) -> None:
    shown = Page(browser)
    shown.open(app, "ada")
    for letter in "ABCD":
        assert shown.page.get_by_role("article", name=f"Answer {letter}").count() == 1
        group = shown.page.get_by_role("radiogroup", name=f"Rank of answer {letter}, 1 is best")
        assert group.get_by_role("radio").count() == 4
    assert shown.page.get_attribute("#strength", "aria-live") == "polite"
    shown.press("2")
    where = "() => document.activeElement.closest('article').getAttribute('aria-label')"
    assert shown.page.evaluate(where) == "Answer B"  # the next without a rank


def test_a_lead_sees_how_people_differ_and_ranks(browser: Any, app: Any, tmp_path: Path) -> None:
    for who, turned in (("ada", False), ("grace", True)):
        shown = Page(browser)
        shown.open(app, who)
        keys = _right_ranks(shown)
        shown.press(*([str(5 - int(key)) for key in keys] if turned else keys), "Enter")
        shown.wait(1)
        shown.context.close()
        if not turned:
            app.ask("lead/overview", "lin")
    lead = Page(browser)
    lead.load_axe()
    lead.page.goto(f"{app.address}/lead#{app.tokens['lin']}")
    lead.page.wait_for_selector("#work:not([hidden])")
    lead.picture("rank-lead", full=True)
    assert lead.violations() == []
    assert "-1.00" in lead.read("#figures") and "Groups to look at" in lead.read("#pairs-title")
    heads = lead.page.locator("#people thead th").all_inner_texts()
    assert "first" in [one.lower() for one in heads] and "left" not in [one.lower() for one in heads]
    assert lead.page.locator("#people td[data-label=First]").count() == 2
    legend = lead.page.text_content("#legend") or ""
    assert "answer shown first" in legend and "flagged groups" in legend
    said = lead.page.locator("#labels li").all_inner_texts()
    assert [one.partition(",")[0].split()[0] for one in said] == ["ada", "grace"] and said[0] != said[1]
    assert all(one.count(">") == 3 for one in said)
    lead.page.focus("#panel")
    lead.press("1", "1", "2", "3")
    assert lead.read("#strength") == "A = B > C > D"
    lead.press("Enter")
    sync_api.expect(lead.page.locator("#message")).to_contain_text("The verdict is saved")
    assert lead.wrong == []
    (final,) = _state(tmp_path).adjudicated.values()
    assert final.lead == "lin" and final.verdict is None and [len(tier) for tier in final.tiers or ()] == [2, 1, 1]
    lead.page.click("[data-list=adjudicated]")
    sync_api.expect(lead.page.locator("#labels")).to_contain_text("decided: A = B > C > D")
    lead.page.click("#withdraw")
    sync_api.expect(lead.page.locator("#message")).to_contain_text("taken back")
    assert _state(tmp_path).adjudicated == {}


def test_a_lead_s_page_that_begins_again_has_everything_once(browser: Any, app: Any) -> None:
    lead = Page(browser)
    cut: list[str] = []

    def once(route: Any) -> None:
        cut.append(route.request.url)
        route.abort() if len(cut) == 1 else route.continue_()

    lead.page.route("**/api/lead/overview", once)
    lead.page.goto(f"{app.address}/lead#{app.tokens['lin']}")
    lead.page.wait_for_selector("#work:not([hidden])")
    assert len(cut) > 1
    assert lead.read("#people thead").split().count("Person") == 1
    assert lead.page.locator("#lists button").count() == 6
