"""Intervals: values by hand, scipy as oracle, and whether they cover the truth as often as they say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.errors import PipelineError
from pipeline.evaluation.stats.estimate import Estimate
from pipeline.evaluation.stats.intervals import mean_interval, ratio_interval, unvaried, wilson


def test_wilson_by_hand():
    # z = 1.959964, z² = 3.841459; p = 8/10:
    # centre = (0.8 + 3.841459/20) / (1 + 0.3841459) = 0.99207295 / 1.3841459 = 0.716740
    # half = 1.959964/1.3841459 * sqrt(0.8*0.2/10 + 3.841459/400) = 1.416009 * sqrt(0.0256036) = 0.226576
    got = wilson(8, 10)
    assert got.value == 0.8
    assert got.low == pytest.approx(0.490162, abs=1e-5)
    assert got.high == pytest.approx(0.943318, abs=1e-5)
    assert got.n == 10


@pytest.mark.parametrize(("successes", "n"), [(0, 7), (1, 7), (50, 100), (99, 100), (100, 100), (333, 1000)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_wilson_matches_scipy(successes, n, level):
    oracle = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    got = wilson(successes, n, level=level)
    assert (got.low, got.high) == pytest.approx((oracle.low, oracle.high), abs=1e-9)


def test_wilson_counts_a_tie_as_half():
    # 3 wins and 2 ties of 10: 4 of 10, the same interval as 4 whole successes.
    assert wilson(3 + 2 * 0.5, 10) == wilson(4, 10)


@given(n=st.integers(1, 2000), share=st.floats(0, 1))
def test_wilson_laws(n, share):
    successes = round(share * n)
    got, mirrored = wilson(successes, n), wilson(n - successes, n)
    assert 0 <= got.low <= got.value <= got.high <= 1
    assert mirrored.low == pytest.approx(1 - got.high, abs=1e-12)
    assert wilson(successes, n, level=0.99).half_width >= got.half_width


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(PipelineError, match="successes of"):
        wilson(successes, n)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_matches_scipy(method):
    # Two Monte-Carlo runs differ; 20,000 resamples of each put the ends within a few per cent of the width.
    values = np.random.default_rng(1).exponential(size=80)
    oracle = stats.bootstrap((values,), np.mean, n_resamples=20_000, method=method, rng=2).confidence_interval
    got = mean_interval(values, seed=3, resamples=20_000, method=method)
    width = oracle.high - oracle.low
    assert got.value == pytest.approx(values.mean())
    assert got.low == pytest.approx(oracle.low, abs=0.03 * width)
    assert got.high == pytest.approx(oracle.high, abs=0.03 * width)


def test_bca_leans_towards_the_long_tail():
    # Of a right-skewed sample the percentile interval is too far left: BCa moves both ends to the right.
    values = np.random.default_rng(1).exponential(size=60)
    plain = mean_interval(values, seed=0, resamples=8_000, method="percentile")
    corrected = mean_interval(values, seed=0, resamples=8_000, method="bca")
    assert corrected.low > plain.low
    assert corrected.high > plain.high


def test_same_seed_same_interval_other_seed_another():
    values = np.random.default_rng(0).normal(size=50)
    assert mean_interval(values, seed=4) == mean_interval(values, seed=4)
    assert mean_interval(values, seed=4).low != mean_interval(values, seed=5).low


def test_resampling_in_pieces_covers_every_resample():
    # 3,000 values × 2,000 resamples exceed one piece (4 million draws); an unfilled piece would hold garbage.
    values = np.random.default_rng(0).normal(loc=5.0, size=3_000)
    got = mean_interval(values, seed=0)
    # ±1.96/√3000 = ±0.0358
    assert got.half_width == pytest.approx(0.0358, rel=0.1)


def test_samples_of_one_prompt_are_averaged_not_counted():
    # Two prompts with three samples each: means 1 and 3, so n = 2 and the mean is 2.
    got = mean_interval([[0, 1, 2], [2, 3, 4]], seed=0)
    assert (got.value, got.n) == (2.0, 2)
    assert got == mean_interval([1, 3], seed=0)


def test_unvaried_values_are_not_certainty():
    # All 20 won: the exact (Clopper-Pearson) interval is [0.025^(1/20), 1] = [0.831566, 1].
    got = mean_interval(np.ones(20), seed=0, bounds=(0, 1))
    assert (got.low, got.high) == pytest.approx((0.831566, 1.0), abs=1e-6)
    oracle = stats.binomtest(20, 20).proportion_ci(method="exact")
    assert got.low == pytest.approx(oracle.low, abs=1e-9)
    # All tied: each end may be off by half of what is unseen, (1 - 0.831566) / 2 = 0.084217.
    tied = unvaried(0.5, 20, bounds=(0, 1))
    assert (tied.low, tied.high) == pytest.approx((0.415783, 0.584217), abs=1e-6)
    # Without bounds nothing can be said.
    assert mean_interval([2.0, 2.0], seed=0) == Estimate(value=2, low=2, high=2, n=2)


def test_ratio_by_hand():
    # (1 + 5) / (2 + 10) = 0.5, not the mean of ratios; both observations have ratio 0.5, so no width.
    assert ratio_interval([1, 5], [2, 10], seed=0) == Estimate(value=0.5, low=0.5, high=0.5, n=2)
    # (3 + 5) / (2 + 10) = 2/3; the resamples can only give 3/2, 2/3 and 1/2.
    got = ratio_interval([3, 5], [2, 10], seed=0, method="percentile")
    assert got.value == pytest.approx(2 / 3)
    assert (got.low, got.high) == pytest.approx((0.5, 1.5))


@pytest.mark.parametrize("bottoms", [[1, 0], [1, -1], [1, 1, 1]])
def test_ratio_refuses_bad_denominators(bottoms):
    with pytest.raises(PipelineError, match="denominator"):
        ratio_interval([1, 2], bottoms, seed=0)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_mean_refuses_nothing_and_non_finite(values):
    with pytest.raises(PipelineError, match=r"no values|not finite"):
        mean_interval(values, seed=0)


@settings(max_examples=40)
@given(
    values=st.lists(st.floats(-100, 100), min_size=2, max_size=40),
    shift=st.floats(-50, 50),
    scale=st.floats(0.1, 10),
)
def test_mean_interval_moves_and_stretches_with_its_values(values, shift, scale):
    values = np.round(values, 3)
    plain = mean_interval(values, seed=0, resamples=200, method="percentile")
    moved = mean_interval(scale * values + shift, seed=0, resamples=200, method="percentile")
    assert moved.low == pytest.approx(scale * plain.low + shift, abs=1e-6)
    assert moved.high == pytest.approx(scale * plain.high + shift, abs=1e-6)


@pytest.mark.parametrize("n", [40, 120])
@pytest.mark.parametrize(
    ("name", "truth", "draw"),
    [
        ("win rate 0.70", 0.70, lambda r, n: r.choice([0, 0.5, 1], p=[0.15, 0.3, 0.55], size=n)),
        ("win rate 0.93", 0.93, lambda r, n: r.choice([0, 0.5, 1], p=[0.04, 0.06, 0.9], size=n)),
        ("normal", 0.0, lambda r, n: r.normal(size=n)),
    ],
)
def test_bootstrap_covers_the_truth(name, truth, draw, n):
    # 95 % intervals must hold the truth in about 95 % of 600 repetitions (standard error 0.9 %); neither a too
    # narrow interval (half the width covers 67 %) nor one twice as wide (99.99 %) passes.
    random = np.random.default_rng(7)
    hits = 0
    for seed in range(600):
        got = mean_interval(draw(random, n), seed=seed, bounds=(0, 1) if "win" in name else None)
        hits += got.low <= truth <= got.high
    assert 0.93 <= hits / 600 <= 0.99


def test_wilson_covers_the_truth():
    # Exact coverage from the binomial distribution, averaged over shares from 5 to 95 %: close to 95 %.
    covered = []
    for share in np.linspace(0.05, 0.95, 19):
        inside = [k for k in range(81) if wilson(k, 80).low <= share <= wilson(k, 80).high]
        covered.append(stats.binom.pmf(inside, 80, share).sum())
    assert 0.945 <= np.mean(covered) <= 0.96
    assert min(covered) >= 0.93


def test_ratio_covers_the_truth():
    # Sequences of 1 to 20 tokens, mean 0.3 per token.
    random = np.random.default_rng(3)
    hits = 0
    for seed in range(300):
        tokens = random.integers(1, 21, size=100)
        sums = random.gamma(shape=0.6 * tokens, scale=0.5)  # mean 0.3 per token
        got = ratio_interval(sums, tokens, seed=seed)
        hits += got.low <= 0.3 <= got.high
    assert 0.93 <= hits / 300 <= 0.99


def test_tiny_differences_have_an_interval():
    # The cube of 1e-150 is no float any more; the interval has the shape of that of 0 and 1.
    values = [0.0] * 5 + [1.0] * 3
    usual, tiny = (mean_interval([scale * value for value in values], seed=0) for scale in (1.0, 1e-150))
    assert (tiny.low, tiny.high) == pytest.approx((1e-150 * usual.low, 1e-150 * usual.high))
