"""Checks the model of a stage under sequence parallelism; `parallel/sequence/` owns how it trains."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError
from pipeline.parallel.sequence.checks import model_problems
from pipeline.parallel.sequence.trainer import SequenceParallelTrainer
from pipeline.stage import StageContext
from pipeline.training.arguments import attention_name

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def refuse_sequence_parallel(ctx: StageContext, model: PreTrainedModel | PeftModel, longest: int) -> None:
    """Reject a model that does not support `compute.sequence_parallel`; does nothing without sequence parallelism.

    Args:
        ctx: the stage's context.
        model: the loaded model.
        longest: tokens of the longest row.

    Raises:
        PipelineError: the model's rows cannot be sharded, or the padded rows exceed its context.
    """
    if ctx.dims.sequence_parallel == 1:
        return
    problems = model_problems(model, longest, ctx.dims, attention_name(ctx))
    if problems:
        raise PipelineError(*(replace(problem, stage=ctx.name) for problem in problems))


__all__ = ["SequenceParallelTrainer", "refuse_sequence_parallel"]
