"""The evaluation metrics of each trainer, which `metric_for_best_model` may name, and their better direction.

transformers assumes that higher is better unless the name ends with "loss". A schedule that follows a metric assumes
that lower is better. Either would silently follow some metrics, such as an accuracy, in the wrong direction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from pipeline.errors import Problem, listed, nearest
from pipeline.trainer_fields.schedules import BY_EVALUATION
from pipeline.trainer_fields.table import GivenFields

_LANGUAGE = ("loss",)
_SIDES = ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected")
_SAMPLED = (*_LANGUAGE, "reward", "reward_std", "frac_reward_zero_std", "entropy", "completions/mean_length")
MEASURED: Mapping[str, tuple[str, ...]] = {
    "TrainingArguments": _LANGUAGE,
    "SFTConfig": (*_LANGUAGE, "mean_token_accuracy", "entropy"),
    "RewardConfig": (*_LANGUAGE, "accuracy", "margin", "mean_reward", "min_reward", "max_reward"),
    "DPOConfig": (*_LANGUAGE, *_SIDES, "rewards/accuracies", "mean_token_accuracy", "entropy"),
    "KTOConfig": (*_LANGUAGE, *_SIDES, "kl", "entropy"),
    "GRPOConfig": _SAMPLED,
    "RLOOConfig": _SAMPLED,
}
"""Trainer to its metrics of held-out rows, named as in `metrics.jsonl` after `eval_`."""

LESS_IS_BETTER = ("loss",)
MORE_IS_BETTER = (
    *("accuracy", "logps/chosen", "margin", "mean_token_accuracy", "reward"),
    *("rewards/accuracies", "rewards/chosen", "rewards/margins"),
)
"""For all other metrics the recipe must say which direction is better."""

EACH_REWARD = re.compile(r"rewards/.+/(mean|std)")
"""Matches the metrics of one of several rewards, which contain the reward's name."""


def metric_problem(trainer: str, name: str | None) -> Problem | None:
    """Return a problem if a trainer's evaluation does not have a metric; else None."""
    plain = (name or "loss").removeprefix("eval_")
    if plain in MEASURED[trainer] or (MEASURED[trainer] is _SAMPLED and EACH_REWARD.fullmatch(plain)):
        return None
    known = MEASURED[trainer]
    return Problem(f"train.metric_for_best_model is {name}", f"must be one of {listed(known)}", nearest(plain, known))


def direction_problems(trainer: str, given: GivenFields) -> Iterator[Problem]:
    """Yield problems of a metric that is followed in the wrong direction or without one.

    Args:
        trainer: name of the trainer's config class.
        given: all fields of `train` with their values.
    """
    asked, schedule = given.get("metric_for_best_model"), given.get("lr_scheduler_type")
    plain = str(asked or "loss").removeprefix("eval_")
    direction = _direction(plain)
    if given.get("load_best_model_at_end") and asked and direction == "" and given.get("greater_is_better") is None:
        statement = f"train.metric_for_best_model is {asked}, of which neither more nor less is better by itself"
        yield Problem(statement, "train.greater_is_better beside it", "set train.greater_is_better: true, or false")
    if schedule not in BY_EVALUATION:
        return
    if not asked and MEASURED[trainer] is _SAMPLED:
        statement = (
            f"train.lr_scheduler_type is {schedule}, which follows the loss, and that tells nothing of what is learnt"
        )
        remedy = "set train.metric_for_best_model: reward, and train.lr_scheduler_kwargs: {mode: max}"
        yield Problem(statement, "a metric that does", remedy)
        return
    kwargs = given.get("lr_scheduler_kwargs") or {}
    mode = kwargs.get("mode") if isinstance(kwargs, Mapping) else None
    if mode in (None, "min", "max") and (mode or "min") != direction and (direction or mode is None):
        statement = (
            f"train.lr_scheduler_type is {schedule}, which takes {'more' if mode == 'max' else 'less'} of {plain} for"
        )
        better = f"mode: {direction}" if direction else "its mode beside a metric of which either may be better"
        remedy = f"set train.lr_scheduler_kwargs: {{mode: {direction or 'max'}}}" + ("" if direction else ", or min")
        yield Problem(f"{statement} better", better, remedy)


def _direction(plain: str) -> str:
    """Return the better direction of a metric, ``max`` or ``min`` as schedules call it; empty if either may be."""
    if plain in LESS_IS_BETTER:
        return "min"
    return "max" if plain in MORE_IS_BETTER or (plain.startswith("rewards/") and plain.endswith("/mean")) else ""
