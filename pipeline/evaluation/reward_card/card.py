"""The held-out report of a reward model: accuracy, calibration, length bias, and agreement with gold.

Owns the card's computation and its files: `reward_card.json`, `reward_card.md`, `margins.svg`, `reliability.svg`. Knows
nothing of models: its input is scores.

Shape legend: N pairs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from pipeline.errors import PipelineError, Problem, counted
from pipeline.evaluation.judging import ON_PROPERTY
from pipeline.evaluation.reward_card.record import GoldAgreement, Histogram, LengthBias, PropertyAccuracy, RewardCard
from pipeline.evaluation.reward_card.render import draw, render
from pipeline.evaluation.stats.calibration import calibrate
from pipeline.evaluation.stats.differences import paired, paired_difference
from pipeline.evaluation.stats.estimate import Estimate, rounded, stable
from pipeline.evaluation.stats.intervals import LEVEL, RESAMPLES, Bootstrap, Floats, mean_interval, observations, wilson

HISTOGRAM_BINS = 30

Names = NDArray[np.str_]
"""One name per pair, empty where it has none."""


class ScoredPairs(TypedDict):
    """Held-out pairs with the scores of a reward model.

    Attributes:
        chosen: score of the chosen answer, shape (N,).
        rejected: score of the rejected answer, shape (N,).
        chosen_lengths: tokens of the chosen answer, shape (N,).
        rejected_lengths: tokens of the rejected answer, shape (N,).
        groups: one name per pair, e.g. its task; pairs with an empty name are in no group.
        properties: the one property in which the answers of each pair differ; empty where they differ in several.
        gold_chosen: gold score of the chosen answer, shape (N,).
        gold_rejected: gold score of the rejected answer, shape (N,).
    """

    chosen: ArrayLike
    rejected: ArrayLike
    chosen_lengths: ArrayLike
    rejected_lengths: ArrayLike
    groups: NotRequired[Sequence[str] | None]
    properties: NotRequired[Sequence[str] | None]
    gold_chosen: NotRequired[ArrayLike | None]
    gold_rejected: NotRequired[ArrayLike | None]


def build_card(
    *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL, **pairs: Unpack[ScoredPairs]
) -> RewardCard:
    """Compute the card from scores of held-out pairs.

    Args:
        seed: seed of the bootstrap.
        resamples: number of bootstrap resamples.
        level: confidence level.
        pairs: the fields of `ScoredPairs`.

    Raises:
        PipelineError: there are no pairs, the lengths differ, or a score is not finite.
    """
    bootstrap = Bootstrap(seed, resamples, level)
    chosen_N, rejected_N = paired(pairs["chosen"], pairs["rejected"])
    long_N, short_N = paired(pairs["chosen_lengths"], pairs["rejected_lengths"])
    paired(chosen_N, long_N)
    groups_N = _names(pairs.get("groups"), len(chosen_N), ("group", "groups"))
    properties_N = _names(pairs.get("properties"), len(chosen_N), ("property", "properties"))
    gold_chosen, gold_rejected = pairs.get("gold_chosen"), pairs.get("gold_rejected")
    margins_N = chosen_N - rejected_N
    right_N = _right(margins_N)
    gold = None
    if gold_chosen is not None and gold_rejected is not None:
        gold_margins_N = np.subtract(*paired(gold_chosen, gold_rejected))
        paired(margins_N, gold_margins_N)
        gold = _gold(margins_N, gold_margins_N, level)
    return RewardCard(
        pairs=len(margins_N),
        accuracy=wilson(float(right_N.sum()), len(right_N), level=level),
        ties=int((margins_N == 0).sum()),
        margin=mean_interval(margins_N, **bootstrap.options),
        margin_spread=float(margins_N.std(ddof=1)) if len(margins_N) > 1 else 0.0,
        histogram=_histogram(margins_N),
        calibration=calibrate(margins_N),
        length=_length_bias(chosen_N, rejected_N, long_N, short_N, bootstrap),
        gold=gold,
        groups=_by_name(right_N, groups_N, level),
        properties=None if pairs.get("properties") is None else _by_property(right_N, properties_N, groups_N, level),
        level=level,
    )


def write_card(card: RewardCard, folder: Path) -> dict[str, float]:
    """Write `reward_card.json`, `reward_card.md`, `margins.svg` and `reliability.svg` into a folder.

    Returns:
        The headline figures, for a manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reward_card.json").write_text(to_json(card), encoding="utf-8")
    (folder / "reward_card.md").write_text(render(card), encoding="utf-8")
    draw(card, folder)
    return headline(card)


