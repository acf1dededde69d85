"""Statistics of annotators who labelled the same items: how far they agree, and what the truth then is.

A table of labels has a row for each item and a column for each annotator; a cell is a class, or `MISSING`. Knows
nothing of where labels come from.

Shape legend: N items, A annotators, K classes, L labels, M different rows of labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.stats.estimate import Estimate
from pipeline.evaluation.stats.intervals import LEVEL, share_interval, wilson

Labels = NDArray[np.signedinteger[Any]]
Floats = NDArray[np.float64]

MISSING = -1
"""Cell of an annotator who did not label the item."""


@dataclass(frozen=True)
class AnnotatorPair:
    """Two annotators on the items that both labelled.

    Attributes:
        first: column of one annotator.
        second: column of the other.
        items: number of items that both labelled.
        same: share of them with equal labels.
        kappa: Cohen's kappa; None when both gave one and the same class only.
    """

    first: int
    second: int
    items: int
    same: float
    kappa: float | None


@dataclass(frozen=True)
class DawidSkene:
    """The truth and the annotators' errors that explain the labels best.

    Attributes:
        posterior_NK: probability of each class for each item.
        confusion_AKK: probability that an annotator gives class k to an item of class j, at [a, j, k].
        prior_K: share of each class.
        accuracy_A: expected share of right labels of each annotator.
    """

    posterior_NK: Floats
    confusion_AKK: Floats
    prior_K: Floats
    accuracy_A: Floats


def raw_agreement(
    labels_NA: Labels, *, seed: int, level: float = LEVEL, cluster_N: Labels | None = None
) -> Estimate | None:
    """Return the share of equal labels among all pairs of labels of one item; None when no item has two.

    The interval resamples items, since the pairs of one item are not independent of each other; it is Wilson's where
    each item has one pair (`share_interval`).

    Args:
        labels_NA: classes.
        seed: seed of the resampling.
        level: confidence level.
        cluster_N: number of each item's cluster, from 0, where items are not independent either: clusters are
            resampled.
    """
    shared_NA = _shared(labels_NA)
    if not len(shared_NA):
        return None
    same, pairs = _agreeing_pairs(shared_NA)
    if cluster_N is not None:
        shared_N = np.unique(cluster_N[(labels_NA != MISSING).sum(1) > 1], return_inverse=True)[1]
        same, pairs = (np.bincount(shared_N, counts_N).astype(float) for counts_N in (same, pairs))
    return share_interval(same, pairs, seed=seed, level=level)


def _agreeing_pairs(labels_NA: Labels) -> tuple[Floats, Floats]:
    """Return the number of equal pairs of labels of each item, and of all its pairs."""
    classes = np.unique(labels_NA[labels_NA != MISSING])
    counts_NK = np.stack([(labels_NA == value).sum(1) for value in classes], 1) if len(classes) else labels_NA[:, :0]
    per_item = counts_NK.sum(1)
    return (counts_NK * (counts_NK - 1) / 2).sum(1), per_item * (per_item - 1) / 2


def krippendorff_alpha(labels_NA: Labels, level: str = "nominal") -> float | None:
    """Return Krippendorff's alpha: 1 for perfect agreement, 0 for chance; None without two different labels to pair.

    Args:
        labels_NA: classes; for ``ordinal`` in their order.
        level: ``nominal`` or ``ordinal``, how labels differ.

    Source: Krippendorff (2019), Content Analysis, chapter 12; computed by the library `krippendorff`.
    """
    import krippendorff  # of the extra `collect`

    paired = labels_NA[(labels_NA != MISSING).sum(1) > 1]
    if len(np.unique(paired[paired != MISSING])) < 2:
        return None
    values = np.where(paired == MISSING, np.nan, paired.astype(float)).T
    return float(krippendorff.alpha(reliability_data=values, level_of_measurement=level))


def cohen_kappa(one_N: Labels, other_N: Labels) -> float | None:
    """Return Cohen's kappa of two annotators; None when both gave one and the same class only.

    Args:
        one_N: classes that one annotator gave.
        other_N: classes that the other gave to the same items.

    Source: Cohen (1960), A coefficient of agreement for nominal scales, equation 1.
    """
    classes = np.union1d(one_N, other_N)
    shares_one, shares_other = ([(labels == value).mean() for value in classes] for labels in (one_N, other_N))
    by_chance = float(np.dot(shares_one, shares_other))
    if by_chance == 1:
        return None
    return float(((one_N == other_N).mean() - by_chance) / (1 - by_chance))


def _shared(labels_NA: Labels) -> Labels:
    """Return the items that several annotators labelled: often a small part, and the only one to compare."""
    shared_NA: Labels = labels_NA[(labels_NA != MISSING).sum(1) > 1]
    return shared_NA


def annotator_pairs(labels_NA: Labels) -> list[AnnotatorPair]:
    """Return every two annotators who labelled an item in common."""
    pairs = []
    labels_NA = _shared(labels_NA)
    for first, second in itertools.combinations(range(labels_NA.shape[1]), 2):
        one, other = labels_NA[:, first], labels_NA[:, second]
        both = (one != MISSING) & (other != MISSING)
        if both.any():
            same = float((one[both] == other[both]).mean())
            pairs.append(AnnotatorPair(first, second, int(both.sum()), same, cohen_kappa(one[both], other[both])))
    return pairs


def against_the_rest(
    labels_NA: Labels, *, level: float = LEVEL, cluster_N: Labels | None = None
) -> list[Estimate | None]:
    """Return for each annotator the share of items on which they agree with the majority of the others.

    Items on which the others have no majority are left out; None for an annotator without any other item.

    Args:
        labels_NA: classes.
        level: confidence level.
        cluster_N: number of each item's cluster, from 0, where items are not independent. Wilson's interval then counts
            a cluster as one trial, which is too wide rather than too narrow.
    """
    estimates: list[Estimate | None] = []
    cluster_M = cluster_N[(labels_NA != MISSING).sum(1) > 1] if cluster_N is not None else None
    labels_NA = _shared(labels_NA)
    if not len(labels_NA):
        return [None] * labels_NA.shape[1]
    classes = np.unique(labels_NA[labels_NA != MISSING])
    counts_NK = np.stack([(labels_NA == value).sum(1) for value in classes], 1) if len(classes) else labels_NA[:, :0]
    for column in range(labels_NA.shape[1]):
        own_M = labels_NA[labels_NA[:, column] != MISSING, column]
        rest_MK = counts_NK[labels_NA[:, column] != MISSING] - (own_M[:, None] == classes)
        most_M = rest_MK.max(1, initial=0)
        is_clear = (most_M > 0) & ((rest_MK == most_M[:, None]).sum(1) == 1)
        if not is_clear.any():
            estimates.append(None)
            continue
        same = (classes[rest_MK.argmax(1)] == own_M)[is_clear]
        if cluster_M is None:
            estimates.append(wilson(float(same.sum()), len(same), level=level))
            continue
        count = len(np.unique(cluster_M[labels_NA[:, column] != MISSING][is_clear]))
        estimates.append(wilson(float(same.mean()) * count, count, level=level))
    return estimates


def dawid_skene(
    labels_NA: Labels, classes: Sequence[int], *, most_steps: int = 500, epsilon: float = 1e-6
) -> DawidSkene:
    """Estimate the true class of each item and the errors of each annotator, by expectation maximisation.

    Starts from the share of each class among an item's labels. One pseudo-count, spread over the classes, is added to
    each row of an annotator's confusions, so that a few labels do not make anybody infallible.

    Args:
        labels_NA: classes, each one of ``classes``; every item has a label.
        classes: all classes, in ascending order.
        most_steps: largest number of EM steps.
        epsilon: largest change of a posterior at which the steps end.

    Source: Dawid and Skene (1979), Maximum likelihood estimation of observer error-rates using the EM algorithm,
    equations 2.3 to 2.5.
    """
    patterns, pattern_N, weight_M = _patterns(labels_NA)
    (M, A), K = patterns.shape, len(classes)
    item_L, column_L = np.nonzero(patterns != MISSING)  # L labels
    class_L = np.searchsorted(np.asarray(classes), patterns[item_L, column_L])
    cell_L, weight_L = column_L * K + class_L, weight_M[item_L]
    posterior_KM: Floats = np.bincount(class_L * M + item_L, minlength=K * M).reshape(K, M).astype(float)
    posterior_KM /= posterior_KM.sum(0)
    for _ in range(most_steps):
        weighted = [np.bincount(cell_L, told_L * weight_L, A * K) for told_L in posterior_KM.take(item_L, axis=1)]
        confusion_AKK: Floats = np.asarray(np.stack(weighted).reshape(K, A, K).transpose(1, 0, 2) + 1 / K, float)
        confusion_AKK /= confusion_AKK.sum(2, keepdims=True)
        prior_K: Floats = weight_M @ np.ascontiguousarray(posterior_KM.T) / weight_M.sum()
        log_KC = np.log(confusion_AKK).transpose(1, 0, 2).reshape(K, A * K)  # C: cells of annotator and class given
        told_KM = np.stack([np.bincount(item_L, log_L, M) for log_L in log_KC.take(cell_L, axis=1)])
        with np.errstate(divide="ignore"):
            log_KM = np.log(prior_K)[:, None] + told_KM
        following_KM = np.exp(log_KM - log_KM.max(0))
        following_KM /= following_KM.sum(0)
        change = float(np.abs(following_KM - posterior_KM).max())
        posterior_KM = following_KM
        if change < epsilon:
            break
    accuracy_A = np.einsum("j,ajj->a", prior_K, confusion_AKK)
    return DawidSkene(posterior_KM.T[pattern_N], confusion_AKK, prior_K, accuracy_A)


def _patterns(labels_NA: Labels) -> tuple[Labels, NDArray[np.intp], Floats]:
    """Return rows of labels of which those of a single label are different, each item's row, and each row's items.

    Items with the same single label have the same posterior. Where few items are labelled several times, there are far
    fewer rows than items.
    """
    is_single_N = (labels_NA != MISSING).sum(1) == 1
    _, column_N = np.nonzero(labels_NA[is_single_N] != MISSING)
    label_N = labels_NA[is_single_N, column_N]
    name_N = column_N * (label_N.max(initial=0) + 1) + label_N
    _, first, single_N, counts = np.unique(name_N, return_index=True, return_inverse=True, return_counts=True)
    singles = labels_NA[is_single_N][first]
    several = labels_NA[~is_single_N]
    pattern_N = np.empty(len(labels_NA), np.intp)
    pattern_N[is_single_N] = single_N
    pattern_N[~is_single_N] = len(singles) + np.arange(len(several))
    return np.concatenate([singles, several]), pattern_N, np.concatenate([counts, np.ones(len(several))])
