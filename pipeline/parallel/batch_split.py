"""How a batch is cut: rows of a forward pass × passes accumulated × processes = rows of an optimizer step. No torch.

The batch of a recipe is that of an optimizer step over all processes, so a run takes the same steps on one process and
on sixty-four; what changes is how the batch is cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.errors import PipelineError, Problem

TOKEN_BUDGET = 16_384
"""Tokens of a forward pass that `micro_batch: auto` allows."""


@dataclass(frozen=True)
class BatchSplit:
    """A batch cut for processes.

    Attributes:
        batch_size: rows of an optimizer step over all processes.
        micro_batch: rows of a forward pass of one process.
        processes: that share the batch.
    """

    batch_size: int
    micro_batch: int
    processes: int = 1

    @property
    def accumulation(self) -> int:
        """Forward passes of each process per optimizer step."""
        return self.batch_size // (self.micro_batch * self.processes)

    def sentence(self, what: str = "rows", longest: int = 0) -> str:
        """Say it: ``4 rows × 2 accumulated × 2 processes = 16 rows per optimizer step``."""
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
    budget: int = TOKEN_BUDGET,
    group: int = 1,
    word: str = "batch_size",
    passes: int = 1,
    together: int = 1,
) -> BatchSplit:
    """Cut a batch.

    Args:
        batch_size: rows of an optimizer step over all processes.
        asked: `compute.micro_batch`: rows that divide those of a process (more than it has are all it has), or
            ``auto``: as many as fit ``budget``.
        longest: tokens of the longest row.
        processes: that share the batch.
        budget: tokens of a forward pass that ``auto`` allows.
        group: rows that must stay together in a process.
        word: of `train` that says how many rows.
        passes: of an optimizer step at least, in each process: a pipeline needs one for each of its parts.
        together: processes that work on the same rows, where each of ``processes`` is a group of them.

    Raises:
        PipelineError: the batch does not divide over the processes, or not into what is asked for.
    """
    share, rest = divmod(batch_size, processes)
    groups = f"{processes} processes" if together == 1 else f"{processes} groups of {together} processes"
    if rest or share % group:
        step = processes * group
        below, above = batch_size // step * step, -(-batch_size // step) * step
        near = f"{below} or {above}" if below else f"{above}"
        of_a_prompt = f", {group} of a prompt together" if group > 1 else ""
        statement = f"train.{word} {batch_size} does not divide over {groups}{of_a_prompt}"
        raise PipelineError(Problem(statement, f"a multiple of {step}", f"use {near}, or another number of processes"))
    limit = share // passes
    if isinstance(asked, int) and asked < limit and share % asked:
        near = f"{divisor_up_to(share, asked)} or {next(n for n in divisors(share) if n >= asked)}"
        of = f"the {share} rows of train.{word}" + (f" that each of {groups} has" if processes > 1 else "")
        fitting = ", ".join(map(str, divisors(share)))
        statement = f"compute.micro_batch {asked} does not divide {of}"
        raise PipelineError(Problem(statement, f"one of {fitting}, or auto", f"use {near}"))
    most = asked if isinstance(asked, int) else max(1, budget // max(longest, 1))
    return BatchSplit(batch_size, divisor_up_to(share, min(most, limit)), processes)


def divisor_up_to(rows: int, most: int) -> int:
    """Return the largest divisor of ``rows`` that is at most ``most``; 1 at least."""
    return max(n for n in divisors(rows) if n <= max(most, 1))


def divisors(rows: int) -> list[int]:
    """Return what divides ``rows``, in order; its square root is as far as one has to look."""
    small = [n for n in range(1, math.isqrt(rows) + 1) if rows % n == 0]
    return sorted({*small, *(rows // n for n in small)})


def batch_split_problems(train: Any, compute: Any, kind: str) -> Iterator[Problem]:
    """Find what of a stage's batches does not divide over its processes, or not into its micro-batches.

    Args:
        train: fields of `train`.
        compute: of the stage.
        kind: of stage; `ppo` and `kto` do not go by `compute.micro_batch`.
    """
    for word in ("batch_size", "kl_batch"):
        rows = getattr(train, word, None)
        if rows is None:
            continue
        asked = compute.micro_batch if word == "batch_size" and kind not in ("ppo", "kto") else "auto"
        try:
            options = {"passes": compute.pipeline_parallel, "together": compute.group}
            divide(rows, asked, 1, compute.replicas, word=word, **options)
        except PipelineError as error:
            yield from error.problems


def head_problem(heads: int, kv_heads: int, size: int) -> Problem | None:
    """Return what keeps attention heads from being shared out evenly over ``size`` processes."""
    for word, count in (("num_attention_heads", heads), ("num_key_value_heads", kv_heads)):
        if count % size:
            fitting = [n for n in range(1, count + 1) if heads % n == 0 and kv_heads % n == 0]
            near = min(fitting, key=lambda n: (abs(n - size), n))
            statement = f"compute.tensor_parallel {size} for a model with {word} {count}"
            remedy = f"use {near}" + (", on as many processes or a multiple" if near > 1 else "")
            return Problem(statement, f"one of {', '.join(map(str, fitting))}", remedy)
    return None
