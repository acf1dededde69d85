"""The simulated people of the quickstart: they prefer what is better, not always, and never contradict themselves."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "data" / "quickstart"
RIGHT, WRONG, POLITE = "The sum of 3 and 4 is 7.", "The sum of 3 and 4 is 3.", "I hope that helps."


@pytest.fixture(scope="module")
def people() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    try:
        import people as module  # type: ignore[import-not-found]

        yield module
    finally:
        sys.path.remove(str(FOLDER))


def verdicts(people: ModuleType, first: str, second: str, count: int = 1000) -> list[float]:
    """Return what is said of one pair of answers to many questions."""
    asked = [[{"role": "user", "content": f"What is 3 plus 4? ({number})"}] for number in range(count)]
    return people.prefer(asked, [(first, second)] * count, answer=[RIGHT] * count, unsafe=[False] * count)


@pytest.mark.parametrize(
    ("better", "worse", "chance"),
    [
        (RIGHT, WRONG, 0.998),  # 3 points apart
        (f"{RIGHT} {POLITE}", RIGHT, 0.881),  # 1 point
        (RIGHT, f"{RIGHT} Questions like this can be tricky.", 0.731),  # half a point
        (WRONG, WRONG.replace("3.", "4."), 0.5),
    ],
)
def test_how_often_the_better_answer_is_preferred(people: ModuleType, better: str, worse: str, chance: float) -> None:
    share = sum(verdicts(people, better, worse)) / 1000
    assert share == pytest.approx(chance, abs=0.04)


def test_the_order_of_two_answers_does_not_matter(people: ModuleType) -> None:
    polite = f"{RIGHT} {POLITE}"
    forwards, backwards = verdicts(people, polite, RIGHT), verdicts(people, RIGHT, polite)
    assert [1.0 - one for one in backwards] == forwards
    assert set(forwards) == {0.0, 1.0}
    assert verdicts(people, polite, RIGHT) == forwards
