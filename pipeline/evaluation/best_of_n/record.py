"""The record of what choosing the best of n answers gains.

Owns the fields of `best_of_n.json`. Knows nothing of how they are computed or drawn.
"""

from __future__ import annotations

from typing import Literal

from pipeline.evaluation.stats.estimate import Delta, Estimate, Record
from pipeline.evaluation.stats.intervals import LEVEL


class Point(Record):
    """The best of n answers, over all prompts.

    Attributes:
        n: number of answers of which the best is chosen.
        score: mean score of the chosen answer by the judge that chooses.
        gold: mean gold score of the same answer; None without gold.
        kl: upper bound of the divergence from the policy in nats; None if the answers are of several models or
            temperatures.
    """

    n: int
    score: Estimate
    gold: Estimate | None = None
    kl: float | None = None


class BestOfN(Record):
    """What choosing the best of n gains.

    Attributes:
        schema_version: version of `best_of_n.json`.
        prompts: number of prompts in every point.
        fewer: number of prompts with fewer answers than the last point needs, in no point.
        points: the points, n from 1.
        gain: score of the last point less that of the first; None with a single point.
        gold_gain: the same of gold.
        level: confidence level of every interval.
    """

    schema_version: Literal[1] = 1
    prompts: int
    fewer: int = 0
    points: list[Point]
    gain: Delta | None = None
    gold_gain: Delta | None = None
    level: float = LEVEL

    @property
    def last(self) -> Point:
        """The point of the largest n."""
        return self.points[-1]
