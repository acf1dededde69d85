"""Finds fields with valid values that contradict one another, such as a lower bound above its upper bound.

A trainer rejects them only when it is constructed, after data and model are loaded, or accepts them and learns nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import Problem, listed
from pipeline.trainer_fields.arguments import is_number
from pipeline.trainer_fields.table import GivenFields


@dataclass(frozen=True)
class Bounds:
    """Two fields of which one must not exceed the other.

    Attributes:
        lower: the field with the smaller value.
        upper: the field with the greater value.
        at_least: the trainer's default of ``lower``.
        at_most: the trainer's default of ``upper``.
        beside: field that must be on for either to be read; empty if there is none.
        strictly: whether equal values are wrong too.
    """

    lower: str
    upper: str
    at_least: float | None = None
    at_most: float | None = None
    beside: str = ""
    strictly: bool = False


BOUNDS = (
    Bounds("entropy_coef_min", "entropy_coef_max", 0.0, 1.0, beside="use_adaptive_entropy"),
    Bounds("entropy_coef", "entropy_coef_max", 0.0, 1.0, beside="use_adaptive_entropy"),
    Bounds(
        "vllm_importance_sampling_clip_min",
        "vllm_importance_sampling_clip_max",
        at_most=3.0,
        beside="use_vllm",
        strictly=True,
    ),
)

EXCLUDED = (
    ("use_vllm", "use_transformers_continuous_batching"),
    ("use_vllm", "cache_implementation"),
    ("use_transformers_continuous_batching", "cache_implementation"),
    ("vllm_server_base_url", "vllm_server_host"),
    ("vllm_server_base_url", "vllm_server_port"),
)
"""Pairs of fields of which the second has no effect if the first is set."""

SMOOTHED = {"exo_pair": (0.0, 1.0), "robust": (-math.inf, 0.5)}
"""Losses of DPO that need a `label_smoothing` between two numbers, both excluded."""
SORTED = ("aot", "aot_unpaired")
"""Losses that sort the rows of a batch, so that weights of rows cannot be applied."""
WITH_DIVERGENCE = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
"""Losses of a difference of divergences, which take any `f_divergence_type`."""


def contradictions(given: GivenFields, asked: frozenset[str]) -> Iterator[Problem]:
    """Yield problems of fields that contradict one another.

    Args:
        given: all fields of `train` with their values, including defaults of the kind's own fields.
        asked: names of the fields the recipe sets.
    """
    yield from _bounds_problems(given, asked)
    for first, second in EXCLUDED:
        if given.get(first) and given.get(second):
            yield Problem(f"train.{second} has no effect beside train.{first}", "", "leave one of them out")
    yield from _loss_problems(given)
    yield from _vllm_problems(given)
    if given.get("desirable_weight") == 0 == given.get("undesirable_weight"):
        statement = "train.desirable_weight and train.undesirable_weight are 0"
        yield Problem(statement, "one of them above 0: no row would be learnt from")


def _bounds_problems(given: GivenFields, asked: frozenset[str]) -> Iterator[Problem]:
    for one in BOUNDS:
        lower, upper = given.get(one.lower, one.at_least), given.get(one.upper, one.at_most)
        is_asked = {one.lower, one.upper} & asked and (not one.beside or given.get(one.beside))
        if not is_asked or not is_number(lower) or not is_number(upper):
            continue
        if lower > upper or (one.strictly and lower == upper):
            less = "below" if one.strictly else "at most"
            own = "" if one.upper in asked else ", its default"
            yield Problem(f"train.{one.lower} is {lower:g}", f"must be {less} train.{one.upper} ({upper:g}{own})")


def _loss_problems(given: GivenFields) -> Iterator[Problem]:
    """Yield problems of DPO's losses and of the fields they do not take."""
    asked = given.get("loss_type")
    losses = [str(loss) for loss in asked] if isinstance(asked, list) else [str(asked)]
    if asked == []:
        yield Problem("train.loss_type is an empty list", "at least one loss", "leave it out")
    if len(set(losses)) < len(losses):
        yield Problem(f"train.loss_type is {listed(losses)}", "each loss once", "weigh it with train.loss_weights")
    smoothing = given.get("label_smoothing") or 0.0
    for loss in losses:
        above, below = SMOOTHED.get(loss, (-math.inf, math.inf))
        if not above < smoothing < below:
            statement = f"train.label_smoothing is {smoothing:g} with train.loss_type {loss}"
            yield Problem(statement, "must be > 0" if smoothing <= above else f"must be < {below:g}", "set it to 0.001")
    unweighted = [loss for loss in losses if loss in SORTED]
    if given.get("use_weighting") and unweighted:
        statement = f"train.use_weighting is true with train.loss_type {unweighted[0]}"
        yield Problem(statement, "a loss that does not sort its rows", "leave one of them out")
    divergence = given.get("f_divergence_type", "reverse_kl")
    without = [loss for loss in losses if loss not in WITH_DIVERGENCE]
    if isinstance(asked, list) and divergence != "reverse_kl" and without and len(without) < len(losses):
        statement = f"train.f_divergence_type is {divergence} with train.loss_type {without[0]}"
        yield Problem(statement, f"losses that take it: {listed(WITH_DIVERGENCE)}", "leave one of them out")


def _vllm_problems(given: GivenFields) -> Iterator[Problem]:
    """Yield problems of the importance-sampling correction for vLLM."""
    if not given.get("use_vllm") or not given.get("vllm_importance_sampling_correction", True):
        return
    mode = str(given.get("vllm_importance_sampling_mode", "sequence_mask"))
    bounds = given.get("vllm_importance_sampling_clip_min"), given.get("vllm_importance_sampling_clip_max", 3.0)
    if mode.endswith("_truncate") and bounds == (None, None):
        statement = f"train.vllm_importance_sampling_mode is {mode} without a bound to cut at"
        yield Problem(statement, "", "set train.vllm_importance_sampling_clip_max: 3.0")
    if given.get("loss_type") == "vespo" and not mode.startswith("token_"):
        statement = f"train.loss_type is vespo, train.use_vllm is true and train.vllm_importance_sampling_mode {mode}"
        yield Problem(statement, "a mode for each token", "set train.vllm_importance_sampling_mode: token_truncate")
