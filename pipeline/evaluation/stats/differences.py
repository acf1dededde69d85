"""Paired differences of two models on the same prompts: mean, interval, and an exact or permutation p-value.

Owns paired tests. Knows nothing of what the scores measure.

Shape legend: N prompts, S samples per prompt, P sign patterns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pipeline.errors import PipelineError, Problem, counted
from pipeline.evaluation.stats.estimate import Delta
from pipeline.evaluation.stats.intervals import LEVEL, RESAMPLES, Floats, Method, mean_interval, observations

PATTERNS = 10_000
_EXACT_UP_TO = 14
_CELLS_AT_ONCE = 4_000_000


def paired_difference(
    policy: ArrayLike,
    baseline: ArrayLike,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    method: Method = "bca",
    bounds: tuple[float, float] | None = None,
) -> Delta:
    """Return mean(policy - baseline) over prompts, with interval and p-value.

    The p-value is the exact McNemar test when every score is 0 or 1, the sign-flip permutation test otherwise.

    Args:
        policy: scores, shape (N,) or (N, S).
        baseline: scores on the same prompts in the same order, shape (N,) or (N, T).
        seed: seed of the bootstrap and of the permutation test.
        resamples: number of bootstrap resamples.
        level: confidence level.
        method: method of the bootstrap.
        bounds: smallest and largest possible score; used when all differences are equal.

    Raises:
        PipelineError: the numbers of prompts differ.
    """
    policy_N, baseline_N = paired(policy, baseline)
    differences_N = policy_N - baseline_N
    reach = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    estimate = mean_interval(differences_N, seed=seed, resamples=resamples, level=level, method=method, bounds=reach)
    is_binary = bool(np.isin(policy_N, (0, 1)).all() and np.isin(baseline_N, (0, 1)).all())
    p_value = exact_mcnemar(policy_N, baseline_N) if is_binary else sign_flip(differences_N, seed=seed)
    return Delta(**estimate.model_dump(), p_value=p_value)


def exact_mcnemar(policy: ArrayLike, baseline: ArrayLike) -> float:
    """Return the two-sided exact p-value for paired 0/1 scores.

    Only prompts with different scores count: under the null hypothesis each of them is a fair coin flip.

    Reference: McNemar (1947), Note on the sampling error of the difference between correlated proportions.
    """
    policy_N, baseline_N = paired(policy, baseline)
    return sign_test(int((policy_N > baseline_N).sum()), int((policy_N < baseline_N).sum()))


def sign_test(wins: int, losses: int) -> float:
    """Return the two-sided exact p-value of the sign test; ties are left out."""
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def sign_flip(differences: ArrayLike, *, seed: int, patterns: int = PATTERNS) -> float:
    """Return the two-sided p-value of the sign-flip permutation test of a zero mean.

    Exact, over all sign patterns, when at most 14 differences are not zero; else over ``patterns`` random patterns.

    Reference: Fisher (1935), The Design of Experiments, §21; Phipson and Smyth (2010) for the added one.
    """
    values_N = observations(differences)
    values_N = values_N[values_N != 0]
    if len(values_N) == 0:
        return 1.0
    observed = abs(float(values_N.sum())) * (
        1 - 1e-12
    )  # equal sums must count despite rounding in another order of summation
    if len(values_N) <= _EXACT_UP_TO:
        bits_PN = (np.arange(2 ** len(values_N))[:, None] >> np.arange(len(values_N))) & 1
        return float(np.mean(np.abs((1 - 2 * bits_PN) @ values_N) >= observed))
    random = np.random.default_rng(seed)
    step = max(1, _CELLS_AT_ONCE // len(values_N))
    extreme = 0
    for start in range(0, patterns, step):
        bits_PN = random.integers(0, 2, size=(min(step, patterns - start), len(values_N)), dtype=np.int8)
        extreme += int((np.abs((1 - 2 * bits_PN) @ values_N) >= observed).sum())
    return (1 + extreme) / (1 + patterns)


def paired(policy: ArrayLike, baseline: ArrayLike) -> tuple[Floats, Floats]:
    """Return one score per prompt for both models.

    Raises:
        PipelineError: the numbers of prompts differ.
    """
    policy_N, baseline_N = observations(policy), observations(baseline)
    if len(policy_N) != len(baseline_N):
        raise PipelineError(
            Problem(
                f"{counted(len(policy_N), 'score')} against {len(baseline_N)}",
                "the same prompts for both, in the same order",
            )
        )
    return policy_N, baseline_N
