"""Paired differences: exact tests by hand and against scipy, error rates under no difference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.errors import PipelineError
from pipeline.evaluation.stats.differences import exact_mcnemar, paired_difference, sign_flip, sign_test


def test_mcnemar_by_hand():
    # 5 prompts only the policy has right, 1 only the baseline: 2 · (C(6,0) + C(6,1)) / 2⁶ = 14/64.
    policy = [1] * 5 + [0] + [1] * 4 + [0] * 3
    baseline = [0] * 5 + [1] + [1] * 4 + [0] * 3
    assert exact_mcnemar(policy, baseline) == pytest.approx(14 / 64)


@given(st.integers(0, 40), st.integers(0, 40))
def test_sign_test_is_the_exact_binomial(wins, losses):
    expected = stats.binomtest(wins, wins + losses, 0.5).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected)
    assert sign_test(wins, losses) == sign_test(losses, wins)


def test_sign_flip_by_hand():
    # |±1 ±2 ±3| ≥ 6 only for all plus and all minus: 2 of 8 patterns.
    assert sign_flip([1, 2, 3], seed=0) == pytest.approx(0.25)
    # 1 + 2 - 3 = 0: every pattern is at least as far from zero.
    assert sign_flip([1, 2, -3], seed=0) == 1.0
    # Zeros carry no sign and change nothing.
    assert sign_flip([0, 1, 0, 2, 3], seed=0) == pytest.approx(0.25)
    assert sign_flip([0, 0], seed=0) == 1.0


def test_sign_flip_exact_matches_scipy():
    values = np.random.default_rng(0).normal(loc=0.4, size=12)
    oracle = stats.permutation_test(
        (values,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert sign_flip(values, seed=0) == pytest.approx(oracle.pvalue, abs=1e-12)


def test_sign_flip_sampled_is_close_to_the_normal_test():
    # 400 differences with mean near 0.1 and unit spread: z near 2; two-sided normal p within Monte-Carlo error.
    values = np.random.default_rng(5).normal(loc=0.1, size=400)
    z = values.sum() / np.sqrt((values**2).sum())
    assert sign_flip(values, seed=1) == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.01)
    assert sign_flip(values, seed=1) == sign_flip(values, seed=1)
    # Never zero: the smallest value is one in 10,001.
    assert sign_flip(values + 5, seed=1) == pytest.approx(1 / 10_001)


def test_difference_by_hand():
    # right → wrong twice, wrong → right once, of 8: (1 - 2) / 8 = -0.125; McNemar 1 against 2: p = 1.
    policy = [0, 0, 1, 1, 1, 0, 0, 1]
    baseline = [1, 1, 0, 1, 1, 0, 0, 1]
    got = paired_difference(policy, baseline, seed=0, bounds=(0, 1))
    assert got.value == pytest.approx(-0.125)
    assert got.p_value == pytest.approx(1.0)
    assert got.low < got.value < got.high
    assert not got.is_below()


def test_lower_beyond_noise():
    # 9 right → wrong, none back: p = 2/2⁹ = 0.0039.
    got = paired_difference([0] * 9 + [1] * 31, [1] * 40, seed=0, bounds=(0, 1))
    assert got.p_value == pytest.approx(2 / 512)
    assert got.is_below(0.95)
    assert got.is_below(0.99)
    assert not got.is_below(0.999)
    assert not paired_difference([1] * 40, [0] * 9 + [1] * 31, seed=0).is_below()


def test_shares_use_the_sign_flip():
    # Scores between 0 and 1 are not McNemar's: differences +0.5 three times: 2 of 8 patterns.
    got = paired_difference([1, 1, 1], [0.5, 0.5, 0.5], seed=0, bounds=(0, 1))
    assert got.p_value == pytest.approx(0.25)


def test_equal_models_have_no_difference_and_a_bounded_interval():
    # Differences lie in [-1, 1]; unseen share 1 - 0.025^(1/50) = 0.071122 could all be at either end.
    got = paired_difference([1, 0] * 25, [1, 0] * 25, seed=0, bounds=(0, 1))
    assert (got.value, got.p_value) == (0.0, 1.0)
    assert (got.low, got.high) == pytest.approx((-0.071122, 0.071122), abs=1e-6)


def test_error_rate_under_no_difference():
    # Two models, equally good, correlated: p < 0.05 in at most about 5 % of 400 repetitions.
    random = np.random.default_rng(2)
    binary = soft = covered = 0
    for seed in range(400):
        common = random.random(60) < 0.5
        policy = np.where(common, 1, random.random(60) < 0.4).astype(float)
        baseline = np.where(common, 1, random.random(60) < 0.4).astype(float)
        got = paired_difference(policy, baseline, seed=seed, bounds=(0, 1))
        binary += got.p_value < 0.05
        covered += got.low <= 0 <= got.high
        soft += sign_flip(random.normal(size=30), seed=seed, patterns=1_000) < 0.05
    assert binary / 400 <= 0.06
    assert 0.02 <= soft / 400 <= 0.08
    assert 0.93 <= covered / 400 <= 0.99


def test_refuses_unequal_lengths():
    with pytest.raises(PipelineError, match="2 scores against 1"):
        paired_difference([1, 2], [1], seed=0)
