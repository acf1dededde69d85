"""The scores of answers: by the functions that the recipe names, and by the reward model."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.evaluation.answers import Answers
from pipeline.evaluation.stats.estimate import rounded
from pipeline.plain_data import Row
from pipeline.rl.rewards.functions import call_reward
from pipeline.rl.rewards.texts import text_scorer
from pipeline.stage import StageContext
from pipeline.stages.evaluate.answers import Sampled
from pipeline.stages.evaluate.config import Config


def score_all(ctx: StageContext, config: Config, rows: Sequence[Row], sampled: list[Sampled]) -> list[Answers]:
    """Score every answer with the functions and the reward model.

    Scores are rounded as in the samples file *before* they are used, so that a report, its ties included, can be
    computed from the samples file.
    """
    scores: dict[str, dict[str, list[float]]] = {each.name: {} for each in sampled}
    for column, spec in (("gold", config.gold), ("correct", config.correct)):
        if spec is None or ctx.functions is None:
            continue
        function = ctx.functions(spec)
        for each in sampled:
            completions = [[{"role": "assistant", "content": text}] for text in each.texts]
            scores[each.name][column] = call_reward(function, spec, rows, completions)
    if config.reward is not None:
        _score_by_model(ctx, rows, sampled, scores)
    return [
        Answers(
            name=each.name,
            ref=each.ref,
            responses=each.texts,
            lengths=each.lengths,
            ended=[stop == "eos" for stop in each.stops],
            stop_reasons=each.stops,
            kl=each.kl,
            kl_k3=each.kl_k3,
            nll=each.nll,
            is_variant=each.is_variant,
            **{column: [rounded(value) for value in values] for column, values in scores[each.name].items()},
        )
        for each in sampled
    ]


def _score_by_model(
    ctx: StageContext, rows: Sequence[Row], sampled: list[Sampled], scores: dict[str, dict[str, list[float]]]
) -> None:
    """Score each answer's text with the reward model, rendered with its own chat template."""
    judge = text_scorer(ctx, ctx.input("reward"))
    for each in sampled:
        scores[each.name]["reward"] = judge(rows, each.texts)
