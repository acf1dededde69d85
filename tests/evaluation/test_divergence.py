"""KL estimators: two tokens by hand, and samples of a known distribution."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.evaluation.stats.divergence import divergence

LN2 = 0.6931472
LN_2_3 = -0.4054651


def test_by_hand():
    # Policy (1/2, 1/2), reference (1/4, 3/4), each token sampled once, one sequence each.
    # k1: ln(0.5/0.25) = ln 2; ln(0.5/0.75) = ln 2/3. Mean = 0.1438410 = KL exactly.
    # k3: r = 0.5: -0.5 + 0.6931472 = 0.1931472; r = 1.5: 0.5 - 0.4054651 = 0.0945349. Mean = 0.1438410 too.
    got = divergence(np.log([[0.5], [0.5]]), np.log([[0.25], [0.75]]), [[1], [1]], seed=0)
    assert got.k1_per_sequence.value == pytest.approx((LN2 + LN_2_3) / 2, abs=1e-6)
    assert got.k3_per_sequence.value == pytest.approx((0.1931472 + 0.0945349) / 2, abs=1e-6)
    assert got.k1_per_sequence.n == 2


def test_per_sequence_sums_and_per_token_averages():
    # Sequence 1 has tokens with k1 = ln 2 and ln 2 (sum 2 ln 2), sequence 2 one token with k1 = ln 2/3 and padding.
    policy = np.log([[0.5, 0.5], [0.5, 0.9]])
    reference = np.log([[0.25, 0.25], [0.75, 0.1]])
    got = divergence(policy, reference, [[1, 1], [1, 0]], seed=0)
    assert got.tokens == 3
    assert got.k1_per_sequence.value == pytest.approx((2 * LN2 + LN_2_3) / 2, abs=1e-6)
    assert got.k1_per_token.value == pytest.approx((2 * LN2 + LN_2_3) / 3, abs=1e-6)
    assert got.k3_per_token.value == pytest.approx((2 * 0.1931472 + 0.0945349) / 3, abs=1e-6)


def test_masked_values_may_be_anything():
    policy = np.log([[0.5, 0.5]])
    plain = divergence(policy, np.log([[0.25, 0.5]]), [[1, 0]], seed=0)
    rubbish = divergence([[policy[0, 0], np.nan]], [[np.log(0.25), -np.inf]], [[True, False]], seed=0)
    assert plain == rubbish


def test_a_policy_is_at_distance_zero_from_itself():
    logprobs = np.log(np.random.default_rng(0).random((20, 7)))
    got = divergence(logprobs, logprobs, np.ones((20, 7)), seed=0)
    for each in (got.k1_per_sequence, got.k3_per_sequence, got.k1_per_token, got.k3_per_token):
        assert (each.value, each.low, each.high) == (0, 0, 0)


def test_recovers_a_known_divergence():
    # 5 independent tokens a sequence from policy p, reference q: KL per token Σ p ln(p/q), per sequence five times it.
    p, q = np.array([0.6, 0.3, 0.1]), np.array([0.4, 0.4, 0.2])
    true_kl = float((p * np.log(p / q)).sum())
    assert true_kl == pytest.approx(0.0876599, abs=1e-6)  # 0.2432791 - 0.0863046 - 0.0693147
    random = np.random.default_rng(1)
    covered = {"k1": 0, "k3": 0}
    for seed in range(120):
        tokens = random.choice(3, p=p, size=(150, 5))
        got = divergence(np.log(p)[tokens], np.log(q)[tokens], np.ones((150, 5)), seed=seed)
        covered["k1"] += got.k1_per_sequence.low <= 5 * true_kl <= got.k1_per_sequence.high
        covered["k3"] += got.k3_per_token.low <= true_kl <= got.k3_per_token.high
        # Less noise is the point of k3.
        assert got.k3_per_sequence.half_width < got.k1_per_sequence.half_width
    assert covered["k1"] / 120 >= 0.92
    assert covered["k3"] / 120 >= 0.92


@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=20))
def test_k3_is_never_negative(pairs):
    policy, reference = np.array(pairs).T
    got = divergence(policy[:, None], reference[:, None], np.ones((len(pairs), 1)), seed=0, resamples=50)
    assert got.k3_per_sequence.value >= 0
    assert got.k3_per_sequence.low >= 0


@pytest.mark.parametrize(
    ("policy", "reference", "mask", "message"),
    [
        ([[-1.0, -1.0]], [[-1.0]], [[1, 1]], "shapes"),
        ([-1.0], [-1.0], [1], "shapes"),
        ([[-1.0], [-1.0]], [[-1.0], [-1.0]], [[1], [0]], "1 of 2 sequences has no token"),
        ([[-1.0]], [[-np.inf]], [[1]], "of the reference"),
        ([[0.5]], [[-1.0]], [[1]], "of the policy"),
    ],
)
def test_refuses_what_is_no_log_probability(policy, reference, mask, message):
    with pytest.raises(PipelineError, match=message):
        divergence(policy, reference, mask, seed=0)
