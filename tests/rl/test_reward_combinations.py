"""How several rewards become one number."""

from __future__ import annotations

import math

import pytest

from pipeline.rl.rewards.sources import RewardSources, combine


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("sum", 6.0),
        ("mean", 2.0),
        ("min", 1.0),
        ("uwo", 2.0 - 2 / 3),  # mean 2, variance (1 + 0 + 1) / 3
    ],
)
def test_combinations_by_hand(how: str, expected: float) -> None:
    assert combine([1.0, 2.0, 3.0], how) == pytest.approx(expected)
    assert combine([], how) == 0.0


def test_a_reward_that_does_not_apply_is_left_out_of_every_combination() -> None:
    parts = {"a": [1.0, 4.0], "b": [math.nan, 1.0]}
    for how, expected in (("sum", [2.0, 11.0]), ("min", [2.0, 3.0])):
        sources = RewardSources(("a", "b"), (2.0, 3.0), (), how)
        assert sources.combined(parts) == expected
