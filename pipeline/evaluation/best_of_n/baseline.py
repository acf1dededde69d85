"""The best of n answers of an evaluation's baseline: what choosing gains where nothing is trained.

Knows nothing of models: its input is answers with scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.answers import Answers
from pipeline.evaluation.best_of_n.curve import ScoredAnswers, measure
from pipeline.evaluation.report.record import BestOfBaseline, BestPoint
from pipeline.evaluation.stats.intervals import Bootstrap


def best_of_baseline(draws: Sequence[Answers], bootstrap: Bootstrap) -> BestOfBaseline:
    """Return the scores of the best of n answers, chosen by the reward model, or by gold without one.

    Args:
        draws: the answers of one policy, one to each prompt in every item; independent samples at one temperature.
        bootstrap: how intervals are computed; they are over prompts.
    """
    rewards = [scores for one in draws if (scores := one.scores("reward")) is not None]
    golds = [scores for one in draws if (scores := one.scores("gold")) is not None]
    chosen = np.stack(rewards or golds, axis=1)
    gold = np.stack(golds, axis=1) if rewards and golds else None
    prompts = [ScoredAnswers(own.tolist(), [] if gold is None else gold[i].tolist()) for i, own in enumerate(chosen)]
    curve = measure(prompts, bootstrap, is_one_policy=True)
    points = [
        BestPoint(
            n=point.n,
            kl=point.kl or 0.0,
            gold=point.gold if rewards else point.score,
            reward=point.score if rewards else None,
        )
        for point in curve.points
    ]
    return BestOfBaseline(chosen_by="reward" if rewards else "gold", points=points)
