"""Intervals for means, ratios and proportions.

Owns the bootstrap (over prompts, never over judgements) and Wilson's interval. Knows nothing of models or metrics.

Shape legend: N observations (prompts, pairs, sequences), S samples per observation, R resamples, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.evaluation.stats.estimate import Estimate

Floats = NDArray[np.float64]
Method = Literal["percentile", "bca"]

RESAMPLES = 2_000
LEVEL = 0.95
NORMAL = NormalDist()
_quantile, _cdf = np.vectorize(NORMAL.inv_cdf, otypes=[float]), np.vectorize(NORMAL.cdf, otypes=[float])
"""Of the standard normal distribution. To import scipy's takes longer than most reports of labels."""

_DRAWS_AT_ONCE = 4_000_000


class IntervalOptions(TypedDict):
    """The arguments that every bootstrap takes: see `Bootstrap`."""

    seed: int
    resamples: int
    level: float


@dataclass(frozen=True)
class Bootstrap:
    """How a report computes its intervals and tests: the same figures give the same report.

    Attributes:
        seed: seed of every bootstrap and permutation test.
        resamples: number of resamples of every bootstrap.
        level: confidence level of every interval.
    """

    seed: int
    resamples: int = RESAMPLES
    level: float = LEVEL

    @property
    def options(self) -> IntervalOptions:
        """The same as keyword arguments of one interval."""
        return {"seed": self.seed, "resamples": self.resamples, "level": self.level}


def wilson(successes: float, n: int, *, level: float = LEVEL) -> Estimate:
    """Return Wilson's score interval for a proportion.

    Args:
        successes: how many of ``n`` succeeded; a tie may count one half.
        n: number of trials.
        level: confidence level.

    Raises:
        PipelineError: ``n`` is 0, or ``successes`` is not between 0 and ``n``.

    Reference: Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    if n < 1 or not 0 <= successes <= n:
        raise PipelineError(Problem(f"{successes:g} successes of {n}", "1 or more trials and 0 ≤ successes ≤ trials"))
    z = NORMAL.inv_cdf(0.5 + level / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # The exact bounds at 0 and n successes are 0 and 1; rounding must not push them past the value.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Estimate(value=share, low=float(low), high=float(high), n=n)


def mean_interval(
    values: ArrayLike,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    method: Method = "bca",
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """Return the mean with a bootstrap interval over observations.

    When all observations are equal, the bootstrap would have width 0. With ``bounds`` the interval is then that of
    `unvaried`; without bounds it has width 0.

    Args:
        values: shape (N,), or (N, S), whose S samples are averaged first, since they share a prompt.
        seed: seed of the resampling.
        resamples: number of resamples R.
        level: confidence level.
        method: ``percentile``, or ``bca`` (bias-corrected and accelerated).
        bounds: smallest and largest possible value of an observation.

    Raises:
        PipelineError: there are no values, or one is not finite.

    Reference: Efron (1987), Better bootstrap confidence intervals.
    """
    values_N = observations(values)
    if np.ptp(values_N) == 0:
        return unvaried(float(values_N[0]), len(values_N), level=level, bounds=bounds)
    means_R = _resampled_sums(values_N[:, None], seed, resamples)[:, 0] / len(values_N)
    return _interval(values_N, float(values_N.mean()), means_R, level, method)


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    method: Method = "bca",
) -> Estimate:
    """Return Σ numerators / Σ denominators with a bootstrap interval over observations.

    For example the mean per token: an observation is a sequence, with its sum and its number of tokens.

    Args:
        numerators: shape (N,).
        denominators: shape (N,), each > 0.
        seed: seed of the resampling.
        resamples: number of resamples R.
        level: confidence level.
        method: ``percentile`` or ``bca``.

    Raises:
        PipelineError: there are no values, one is not finite, the lengths differ, or a denominator is not above 0.
    """
    tops_N, bottoms_N = observations(numerators), observations(denominators)
    if len(tops_N) != len(bottoms_N) or bottoms_N.min() <= 0:
        raise PipelineError(
            Problem(
                f"{len(tops_N)} numerators, {len(bottoms_N)} denominators, the smallest {bottoms_N.min():g}",
                "as many of each, every denominator above 0",
            )
        )
    ratio = float(tops_N.sum() / bottoms_N.sum())
    # Linearised: the influence of an observation on the ratio, whose skewness gives the BCa acceleration.
    influence_N = tops_N - ratio * bottoms_N
    if np.ptp(influence_N) == 0:
        return unvaried(ratio, len(tops_N), level=level)
    sums_RC = _resampled_sums(np.column_stack([tops_N, bottoms_N]), seed, resamples)
    return _interval(influence_N, ratio, sums_RC[:, 0] / sums_RC[:, 1], level, method)


def share_interval(successes: ArrayLike, trials: ArrayLike, *, seed: int, level: float = LEVEL) -> Estimate:
    """Return a share with an interval: Wilson's if each cluster has one trial, else a bootstrap over clusters.

    Where all clusters have the same share, the bootstrap has no width; the interval is then that of `unvaried`.

    Args:
        successes: successes of each cluster, shape (N,).
        trials: trials of each cluster, shape (N,), each > 0.
        seed: seed of the resampling.
        level: confidence level.

    Raises:
        PipelineError: there are no clusters, or one has no trial.
    """
    successes_N, trials_N = observations(successes), observations(trials)
    if trials_N.max() == 1:
        return wilson(float(successes_N.sum()), len(trials_N), level=level)
    if trials_N.min() > 0 and np.ptp(successes_N / trials_N) == 0:
        share = float(successes_N.sum() / trials_N.sum())
        return unvaried(share, len(trials_N), level=level, bounds=(0.0, 1.0))
    return ratio_interval(successes_N, trials_N, seed=seed, level=level)


def unvaried(value: float, n: int, *, level: float = LEVEL, bounds: tuple[float, float] | None = None) -> Estimate:
    """Return the interval of a mean when all ``n`` observations equal ``value``.

    Other values with total probability q are absent from n draws with probability (1-q)^n, so q may be as large as
    1 - (alpha/2)^(1/n); all of these values could lie at either bound. For value 0 or 1 in bounds (0, 1) this is the
    exact Clopper-Pearson interval.
    """
    if bounds is None:
        return Estimate(value=value, low=value, high=value, n=n)
    unseen = 1 - ((1 - level) / 2) ** (1 / n)
    low, high = bounds
    return Estimate(value=value, low=value - unseen * (value - low), high=value + unseen * (high - value), n=n)


def observations(values: ArrayLike) -> Floats:
    """Return one number per observation: (N,) unchanged, (N, S) averaged over S.

    Raises:
        PipelineError: there are no values, or one is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.size == 0:
        raise PipelineError(Problem("no values to average", "one or more", "check that the data source has rows left"))
    if not np.isfinite(array).all():
        bad = int(np.size(array) - np.isfinite(array).sum())
        raise PipelineError(
            Problem(
                f"{bad} of {counted(array.size, 'value')} {agreeing(bad, 'is', 'are')} not finite", "finite numbers"
            )
        )
    return array if array.ndim == 1 else array.reshape(len(array), -1).mean(axis=1)


