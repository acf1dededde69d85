"""Splits a batch: rows per micro-batch × accumulation steps × processes = rows per optimizer step. No torch.

A recipe gives the global batch size: the rows of one optimizer step over all processes. A run therefore takes the same
steps on one process and on sixty-four; only the split changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import PipelineError, Problem
from pipeline.kind.traits import ComputeSupport
from pipeline.parallel.dims import ParallelDims

TOKEN_BUDGET = 16_384
"""Tokens per forward pass that `micro_batch: auto` allows."""

ONE_PROCESS = ParallelDims()
"""No model parallelism."""


@dataclass(frozen=True)
class BatchSplit:
    """A global batch, split over processes and into micro-batches.

    Attributes:
        batch_size: rows per optimizer step over all processes.
        micro_batch: rows per forward pass of one process.
        processes: data-parallel processes that share the batch.
    """

    batch_size: int
    micro_batch: int
    processes: int = 1

    @property
    def accumulation(self) -> int:
        """Gradient accumulation: forward passes of each process per optimizer step."""
        return self.batch_size // (self.micro_batch * self.processes)

    def sentence(self, what: str = "rows", longest: int = 0) -> str:
        """Return the split as a sentence: ``4 rows × 2 accumulated × 2 processes = 16 rows per optimizer step``."""
        parts = [f"{self.micro_batch} {what}"]
        if self.accumulation > 1:
            parts.append(f"{self.accumulation} accumulated")
        parts.append(f"{self.processes} process{'es' if self.processes > 1 else ''}")
        tokens = f" of at most {longest:,} tokens" if longest else ""
        return f"{' × '.join(parts)} = {self.batch_size} {what} per optimizer step{tokens}"


def divide(
    batch_size: int,
    asked: int | str,
    longest: int,
    processes: int = 1,
    *,
    rows_per_unit: int = 1,
    batch_key: str = "batch_size",
    dims: ParallelDims = ONE_PROCESS,
) -> BatchSplit:
    """Split a global batch over processes, and each process's share into micro-batches.

    Args:
        batch_size: rows per optimizer step over all processes.
        asked: `compute.micro_batch`. A number must divide the rows of a process; one that is larger means all of them.
            ``auto`` takes as many rows as fit `TOKEN_BUDGET`.
        longest: tokens of the longest row.
        processes: data-parallel processes that share the batch, each a model-parallel group of ``dims``.
        rows_per_unit: consecutive rows that must stay on one process, such as the responses to one prompt.
        batch_key: recipe key under `train` that gives ``batch_size``, for error messages.
        dims: the run's parallel dimensions: a pipeline needs a micro-batch for each of its stages.

    Raises:
        PipelineError: the batch does not divide over the processes, or a process's rows not into the micro-batch.
    """
    rows_per_process, remainder = divmod(batch_size, processes)
    group_size = dims.model_parallel_size
    groups = f"{processes} processes" if group_size == 1 else f"{processes} groups of {group_size} processes"
    if remainder or rows_per_process % rows_per_unit:
        step = processes * rows_per_unit
        below, above = batch_size // step * step, -(-batch_size // step) * step
        near = f"{below} or {above}" if below else f"{above}"
        of_a_prompt = f", {rows_per_unit} of a prompt together" if rows_per_unit > 1 else ""
        statement = f"train.{batch_key} {batch_size} does not divide over {groups}{of_a_prompt}"
        raise PipelineError(Problem(statement, f"a multiple of {step}", f"use {near}, or another number of processes"))
    limit = rows_per_process // dims.pipeline_parallel
    if isinstance(asked, int) and asked < limit and rows_per_process % asked:
        near = (
            f"{divisor_up_to(rows_per_process, asked)} or {next(n for n in divisors(rows_per_process) if n >= asked)}"
        )
        of = f"the {rows_per_process} rows of train.{batch_key}" + (
            f" that each of {groups} has" if processes > 1 else ""
        )
        fitting = ", ".join(map(str, divisors(rows_per_process)))
        statement = f"compute.micro_batch {asked} does not divide {of}"
        raise PipelineError(Problem(statement, f"one of {fitting}, or auto", f"use {near}"))
    largest = asked if isinstance(asked, int) else max(1, TOKEN_BUDGET // max(longest, 1))
    return BatchSplit(batch_size, divisor_up_to(rows_per_process, min(largest, limit)), processes)


def divisor_up_to(rows: int, most: int) -> int:
    """Return the largest divisor of ``rows`` that is at most ``most``, and at least 1."""
    return max(n for n in divisors(rows) if n <= max(most, 1))


def divisors(rows: int) -> list[int]:
    """Return the divisors of ``rows`` in rising order."""
    small = [n for n in range(1, math.isqrt(rows) + 1) if rows % n == 0]
    return sorted({*small, *(rows // n for n in small)})


def batch_split_problems(
    train: object, micro_batch: int | str, dims: ParallelDims, support: ComputeSupport
) -> Iterator[Problem]:
    """Yield each batch size of a stage that does not divide over its processes or into its micro-batches.

    Args:
        train: the stage's `train` block.
        micro_batch: `compute.micro_batch`.
        dims: the stage's parallel dimensions.
        support: what of `compute` the stage's kind supports.
    """
    for batch_key in support.divided:
        rows = getattr(train, batch_key, None)
        if rows is None:
            continue
        asked = micro_batch if batch_key == "batch_size" and support.takes_micro_batch else "auto"
        try:
            divide(rows, asked, 1, dims.replicas, batch_key=batch_key, dims=dims)
        except PipelineError as error:
            yield from error.problems
