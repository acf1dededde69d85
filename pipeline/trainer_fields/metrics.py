"""What each trainer measures when it evaluates: the names that `metric_for_best_model` may be."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipeline.errors import Problem, listed, nearest

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
"""Metrics of held-out rows, as `metrics.jsonl` has them after `eval_`."""

EACH_REWARD = re.compile(r"rewards/.+/(mean|std)")
"""Metrics of a single reward of several, by its name."""


def metric_problem(trainer: str, name: str | None) -> Problem | None:
    """Return the problem of a metric that no evaluation of a trainer gives."""
    plain = (name or "loss").removeprefix("eval_")
    if plain in MEASURED[trainer] or (MEASURED[trainer] is _SAMPLED and EACH_REWARD.fullmatch(plain)):
        return None
    known = MEASURED[trainer]
    return Problem(f"train.metric_for_best_model is {name}", f"must be one of {listed(known)}", nearest(plain, known))