def to_json(card: RewardCard) -> str:
    """Render `reward_card.json`: the same card gives the same bytes."""
    return json.dumps(stable(card.model_dump(exclude_none=True)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def headline(card: RewardCard) -> dict[str, float]:
    """Return the headline figures, which the manifest stores as metrics."""
    figures = {
        "test_accuracy": card.accuracy.value,
        "test_accuracy_low": card.accuracy.low,
        "test_accuracy_high": card.accuracy.high,
        "test_pairs": float(card.pairs),
        "mean_margin": card.margin.value,
        "ece": card.calibration.ece,
        "ece_after": card.calibration.ece_after,
        "brier": card.calibration.brier,
        "temperature": card.calibration.temperature,
        "longer_wins_accuracy": card.length.longer_wins.value,
    }
    if card.length.spearman is not None:
        figures["length_spearman"] = card.length.spearman
    if card.gold:
        figures["gold_agreement"] = card.gold.reward.value
        figures["gold_agreement_low"] = card.gold.reward.low
        figures["gold_agreement_high"] = card.gold.reward.high
        figures["label_gold_agreement"] = card.gold.labels.value
    for name, seen in (card.properties or {}).items():
        key = f"{ON_PROPERTY}{name}"
        figures |= {key: seen.accuracy.value, f"{key}_low": seen.accuracy.low, f"{key}_high": seen.accuracy.high}
    return {name: rounded(value) for name, value in figures.items()}


def _right(margins_N: Floats) -> Floats:
    """Return 1 where the margin is positive, 0 where negative, one half where zero."""
    return (np.sign(margins_N) + 1) / 2


def _share(right: Floats, level: float) -> Estimate:
    return wilson(float(right.sum()), len(right), level=level)


def _names(names: Sequence[str] | None, pairs: int, words: tuple[str, str]) -> Names:
    """Return one name per pair, empty ones if there are none.

    Raises:
        PipelineError: there are names, and not one per pair.
    """
    if names is not None and len(names) != pairs:
        raise PipelineError(Problem(f"{counted(len(names), *words)} for {counted(pairs, 'pair')}", "one per pair"))
    return np.array([""] * pairs if names is None else names, dtype=np.str_)


def _by_name(right: Floats, names: Names, level: float) -> dict[str, Estimate]:
    """Return the share of right pairs by name, in the order of the alphabet; those without a name are left out."""
    return {str(name): _share(right[names == name], level) for name in np.unique(names) if name}


def _by_property(right_N: Floats, properties_N: Names, groups_N: Names, level: float) -> dict[str, PropertyAccuracy]:
    """Return the accuracy by property, and by property and group."""
    accuracy = _by_name(right_N, properties_N, level)
    chosen = {name: properties_N == name for name in accuracy}
    return {
        name: PropertyAccuracy(
            accuracy=accuracy[name], groups=_by_name(right_N[chosen[name]], groups_N[chosen[name]], level)
        )
        for name in accuracy
    }


def _gold(margins_N: Floats, gold_N: Floats, level: float) -> GoldAgreement | None:
    """Measure the agreement with gold scores; None when no pair has different gold scores."""
    differ = gold_N != 0
    if not differ.any():
        return None
    sign_N = np.sign(gold_N[differ])
    return GoldAgreement(reward=_share(_right(margins_N[differ] * sign_N), level), labels=_share(_right(sign_N), level))


def _length_bias(
    chosen_N: Floats, rejected_N: Floats, chosen_lengths_N: Floats, rejected_lengths_N: Floats, bootstrap: Bootstrap
) -> LengthBias:
    scores = np.concatenate([chosen_N, rejected_N])
    lengths = np.concatenate([chosen_lengths_N, rejected_lengths_N])
    varies = bool(np.ptp(scores) > 0 and np.ptp(lengths) > 0)
    right_N = _right(chosen_N - rejected_N)
    gap_N = chosen_lengths_N - rejected_lengths_N
    level = bootstrap.level
    return LengthBias(
        pearson=float(stats.pearsonr(scores, lengths).statistic) if varies else None,
        spearman=float(stats.spearmanr(scores, lengths).statistic) if varies else None,
        chosen_longer=_share(right_N[gap_N > 0], level) if (gap_N > 0).any() else None,
        chosen_shorter=_share(right_N[gap_N < 0], level) if (gap_N < 0).any() else None,
        longer_wins=_share(_right(gap_N), level),
        gain=paired_difference(right_N, _right(gap_N), bounds=(0.0, 1.0), **bootstrap.options),
    )


def _histogram(margins_N: Floats) -> Histogram:
    """Count margins in bins of equal width with an edge at zero; the end bins include the outermost 1 % of margins."""
    values = observations(margins_N)
    low, high = min(0.0, float(np.quantile(values, 0.005))), max(0.0, float(np.quantile(values, 0.995)))
    width = (high - low) / HISTOGRAM_BINS or 1.0
    first, last = int(np.floor(low / width)), max(int(np.ceil(high / width)), int(np.floor(low / width)) + 1)
    edges = np.arange(first, last + 1) * width
    # A margin on an edge counts in the bin above it, so a margin of zero is counted among the wins.
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return Histogram(edges=[float(edge) for edge in edges], counts=[int(count) for count in counts])
