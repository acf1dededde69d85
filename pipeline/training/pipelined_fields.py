"""The fields of `train` that the pipeline's training loop supports; other trainer fields are rejected. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import PipelineError, Problem
from pipeline.parallel.pipeline.split import REMEDY
from pipeline.training.fields import CommonTrain

if TYPE_CHECKING:
    from pipeline.models.load.adapter_config import Adapter

USED = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "eval_steps",
    "logging_steps",
    "lr_scheduler_kwargs",
    "optim_args",
)
"""Fields of `TrainingArguments` that the loop supports in addition to those of `CommonTrain`."""


def unused_problem(train: CommonTrain, adapter: Adapter | None = None) -> Problem | None:
    """Return the problem of the first option that a pipeline does not support; None if it supports all.

    Args:
        train: the stage's `train` block.
        adapter: the stage's `adapter:` block; None without one.
    """
    if adapter is not None:
        remedy = "set compute.pipeline_parallel: 1" if adapter.quantize else REMEDY
        return Problem("adapter with compute.pipeline_parallel", "whole weights that are trained", remedy)
    unused = sorted(set(train.passthrough()) - set(USED))
    if not unused:
        return None
    statement = f"train.{unused[0]} with compute.pipeline_parallel"
    return Problem(statement, f"one of {', '.join(USED)}", "leave it out, or use compute.zero")


def refuse_unused(train: CommonTrain, adapter: Adapter | None = None) -> None:
    """Reject options that a pipeline does not support.

    Raises:
        PipelineError: the recipe uses one.
    """
    problem = unused_problem(train, adapter)
    if problem is not None:
        raise PipelineError(problem)
