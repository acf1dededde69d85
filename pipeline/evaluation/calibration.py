"""Whether a preference model's confidence can be believed.

Owns expected calibration error, Brier score and temperature. Knows nothing of models: it is given margins, the score
of the chosen answer minus that of the rejected one, which Bradley-Terry turns into P(chosen preferred) = σ(margin).

Shape legend: N pairs.

Reference: Guo et al. (2017), On calibration of modern neural networks; Nixon et al. (2019) for bins of equal mass.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from pipeline.evaluation.estimate import Record
from pipeline.evaluation.intervals import Floats, observations

BINS = 10
_TEMPERATURES = (0.01, 100.0)


class Bin(Record):
    """Pairs of similar confidence: their mean confidence, the share on which the model was right, and their number."""

    confidence: float
    accuracy: float
    n: int


class Calibration(Record):
    """How confidence compares with accuracy.

    Attributes:
        ece: mean |confidence - accuracy| over bins of equal mass.
        ece_noise: what `ece` would be on average, with as many pairs, were the model perfectly calibrated.
        brier: mean squared error of P(chosen preferred).
        bins: of `ece`, least confident first.
        temperature: T that makes σ(margin / T) most likely; above 1 the model is overconfident.
        ece_after: `ece` once margins are divided by a temperature fitted on the other half of the pairs.
        brier_after: `brier` likewise.
        bins_after: of `ece_after`.
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
    """Measure the calibration of a preference model, as it is and after a temperature.

    The temperature that is reported is fitted on all pairs; its effect is measured across two halves, so that no pair
    is judged by a temperature it helped to choose.

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
    """Return the mean of (1 - σ(margin))²: 0.25 for a model that knows nothing."""
    return float(np.mean(special.expit(-observations(margins)) ** 2))


def fit_temperature(margins: ArrayLike) -> float:
    """Return T > 0 that minimises the mean of -log σ(margin / T), within 0.01 and 100.

    The loss is convex in 1/T. It has no minimum inside when every pair is right (T → 0) or the model is no better than
    chance (T → ∞): the bound is returned.
    """
    margins_N = observations(margins)

    def loss(log_temperature: float) -> float:
        scaled_N: Floats = margins_N / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0.0, -scaled_N)))

    low, high = np.log(_TEMPERATURES)
    found = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    best = min((float(found.x), float(low), float(high)), key=loss)
    return float(np.exp(best))


def fits(temperature: float) -> bool:
    """Whether a temperature is a minimum, not a bound that the search ran into."""
    low, high = _TEMPERATURES
    return 1.01 * low < temperature < 0.99 * high


def _cuts(n: int, bins: int) -> list[int]:
    """Return where to cut n sorted pairs into at most ``bins`` groups that differ by at most one pair."""
    bins = min(bins, n)
    return [round(place * n / bins) for place in range(1, bins)]


def _noise(bins: list[Bin]) -> float:
    """Return the ECE to expect of a calibrated model: the mean of |N(0, c(1-c)/n)| over bins, √(2/π) spreads."""
    total = sum(each.n for each in bins)
    spread = sum(each.n * np.sqrt(each.confidence * (1 - each.confidence) / each.n) for each in bins)
    return float(np.sqrt(2 / np.pi) * spread / total)
