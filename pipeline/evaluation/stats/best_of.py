"""The expected value of the best of n answers, estimated from N answers to a prompt, and its divergence.

Owns the estimator and the bound. Knows nothing of models and prompts: its input is scores.

Shape legend: N answers to one prompt.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from pipeline.errors import PipelineError, Problem
from pipeline.evaluation.stats.intervals import Floats


def expected_best(scores: ArrayLike, n: int, values: ArrayLike | None = None) -> float:
    """Return the mean value of the best-scored of n answers, over all sets of n of the N answers.

    This is the unbiased estimate of what best-of-n reaches on the prompt, with less variance than one draw of n: with
    the answers in ascending order of their scores, the i-th is the best of C(i - 1, n - 1) of the C(N, n) sets. Among
    equal scores each answer is the best equally often.

    Args:
        scores: scores by which the best is chosen, shape (N,).
        n: number of answers of which the best is taken, 1 to N.
        values: what is measured of the best answer, shape (N,); its score if None.

    Raises:
        PipelineError: there are fewer than n answers.

    Reference: Nakano et al. 2021, arXiv:2112.09332, appendix I; the same counting as for pass@k, Chen et al. 2021,
    arXiv:2107.03374, equation 1.
    """
    scores_N = np.asarray(scores, dtype=np.float64)
    values_N = scores_N if values is None else np.asarray(values, dtype=np.float64)
    total = len(scores_N)
    if not 1 <= n <= total:
        raise PipelineError(Problem(f"the best of {n} of {total} answers is asked for", f"n from 1 to {total}"))
    sets = math.comb(total, n)
    weights_N = np.array([math.comb(i, n - 1) / sets for i in range(total)])
    order = np.argsort(scores_N, kind="stable")
    return float(weights_N @ _shared(scores_N[order], values_N[order]))


def _shared(scores_N: Floats, values_N: Floats) -> Floats:
    """Return the values, each the mean of those with the same score."""
    _, groups, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    means: Floats = np.bincount(groups, weights=values_N) / counts
    return means[groups]


def kl_of_best(n: int) -> float:
    """Return the upper bound of the KL divergence of best-of-n from the policy it samples, in nats.

    References: Stiennon et al. 2020, arXiv:2009.01325, appendix G.3 (the formula log n - (n - 1) / n); Beirami et al.
    2024, arXiv:2401.01879 (it is an upper bound, and exact if no two answers are alike).
    """
    return math.log(n) - (n - 1) / n
