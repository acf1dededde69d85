"""How figures are rounded: never onto the other side of what they mean."""

import pytest

from pipeline.evaluation.stats.estimate import (
    Delta,
    Estimate,
    number_interval,
    p_text,
    percent,
    percent_interval,
    points_interval,
    signed_interval,
    signed_points,
)


def delta(value, low, high, p_value=0.01):
    return Delta(value=value, low=low, high=high, n=500, p_value=p_value)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (1.0, 0, "100 %"),
        (499 / 500, 0, "99.8 %"),  # one of 500 did not
        (1 / 500, 0, "0.2 %"),
        (0.0, 0, "0 %"),
        (0.16, 0, "16 %"),
        (0.742, 1, "74.2 %"),
        (0.50004, 1, "50.004 %"),
        (0.5, 1, "50.0 %"),
        (1 - 1e-9, 0, "100 %"),  # closer than any sample could tell
    ],
)
def test_only_all_and_none_are_shown_as_all_and_none(value, digits, text):
    assert percent(value, digits) == text


def test_a_bound_beside_one_half_stays_beside_it():
    assert percent_interval(Estimate(value=0.54, low=0.5002, high=0.58, n=500)) == "54.0 % [50.02, 58.0]"
    assert percent_interval(Estimate(value=0.46, low=0.42, high=0.49998, n=500)) == "46.0 % [42.0, 49.998]"


def test_a_difference_beside_none_stays_beside_it():
    # 6 of 5,000 lost, none won, is a mark; `(0) ▼` would contradict it.
    assert signed_points(delta(-6 / 5000, -0.002, -0.0004), 0) == "-0.1"
    assert signed_points(delta(0.0, 0.0, 0.0), 0) == "0"
    assert signed_points(delta(-0.57, -0.7, -0.4), 0) == "-57"
    assert points_interval(delta(0.032, 0.0004, 0.06)) == "+3.2 points [0.04, 6.0]"
    assert signed_interval(delta(0.29, 0.004, 0.43)) == "+0.29 [0.004, 0.43]"
    assert signed_interval(delta(-0.001, -0.02, 0.02)) == "-0.001 [-0.02, 0.02]"
    assert signed_interval(delta(0.0, -0.02, 0.02)) == "0.00 [-0.02, 0.02]"
    assert number_interval(delta(-0.001, -0.02, 0.02)) == "0.00 [-0.02, 0.02]"


@pytest.mark.parametrize(
    ("p_value", "text"), [(0.0496, "p = 0.0496"), (0.0504, "p = 0.05"), (0.012, "p = 0.012"), (1.0, "p = 1")]
)
def test_a_p_value_stays_on_its_side_of_five_percent(p_value, text):
    assert p_text(p_value) == text
