"""Win rates: ties half, swap symmetry, several samples per prompt."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.errors import PipelineError
from pipeline.evaluation.stats.winrate import outcomes, win_rate

SCORES = arrays(np.float64, st.integers(1, 30), elements=st.integers(-3, 3).map(float))


def test_by_hand():
    # better, worse, equal, better, better: 3 wins, 1 tie, 1 loss: (3 + 0.5) / 5 = 0.7; without ties 3 / 4.
    got = win_rate([2, 0, 1, 5, 1], [1, 1, 1, 0, 0], seed=0)
    assert got.estimate.value == pytest.approx(0.7)
    assert (got.wins, got.ties, got.losses) == (3, 1, 1)
    assert got.decided is not None
    assert (got.decided.value, got.decided.n) == (0.75, 4)
    # sign test, 3 of 4: 2 · (C(4,3) + C(4,4)) / 2⁴ = 10/16
    assert got.p_value == pytest.approx(0.625)


def test_tie_margin():
    # gaps 0.05, 0.2 and -0.1 with margin 0.1: tie, win, tie (a gap of exactly the margin ties).
    assert outcomes([1.05, 1.2, 0.0], [1.0, 1.0, 0.1], tie_margin=0.1).tolist() == [0.5, 1.0, 0.5]
    with pytest.raises(PipelineError, match="tie margin"):
        outcomes([1], [1], tie_margin=-1)


def test_all_pairs_of_samples_are_compared():
    # policy {1, 3} against baseline {2}: one of two won. {2, 2} against {2, 0}: tie, win, tie, win → 0.75.
    assert outcomes([[1, 3]], [2]).tolist() == [0.5]
    assert outcomes([[2, 2]], [[2, 0]]).tolist() == [0.75]
    got = win_rate([[1, 3], [5, 5]], [[2, 2], [1, 9]], seed=0)
    # 0.5 and 0.5: prompts, not judgements, are counted.
    assert (got.estimate.value, got.estimate.n, got.ties) == (0.5, 2, 2)


@given(SCORES)
def test_a_model_against_itself_is_one_half(scores):
    got = win_rate(scores, scores, seed=0, resamples=50)
    assert got.estimate.value == 0.5
    assert (got.wins, got.losses, got.decided, got.p_value) == (0, 0, None, 1.0)
    assert got.estimate.low <= 0.5 <= got.estimate.high


@given(st.data())
def test_swapping_mirrors(data):
    policy = data.draw(SCORES)
    baseline = data.draw(arrays(np.float64, len(policy), elements=st.integers(-3, 3).map(float)))
    one = win_rate(policy, baseline, seed=0, resamples=500)
    other = win_rate(baseline, policy, seed=0, resamples=500)
    assert one.estimate.value == pytest.approx(1 - other.estimate.value)
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
    assert one.p_value == pytest.approx(other.p_value)
    assert one.estimate.low == pytest.approx(1 - other.estimate.high, abs=1e-9)
    assert one.estimate.high == pytest.approx(1 - other.estimate.low, abs=1e-9)


@given(SCORES, st.floats(0.1, 5), st.floats(-5, 5))
def test_only_the_order_of_scores_counts(scores, scale, shift):
    other = np.roll(scores, 1)
    moved = outcomes(np.round(scale, 2) * scores + shift, np.round(scale, 2) * other + shift)
    assert moved.tolist() == outcomes(scores, other).tolist()


def test_the_interval_narrows_with_the_root_of_the_prompts():
    # At 50 % without ties: half-width 1.96 · 0.5 / √n = 0.098 for n = 100 and 0.049 for n = 400.
    for n, half_width in ((100, 0.098), (400, 0.049)):
        got = win_rate(np.arange(n) % 2, np.full(n, 0.5), seed=0, resamples=4_000)
        assert got.estimate.half_width == pytest.approx(half_width, rel=0.1)


def test_winning_every_prompt_is_not_certainty():
    # 30 of 30: exact lower bound 0.025^(1/30) = 0.884297.
    got = win_rate(np.ones(30), np.zeros(30), seed=0)
    assert (got.estimate.low, got.estimate.high) == pytest.approx((0.884297, 1.0), abs=1e-6)


@pytest.mark.parametrize(("policy", "baseline"), [([1, 2], [1]), ([], []), ([float("nan")], [1])])
def test_refuses_what_cannot_be_paired(policy, baseline):
    with pytest.raises(PipelineError):
        win_rate(policy, baseline, seed=0)
