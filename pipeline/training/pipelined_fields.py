"""The fields of `train` that the loop of a pipeline reads; the trainer's others would be passed over. No torch."""

from __future__ import annotations

from typing import Any

from pipeline.errors import PipelineError, Problem
from pipeline.parallel.pipeline.split import REMEDY
from pipeline.training.fields import CommonTrain

USED = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "eval_steps",
    "logging_steps",
    "lr_scheduler_kwargs",
    "optim_args",
)
"""Fields of `TrainingArguments` that this loop takes from `train`, beside the documented ones."""


def unused_problem(train: CommonTrain, adapter: Any = None) -> Problem | None:
    """Return the first thing asked for that a pipeline would ignore, as a problem; None if it heeds all.

    Args:
        train: the recipe's words.
        adapter: of the stage.
    """
    if adapter is not None:
        remedy = "set compute.pipeline_parallel: 1" if adapter.quantize else REMEDY
        return Problem("adapter with compute.pipeline_parallel", "whole weights that are trained", remedy)
    unused = sorted(set(train.passthrough()) - set(USED))
    if not unused:
        return None
    statement = f"train.{unused[0]} with compute.pipeline_parallel"
    return Problem(statement, f"one of {', '.join(USED)}", "leave it out, or use compute.zero")


def refuse_unused(train: CommonTrain, adapter: Any = None) -> None:
    """Refuse what a pipeline would ignore.

    Raises:
        PipelineError: there are some.
    """
    problem = unused_problem(train, adapter)
    if problem is not None:
        raise PipelineError(problem)
