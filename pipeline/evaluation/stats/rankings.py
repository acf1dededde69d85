"""How far rankings of the same things agree. Knows nothing of where they come from.

Shape legend: K things that are ranked.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from pipeline.evaluation.stats.estimate import Estimate
from pipeline.evaluation.stats.intervals import LEVEL, mean_interval


def kendall_tau_b(one_K: Sequence[int], other_K: Sequence[int]) -> float | None:
    """Return Kendall's tau-b of two rankings: 1 for the same order, -1 for the reverse; None if one is all one tie.

    Args:
        one_K: rank of each thing; equal ranks are a tie.
        other_K: its rank in the other ranking.

    Source: Kendall (1945), The treatment of ties in ranking problems, equation 2.
    """
    first, second = np.triu_indices(len(one_K), 1)
    one_P, other_P = (np.sign(np.subtract.outer(ranks, ranks))[first, second] for ranks in (one_K, other_K))
    untied = float(np.abs(one_P).sum()) * float(np.abs(other_P).sum())
    return float((one_P * other_P).sum() / np.sqrt(untied)) if untied else None


def rank_agreement(rankings: Sequence[Sequence[Sequence[int]]], *, seed: int, level: float = LEVEL) -> Estimate | None:
    """Return Kendall's tau-b of two people's rankings, its mean over items; None when no item has two rankings.

    The value of an item is the mean over every two people who ranked it. The interval resamples items. Rankings that
    are all one tie have no tau-b, and are left out.

    Args:
        rankings: of each item, the ranks that each person gave.
        seed: seed of the resampling.
        level: confidence level.
    """
    means = []
    for given in rankings:
        taus = [kendall_tau_b(one, other) for one, other in combinations(given, 2)]
        known = [tau for tau in taus if tau is not None]
        if known:
            means.append(sum(known) / len(known))
    return mean_interval(means, seed=seed, level=level, bounds=(-1.0, 1.0)) if means else None