def _resampled_sums(columns_NC: NDArray[Any], seed: int, resamples: int) -> Floats:
    """Return column sums of R resamples of the rows, shape (R, C)."""
    n = len(columns_NC)
    random = np.random.default_rng(seed)
    sums_RC = np.empty((resamples, columns_NC.shape[1]))
    step = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        picked = random.integers(0, n, size=(stop - start, n), dtype=np.int32)
        for column in range(columns_NC.shape[1]):
            sums_RC[start:stop, column] = columns_NC[:, column].take(picked).sum(axis=1)
    return sums_RC


def _interval(influence_N: Floats, value: float, resampled_R: Floats, level: float, method: Method) -> Estimate:
    """Compute the interval from bootstrap replicates.

    Args:
        influence_N: influence of each observation on the estimate; only the ratio of its third and second moments
            matters.
        value: the estimate.
        resampled_R: the estimate on each resample.
        level: confidence level.
        method: ``percentile`` or ``bca``.
    """
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if method == "bca":
        centred = influence_N - influence_N.mean()
        centred /= np.abs(centred).max()  # the acceleration is scale-free, but the cube of 1e-110 underflows
        acceleration = (centred**3).sum() / (6 * (centred**2).sum() ** 1.5)
        # Ties count one half: resampled means of discrete scores often equal the estimate.
        below = np.mean(resampled_R < value) + np.mean(resampled_R == value) / 2
        bias = _quantile(np.clip(below, 1 / len(resampled_R), 1 - 1 / len(resampled_R)))
        shifted = bias + _quantile(tails)
        tails = _cdf(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(resampled_R, tails)
    return Estimate(value=value, low=float(low), high=float(high), n=len(influence_N))
