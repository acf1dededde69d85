"""The record of a reward model's held-out report, and its parts.

Owns the fields of `reward_card.json`. Knows nothing of how they are computed or drawn.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.evaluation.stats.calibration import Calibration
from pipeline.evaluation.stats.estimate import Delta, Estimate, Record
from pipeline.evaluation.stats.intervals import LEVEL


class Histogram(Record):
    """Counts between edges; the first and the last bin also count the values beyond them."""

    edges: list[float]
    counts: list[int]


class LengthBias(Record):
    """Dependence of the scores on the length of answers.

    Attributes:
        pearson: Pearson correlation of score and length over all answers; None when one of them does not vary.
        spearman: Spearman correlation of the same.
        chosen_longer: accuracy on pairs whose chosen answer is the longer one.
        chosen_shorter: accuracy on pairs whose chosen answer is the shorter one, low for a model biased to length.
        longer_wins: accuracy of always preferring the longer answer, equal lengths counting one half.
        gain: accuracy of the model minus `longer_wins`, on the same pairs.
    """

    pearson: float | None
    spearman: float | None
    chosen_longer: Estimate | None
    chosen_shorter: Estimate | None
    longer_wins: Estimate
    gain: Delta


class GoldAgreement(Record):
    """Agreement with gold scores, on pairs whose gold scores differ.

    Attributes:
        reward: share of pairs that the reward model ranks as gold does.
        labels: share of pairs whose label ranks them as gold does: the accuracy of a perfect model.
    """

    reward: Estimate
    labels: Estimate


class PropertyAccuracy(Record):
    """Accuracy on the pairs whose answers differ in one property only, so that nothing else can decide.

    Attributes:
        accuracy: share of these pairs whose chosen answer scores higher, a tie counting one half.
        groups: the same by group, with every other property held equal.
    """

    accuracy: Estimate
    groups: dict[str, Estimate] = Field(default_factory=dict)


class RewardCard(Record):
    """Held-out report of a reward model.

    Attributes:
        schema_version: version of `reward_card.json`.
        pairs: number of held-out pairs.
        accuracy: share of pairs whose chosen answer scores higher, a tie counting one half.
        ties: number of pairs with equal scores.
        margin: mean margin, the score of the chosen minus that of the rejected answer.
        margin_spread: standard deviation of the margins.
        histogram: histogram of the margins.
        calibration: calibration of σ(margin).
        length: length bias.
        gold: agreement with gold scores; None without any.
        groups: accuracy by group, e.g. by task.
        properties: accuracy by the one property in which the answers of a pair differ, over the pairs that name one;
            None if the pairs name none.
        level: confidence level of every interval.
    """

    schema_version: Literal[1] = 1
    pairs: int
    accuracy: Estimate
    ties: int
    margin: Estimate
    margin_spread: float
    histogram: Histogram
    calibration: Calibration
    length: LengthBias
    gold: GoldAgreement | None = None
    groups: dict[str, Estimate] = Field(default_factory=dict)
    properties: dict[str, PropertyAccuracy] | None = None
    level: float = LEVEL
