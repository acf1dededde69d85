"""Dimensions: what a recipe and a person may say in them, and that ratings are of responses, not of sides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import SIZES, Page, sync_api

from pipeline.errors import PipelineError
from pipeline.preferences.dimensions import Dimension, SideRating, by_response, check_ratings
from pipeline.preferences.ledger import Ledger

DIMENSIONS = "[{name: helpful, rated: 5}, {name: honest, rationale: true}]"


@pytest.fixture
def rated(people: Path, open_app: Callable[..., Any], tmp_path: Path) -> Any:
    """Start the app with two dimensions."""
    people.write_text(people.read_text().replace("kind: collect,", f"kind: collect, dimensions: {DIMENSIONS},"))
    return open_app("ada", url=f"sqlite:///{tmp_path / 'l.db'}")


def _labels(folder: Path) -> list[Any]:
    events = Ledger(f"sqlite:///{folder / 'l.db'}", folder.name).events()
    return [event.body for event in events if event.kind == "label"]


@pytest.mark.parametrize(
    ("dimensions", "told"),
    [
        ("[{name: a}, {name: a}]", "dimensions names a twice; each needs a name of its own"),
        ("[{name: a, rated: 1}]", "dimensions.0.rated is 1; it must be >= 2"),
        ("[{name: a, rated: 5, scale: 3}]", "scale"),
        ("[{name: ''}]", "at least 1"),
    ],
)
def test_dimensions_that_cannot_be_are_refused(people: Path, call: Any, dimensions: str, told: str) -> None:
    people.write_text(people.read_text().replace("kind: collect,", f"kind: collect, dimensions: {dimensions},"))
    ended = call("check", str(people), cwd=people.parent)
    assert ended.returncode == 2 and told in ended.stdout + ended.stderr, ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("ratings", "told"),
    [
        ({"kind": {"left": 1}}, "no dimension is called 'kind'"),
        ({"helpful": {"left": 6}}, "helpful is rated 6; expected 1 to 5"),
        ({"helpful": {"better": "left"}}, "helpful is rated"),
        ({"honest": {"right": 1}}, "honest is compared"),
    ],
)
def test_ratings_that_cannot_be_are_refused(ratings: dict[str, Any], told: str) -> None:
    dimensions = [Dimension(name="helpful", rated=5), Dimension(name="honest")]
    given = {name: SideRating(**one) for name, one in ratings.items()}
    with pytest.raises(PipelineError) as raised:
        check_ratings(given, dimensions)
    assert told in str(raised.value.problems[0])


def test_ratings_follow_the_responses_when_the_sides_are_exchanged() -> None:
    ratings = {"helpful": SideRating(left=4, right=2), "honest": SideRating(better="left", rationale="cites")}
    assert by_response(ratings, swapped=False) == {
        "helpful": {"first": 4, "second": 2},
        "honest": {"better": "first", "rationale": "cites"},
    }
    assert by_response(ratings, swapped=True) == {
        "helpful": {"first": 2, "second": 4},
        "honest": {"better": "second", "rationale": "cites"},
    }
    assert by_response({"a": SideRating(better="tie"), "b": SideRating()}, swapped=True) == {"a": {"better": "tie"}}


def test_ratings_are_given_by_keyboard_and_written_by_the_stage(
    browser: Any, rated: Any, people: Path, call: Any, tmp_path: Path
) -> None:
    shown = Page(browser)
    shown.open(rated, "ada")
    shown.press(shown.better(), "r", "4", "2", "1")  # helpful: A 4, B 2; honest: A
    shown.page.keyboard.type("1 reason, s")
    shown.press("Enter")
    left = shown.better() == "1"
    shown.press("Enter")
    shown.wait(1)
    assert shown.page.locator("#dimensions input:checked").count() == 0  # of the next pair
    shown.press("r", "5", "Escape", "3", "Enter")  # not all of them
    shown.wait(2)
    shown.press("u")
    shown.wait(1)
    assert shown.page.locator("#dimensions input:checked").count() == 1
    for done in range(2, 7):
        shown.press(shown.better(), "Enter")
        shown.wait(done)
    assert shown.wrong == []
    first = _labels(tmp_path)[0]["ratings"]
    expected = {"first": 4, "second": 2} if left else {"first": 2, "second": 4}
    better = "first" if left else "second"
    assert first == {"helpful": expected, "honest": {"better": better, "rationale": "1 reason, s"}}
    ended = call(
        "run", str(people), "--set", f"stages.labels.batch={people.parent.name}",
        "--set", f"stages.labels.ledger=sqlite:///{tmp_path / 'l.db'}", "--store", "store", cwd=people.parent,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (file,) = (people.parent / "store").rglob("ratings.jsonl")
    rows = [json.loads(text) for text in file.read_text().splitlines()]
    assert [row["annotator"] for row in rows] == ["ada", "ada"]
    assert rows[0]["ratings"] == first and rows[0]["first"][0]["content"].startswith("right")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_dimensions_fit_and_say_their_names(browser: Any, rated: Any, size: str, scheme: str) -> None:
    shown = Page(browser, size, scheme)
    shown.open(rated, "ada")
    groups = shown.page.locator("#dimensions [role=radiogroup]")
    names = groups.evaluate_all("all => all.map((one) => one.getAttribute('aria-label'))")
    assert names == ["helpful of A", "helpful of B", "honest"]
    shown.press("1", "r", "3", "ArrowRight", "Tab")
    assert shown.page.locator("#dimensions input:checked").count() == 2
    assert shown.page.get_attribute("[data-choice=left]", "aria-checked") == "true"  # the arrow was the group's
    shown.picture(f"dimensions-{size}-{scheme}", full=True)
    assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    sync_api.expect(shown.page.get_by_label("honest: why?")).to_be_visible()
    assert shown.wrong == []
