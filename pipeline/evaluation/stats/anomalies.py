"""Annotators whose labels are not those of the crowd: Arena's sequential test, and a test of the side of the screen.

Nothing here decides about a person. A flag asks somebody to look.

Shape legend: N items, A annotators, V votes of one annotator, H votes of all others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.signedinteger[Any]]

ALPHA = 0.05
"""Probability that a person who votes like the crowd is flagged by a test, at most."""

FEWEST_VOTES = 5
"""Votes on items that others labelled too, below which nobody is tested."""

LOOKS = 5
"""Numbers of votes at which a person is tested, and by which ALPHA is divided."""


@dataclass(frozen=True)
class Anomaly:
    """How far a person's votes are from those of the crowd.

    Attributes:
        votes: number of votes that can be compared, because others labelled the same items.
        p: smallest p-value of the looks, times their number, at most 1; None with fewer than `FEWEST_VOTES` votes.
        side_p: p-value of the share of preferences for the left side against one half; None below `FEWEST_VOTES`.
    """

    votes: int
    p: float | None
    side_p: float | None

    @property
    def is_unlike_the_rest(self) -> bool:
        """Whether the votes are further from the others' than those of the crowd are."""
        return self.p is not None and self.p <= ALPHA

    @property
    def is_one_sided(self) -> bool:
        """Whether one side of the screen is preferred more often than chance allows."""
        return self.side_p is not None and self.side_p <= ALPHA


def anomalies(
    strength_NA: Integers, left_NA: Integers, order: Sequence[Sequence[int]], *, missing: int, seed: int
) -> list[Anomaly]:
    """Test each annotator against all others.

    The vote of a person on an item is 1, 0 or -1: the first response, neither, the second. It is as far from the crowd
    as it is from the mean of the others' votes on that item. Strengths do not count: who clicks at random with the
    smallest strength would be nearer to the mean than who is right with the largest. The p-value of a vote is the share
    of the others' votes that are at least as far from their own crowd, the person left out of it:
    ``p = (#{h > x} + u (1 + #{h = x})) / (H + 1)`` with u uniform, so that ties do not make it conservative. If the
    person's distances are exchangeable with the others', p is uniform. Fisher's statistic ``M_j = -2 Σ log p_i`` of the
    first j votes is compared with the χ² distribution of 2j degrees of freedom at five values of j, each at level α/5.

    Args:
        strength_NA: signed strengths, -3 to 3; 0 where neither response was preferred.
        left_NA: 1 where the response on the left was preferred, 0 where that on the right was, else -1.
        order: rows of the items of each annotator, in the order of their votes.
        missing: cell of `strength_NA` of an annotator who did not label the item.
        seed: seed of u.

    Source: Chiang et al. (2024), Chatbot Arena, arXiv:2403.04132, section 5.1 and equation 10. There, the crowd is the
    votes on the same two models, and five values of j are drawn between 1 and 100. Here an item has a few votes only,
    so that the distance from them is what is compared, and the values of j are fifths of the person's number of votes.
    """
    is_given_NA = (strength_NA != missing) & ((strength_NA != missing).sum(1) > 1)[:, None]
    item_L, column_L = np.nonzero(is_given_NA)
    votes = _Votes(item_L, column_L, np.sign(strength_NA[is_given_NA]).astype(float))
    results = []
    for column in range(strength_NA.shape[1]):
        rows = [row for row in order[column] if is_given_NA[row, column]]
        rng = np.random.default_rng([seed, column])
        p = _sequential_p(votes.distances(column, rows), votes.crowd(column), rng)
        results.append(Anomaly(len(rows), p, _side_p(left_NA[:, column])))
    return results


class _Votes:
    """The votes on items that several people labelled; L votes.

    Args:
        item_L: row of each vote.
        column_L: annotator of each vote.
        vote_L: 1, 0 or -1.
    """

    def __init__(self, item_L: NDArray[np.intp], column_L: NDArray[np.intp], vote_L: Floats) -> None:
        self.item_L, self.column_L, self.vote_L = item_L, column_L, vote_L
        size = int(item_L.max(initial=-1)) + 1
        self.count_N = np.bincount(item_L, minlength=size)
        self.total_N = np.bincount(item_L, weights=vote_L, minlength=size).astype(float)  # integers when it is empty

    def distances(self, column: int, rows: Sequence[int]) -> Floats:
        """Return how far an annotator's votes are from the mean of the others', in the order of the votes."""
        is_own_L = self.column_L == column
        vote_of = dict(zip(self.item_L[is_own_L].tolist(), self.vote_L[is_own_L].tolist(), strict=True))
        vote_V = np.array([vote_of[row] for row in rows], float)
        item_V = np.array(rows, int)
        return _rounded(vote_V - (self.total_N[item_V] - vote_V) / (self.count_N[item_V] - 1))

    def crowd(self, column: int) -> Floats:
        """Return how far each vote of the others is from the mean of the others but for this annotator, sorted."""
        is_own_L = self.column_L == column
        count_N, total_N = self.count_N.copy(), self.total_N.copy()
        count_N[self.item_L[is_own_L]] -= 1
        total_N[self.item_L[is_own_L]] -= self.vote_L[is_own_L]
        is_chosen_L = ~is_own_L & (count_N[self.item_L] > 1)
        item_H, vote_H = self.item_L[is_chosen_L], self.vote_L[is_chosen_L]
        return np.sort(_rounded(vote_H - (total_N[item_H] - vote_H) / (count_N[item_H] - 1)))


def _rounded(difference: Floats) -> Floats:
    """Return distances, without the noise of floating point that would part equal ones."""
    rounded: Floats = np.abs(difference).round(9)
    return rounded


def _sequential_p(distance_V: Floats, crowd_H: Floats, rng: np.random.Generator) -> float | None:
    if len(distance_V) < FEWEST_VOTES or not len(crowd_H):
        return None
    above_V = len(crowd_H) - np.searchsorted(crowd_H, distance_V, side="right")
    equal_V = len(crowd_H) - np.searchsorted(crowd_H, distance_V, side="left") - above_V
    u_V = 1 - rng.random(len(distance_V))  # above 0
    p_V = (above_V + u_V * (1 + equal_V)) / (len(crowd_H) + 1)
    fisher_V = -2 * np.cumsum(np.log(p_V))
    looks = {max(FEWEST_VOTES, round(len(distance_V) * look / LOOKS)) for look in range(1, LOOKS + 1)}
    return min(1.0, LOOKS * min(_chi_square_tail(float(fisher_V[j - 1]), int(j)) for j in looks))


def _chi_square_tail(x: float, half: int) -> float:
    """Return the probability that a χ² variable of 2·half degrees of freedom exceeds x: a Poisson sum."""
    log_terms = [-x / 2 + k * math.log(x / 2) - math.lgamma(k + 1) for k in range(half)] if x > 0 else [0.0]
    return min(1.0, math.fsum(map(math.exp, log_terms)))


def _side_p(left_N: Integers) -> float | None:
    """Return the two-sided p-value of the exact binomial test of as many preferences for either side."""
    n, left = int((left_N >= 0).sum()), int((left_N == 1).sum())
    if n < FEWEST_VOTES:
        return None
    log_half = n * math.log(0.5)
    fewer = min(left, n - left)
    tail = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + log_half for k in range(fewer + 1))
    return min(1.0, 2 * math.fsum(map(math.exp, tail)))
