"""What choosing the best of n answers gains, for every n: the score of the chosen answer, and its gold score.

Owns the record, its computation, and its files: `best_of_n.json`, `best_of_n.md`, `best_of_n.svg`. Knows nothing of
models: its input is scores.

Gold beside the score shows overoptimisation: choosing by an imperfect judge raises the judge's own score with every n,
while what it stands for may stall or fall (Gao et al. 2023, arXiv:2210.10760).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import PipelineError, Problem
from pipeline.evaluation.best_of_n.record import BestOfN, Point
from pipeline.evaluation.best_of_n.render import draw, render
from pipeline.evaluation.stats.best_of import expected_best, kl_of_best
from pipeline.evaluation.stats.differences import paired_difference
from pipeline.evaluation.stats.estimate import Delta, stable
from pipeline.evaluation.stats.intervals import Bootstrap, mean_interval

LEAST_SHARE = 0.9
"""Share of the prompts that must have n answers, for n to be on the curve."""


class ScoredAnswers(NamedTuple):
    """The answers to one prompt; an answer that was sampled twice is there twice.

    Attributes:
        scores: their scores by the judge that chooses.
        gold: their gold scores; empty without gold.
    """

    scores: Sequence[float]
    gold: Sequence[float] = ()


def measure(prompts: Sequence[ScoredAnswers], bootstrap: Bootstrap, *, is_one_policy: bool) -> BestOfN:
    """Return the mean value of the best of n answers, for n up to the number that nearly all prompts have.

    All points are means over the same prompts: those with as many answers as the last point needs.

    Args:
        prompts: scored answers of each prompt.
        bootstrap: how intervals are computed; they are over prompts.
        is_one_policy: whether all answers are independent samples of one model at one temperature. Only then has the
            choice a known divergence.

    Raises:
        PipelineError: no prompt has an answer.
    """
    sizes = sorted((len(one.scores) for one in prompts if one.scores), reverse=True)
    if not sizes:
        raise PipelineError(Problem("no answer has a score", "at least one", "check the candidates"))
    most = sizes[min(len(sizes) - 1, int(LEAST_SHARE * len(sizes)))]
    shown = [one for one in prompts if len(one.scores) >= most]
    has_gold = all(one.gold for one in shown)
    by_n = {n: [expected_best(one.scores, n) for one in shown] for n in range(1, most + 1)}
    gold_by_n = {n: [expected_best(one.scores, n, one.gold) for one in shown] for n in by_n} if has_gold else {}

    def gain(values: dict[int, list[float]]) -> Delta | None:
        return paired_difference(values[most], values[1], **bootstrap.options) if most > 1 and values else None

    return BestOfN(
        prompts=len(shown),
        fewer=len(prompts) - len(shown),
        points=[
            Point(
                n=n,
                score=mean_interval(values, **bootstrap.options),
                gold=mean_interval(gold_by_n[n], **bootstrap.options) if has_gold else None,
                kl=kl_of_best(n) if is_one_policy else None,
            )
            for n, values in by_n.items()
        ],
        gain=gain(by_n),
        gold_gain=gain(gold_by_n),
        level=bootstrap.level,
    )


def write_curve(curve: BestOfN, folder: Path) -> None:
    """Write `best_of_n.json`, `best_of_n.md` and `best_of_n.svg` into a folder."""
    (folder / "best_of_n.json").write_text(to_json(curve), encoding="utf-8")
    (folder / "best_of_n.md").write_text(render(curve), encoding="utf-8")
    draw(curve, folder / "best_of_n.svg")


def to_json(curve: BestOfN) -> str:
    """Render `best_of_n.json`: the same curve gives the same bytes."""
    return json.dumps(stable(curve.model_dump(exclude_none=True)), indent=2, allow_nan=False) + "\n"
