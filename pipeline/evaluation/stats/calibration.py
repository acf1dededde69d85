"""Calibration of a preference model's confidence.

Owns expected calibration error (ECE), Brier score and temperature scaling. Knows nothing of models: its input is
margins, the score of the chosen answer minus that of the rejected one. Under Bradley-Terry P(chosen preferred) is
σ(margin).

Shape legend: N pairs.

Reference: Guo et al. (2017), On calibration of modern neural networks; Nixon et al. (2019) for bins of equal mass.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from pipeline.evaluation.stats.estimate import Record
from pipeline.evaluation.stats.intervals import Floats, observations

BINS = 10
_TEMPERATURES = (0.01, 100.0)


class Bin(Record):
    """A bin of pairs with similar confidence: mean confidence, accuracy, and number of pairs."""

    confidence: float
    accuracy: float
    n: int


class Calibration(Record):
    """Calibration before and after temperature scaling.

    Attributes:
        ece: mean |confidence - accuracy| over bins of equal mass.
        ece_noise: expected `ece` of a perfectly calibrated model on as many pairs.
        brier: mean squared error of P(chosen preferred).
        bins: bins of `ece`, least confident first.
        temperature: maximum-likelihood T of σ(margin / T); above 1 the model is overconfident.
        ece_after: `ece` after each margin is divided by a temperature fitted on the other half of the pairs.
        brier_after: `brier` after the same division.
        bins_after: bins of `ece_after`.
    """

    ece: float
    ece_noise: float
    brier: float
    bins: list[Bin]
    temperature: float
    ece_after: float
    brier_after: float
    bins_after: list[Bin]


def calibrate(margins: ArrayLike, *, bins: int = BINS) -> Calibration:
    """Measure the calibration of a preference model, before and after temperature scaling.

    The reported temperature is fitted on all pairs. Its effect is cross-validated over two halves, so that no pair is
    evaluated with a temperature it was fitted on.

    Args:
        margins: score of chosen minus score of rejected, shape (N,).
        bins: number of bins of equal mass; fewer when pairs are few or confidences equal.

    Raises:
        PipelineError: there are no margins, or one is not finite.
    """
    margins_N = observations(margins)
    cooled_N = margins_N.copy()
    if len(margins_N) >= 2:
        for half in (0, 1):
            cooled_N[half::2] /= fit_temperature(margins_N[1 - half :: 2])
    before, after = reliability(margins_N, bins=bins), reliability(cooled_N, bins=bins)
    return Calibration(
        ece=expected_error(before),
        ece_noise=_noise(before),
        brier=brier(margins_N),
        bins=before,
        temperature=fit_temperature(margins_N),
        ece_after=expected_error(after),
        brier_after=brier(cooled_N),
        bins_after=after,
    )


def reliability(margins: ArrayLike, *, bins: int = BINS) -> list[Bin]:
    """Return confidence against accuracy in bins of equal mass, least confident first.

    Confidence is σ(|margin|), at least one half; the model is right when the margin is positive, half right when it
    is zero. Equal confidences share a bin, so the order of the pairs does not matter.
    """
    margins_N = observations(margins)
    confidence_N = special.expit(np.abs(margins_N))
    right_N = np.where(margins_N > 0, 1.0, np.where(margins_N < 0, 0.0, 0.5))
    order = np.argsort(confidence_N, kind="stable")
    confidence_N, right_N = confidence_N[order], right_N[order]
    cuts = [int(np.searchsorted(confidence_N, confidence_N[cut], "left")) for cut in _cuts(len(margins_N), bins)]
    edges = sorted({0, *cuts, len(margins_N)})
    return [
        Bin(confidence=float(confidence_N[a:b].mean()), accuracy=float(right_N[a:b].mean()), n=b - a)
        for a, b in pairwise(edges)
    ]


def expected_error(bins: list[Bin]) -> float:
    """Return the expected calibration error: |confidence - accuracy|, weighted by the pairs in each bin."""
    total = sum(each.n for each in bins)
    return sum(each.n * abs(each.confidence - each.accuracy) for each in bins) / total


def brier(margins: ArrayLike) -> float:
    """Return the mean of (1 - σ(margin))²: 0.25 for an uninformative model."""
    return float(np.mean(special.expit(-observations(margins)) ** 2))


def fit_temperature(margins: ArrayLike) -> float:
    """Return T > 0 that minimises the mean of -log σ(margin / T), within 0.01 and 100.

    The loss is convex in 1/T. It has no minimum inside the bounds when every pair is right (T → 0) or the model is no
    better than chance (T → ∞); then the bound is returned.
    """
    margins_N = observations(margins)

    def loss(log_temperature: float) -> float:
        scaled_N: Floats = margins_N / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0.0, -scaled_N)))

    low, high = np.log(_TEMPERATURES)
    minimum = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    best = min((float(minimum.x), float(low), float(high)), key=loss)
    return float(np.exp(best))


def fits(temperature: float) -> bool:
    """Return whether a temperature is a minimum of the loss, not a bound of the search."""
    low, high = _TEMPERATURES
    return 1.01 * low < temperature < 0.99 * high


def _cuts(n: int, bins: int) -> list[int]:
    """Return the cut positions that divide n sorted pairs into at most ``bins`` bins, equal to within one pair."""
    bins = min(bins, n)
    return [round(cut * n / bins) for cut in range(1, bins)]


def _noise(bins: list[Bin]) -> float:
    """Return the expected ECE of a calibrated model: the weighted mean over bins of E|N(0, c(1-c)/n)| = √(2/π) σ."""
    total = sum(each.n for each in bins)
    spread = sum(each.n * np.sqrt(each.confidence * (1 - each.confidence) / each.n) for each in bins)
    return float(np.sqrt(2 / np.pi) * spread / total)
