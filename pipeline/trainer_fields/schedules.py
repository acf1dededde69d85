"""The learning-rate schedules of transformers: their arguments, the allowed values, and their lowest rates.

A trainer constructs its schedule only after data and model are loaded; these checks need neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.errors import Problem, listed, nearest
from pipeline.trainer_fields.arguments import (
    AT_LEAST_0,
    AT_LEAST_1,
    COUNT,
    POSITIVE,
    SHARE,
    SWITCH,
    Argument,
    of_words,
    ranged,
)
from pipeline.trainer_fields.table import GivenFields

_HALF_WAVES = {"num_cycles": POSITIVE}
_LEAST_RATE = {"min_lr": AT_LEAST_0, "min_lr_rate": SHARE}
_SHAPES = of_words("linear", "cosine", "1-sqrt")
_BY_METRIC = {
    "mode": of_words("min", "max"),
    "factor": ranged("> 0 and < 1", lambda value: 0 < value < 1),
    "patience": COUNT,
    "threshold": AT_LEAST_0,
    "threshold_mode": of_words("rel", "abs"),
    "cooldown": COUNT,
    "min_lr": AT_LEAST_0,
    "eps": AT_LEAST_0,
}
SCHEDULE_KWARGS: Mapping[str, Mapping[str, Argument]] = {
    "linear": {},
    "cosine": _HALF_WAVES,
    "cosine_with_restarts": {"num_cycles": AT_LEAST_1},
    "polynomial": {"lr_end": AT_LEAST_0, "power": POSITIVE},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {"timescale": POSITIVE},
    "reduce_lr_on_plateau": _BY_METRIC,
    "cosine_with_min_lr": {**_HALF_WAVES, **_LEAST_RATE},
    "cosine_warmup_with_min_lr": {**_HALF_WAVES, **_LEAST_RATE, "warmup_lr_rate": SHARE},
    "warmup_stable_decay": {
        **_HALF_WAVES,
        "num_decay_steps": AT_LEAST_1,
        "num_stable_steps": COUNT,
        "warmup_type": _SHAPES,
        "decay_type": _SHAPES,
        "min_lr_ratio": SHARE,
    },
    "greedy": {
        **_BY_METRIC,
        "warmup": COUNT,
        "max_lr": POSITIVE,
        "verbose": SWITCH,
        "smooth": SWITCH,
        "window_size": AT_LEAST_1,
        "reset_start": COUNT,
    },
}
"""Schedule to the arguments that `lr_scheduler_kwargs` may hold."""

LOWEST = {
    "polynomial": ("lr_end", 1e-7),
    "cosine_with_min_lr": ("min_lr", 0),
    "cosine_warmup_with_min_lr": ("min_lr", 0),
}
"""Schedule to the argument of its lowest rate, and that argument's default."""

WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow `metric_for_best_model`."""


def schedule_problems(given: GivenFields, asked: frozenset[str]) -> Iterator[Problem]:
    """Yield the problems of `lr_scheduler_type` and `lr_scheduler_kwargs`, together and with other fields.

    Args:
        given: all fields of `train` with their values.
        asked: names of the fields the recipe sets.
    """
    schedule = str(given.get("lr_scheduler_type", "linear"))
    kwargs = given.get("lr_scheduler_kwargs") or {}
    takes = SCHEDULE_KWARGS.get(schedule)
    if takes is None:  # an unknown schedule is reported elsewhere
        return
    right = {}
    for key, value in kwargs.items():
        if key not in takes:
            statement = f"train.lr_scheduler_kwargs has `{key}`, which {schedule} does not take"
            expected = f"one of {listed(takes)}" if takes else "none: it has no arguments"
            yield Problem(statement, expected, nearest(str(key), takes) or "leave it out")
        elif value is not None and not takes[key].holds(value):
            yield Problem(f"train.lr_scheduler_kwargs has {key}: {value}", takes[key].expected)
        elif value is not None:
            right[key] = value
    if schedule.endswith("min_lr") and not {"min_lr", "min_lr_rate"} & set(kwargs):
        statement = f"train.lr_scheduler_type is {schedule} without its lowest rate"
        yield Problem(statement, "", "set train.lr_scheduler_kwargs: {min_lr_rate: 0.1}")
    if {"min_lr", "min_lr_rate"} <= set(kwargs) and schedule.endswith("min_lr"):
        yield Problem("train.lr_scheduler_kwargs has min_lr and min_lr_rate", "one of them", "leave one out")
    if schedule == "warmup_stable_decay" and "num_decay_steps" not in kwargs:
        statement = f"train.lr_scheduler_type is {schedule} without the length of its decay"
        yield Problem(statement, "", "set train.lr_scheduler_kwargs: {num_decay_steps: 100}")
    if schedule in WITHOUT_WARMUP and "warmup_steps" in asked and given["warmup_steps"]:
        remedy = "set train.lr_scheduler_type: constant_with_warmup" if schedule == "constant" else "leave it out"
        statement = f"train.warmup_steps is {given['warmup_steps']:g}, and {schedule} has no warm-up"
        yield Problem(statement, "", remedy)
    yield from _rate_problems(schedule, right, given)
    yield from _length_problems(right, given)


def _rate_problems(schedule: str, kwargs: GivenFields, given: GivenFields) -> Iterator[Problem]:
    """Yield a problem if the lowest rate is not below the highest."""
    rate = given.get("learning_rate")
    name, default = LOWEST.get(schedule, ("", 0))
    lowest = kwargs.get(name, default)
    if name and isinstance(rate, int | float) and not lowest < rate:
        statement = f"train.lr_scheduler_kwargs has {name}: {lowest:g}"
        if name not in kwargs:
            statement = f"train.lr_scheduler_type is {schedule}, which ends at a rate of {lowest:g}"
        remedy = f"set train.lr_scheduler_kwargs: {{{name}: 0}}"
        yield Problem(statement, f"one below train.learning_rate ({rate:g})", remedy)
    if "max_lr" in kwargs and not kwargs.get("min_lr", 0) <= kwargs["max_lr"]:
        statement = f"train.lr_scheduler_kwargs has min_lr: {kwargs['min_lr']:g}"
        yield Problem(statement, f"at most its max_lr ({kwargs['max_lr']:g})")


def _length_problems(kwargs: GivenFields, given: GivenFields) -> Iterator[Problem]:
    """Yield a problem if the decay is longer than the steps left for it."""
    steps, decay, warmup = given.get("max_steps"), kwargs.get("num_decay_steps"), given.get("warmup_steps") or 0
    if steps is None or decay is None:
        return
    warmup = warmup if warmup >= 1 else warmup * steps
    remaining = int(steps - warmup) - kwargs.get("num_stable_steps", 0)
    if decay > remaining:
        statement = f"train.lr_scheduler_kwargs has num_decay_steps: {decay}"
        expected = f"at most {max(remaining, 0)}, the steps of train.max_steps ({steps}) that are left for it"
        yield Problem(statement, expected)
