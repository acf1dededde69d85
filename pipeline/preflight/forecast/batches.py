"""The batches of a stage: rows of a forward pass, and optimizer steps. Knows nothing of models or of memory."""

from __future__ import annotations

from typing import Any

from pipeline.errors import PipelineError
from pipeline.kind.traits import ComputeSupport
from pipeline.parallel.batch_split import divide, divisor_up_to
from pipeline.parallel.dims import ParallelDims
from pipeline.recipe.schema import Compute


def rows_asked(train: Any, compute: Compute, support: ComputeSupport) -> int | str:
    """Return the rows of a process's forward pass that a recipe asks for, in `compute` or in a field of `train`."""
    if support.takes_micro_batch:
        return compute.micro_batch
    rows: int = getattr(train, support.rows_per_pass.removeprefix("train."))
    return max(1, rows // compute.replicas)


def steps_of(train: Any, rows: int | None) -> int | None:
    """Return the optimizer steps of a stage on ``rows`` rows; None when neither they nor the steps are known."""
    if train.max_steps:
        return int(train.max_steps)
    return None if rows is None else max(1, int(train.epochs * rows / train.batch_size))


def micro_batch_of(batch_size: int, asked: int | str, longest: int, processes: int, stages: int = 1) -> int:
    """Return the rows of a forward pass; an approximation if the batch does not divide, which preflight reports.

    Args:
        batch_size: rows per optimizer step over all processes.
        asked: `compute.micro_batch`.
        longest: tokens of the longest row.
        processes: data-parallel processes that share the batch.
        stages: pipeline stages, each of which needs a micro-batch.
    """
    try:
        return divide(batch_size, asked, longest, processes, dims=ParallelDims(stages, stages)).micro_batch
    except PipelineError:
        share = max(1, batch_size // processes)
        return divisor_up_to(share, asked) if isinstance(asked, int) else share
