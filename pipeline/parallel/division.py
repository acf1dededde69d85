"""How a batch is cut: rows of a forward pass × passes accumulated × processes = rows of an optimizer step. No torch.

The batch of a recipe is that of an optimizer step over all processes, so a run takes the same steps on one process and
on sixty-four; what changes is how the batch is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import PipelineError, Problem

TOKEN_BUDGET = 16_384
"""Tokens of a forward pass that `micro_batch: auto` allows."""


@dataclass(frozen=True)
class Division:
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
) -> Division:
    """Cut a batch.

    Args:
        batch_size: rows of an optimizer step over all processes.
        asked: `compute.micro_batch`: a number, lowered to the nearest that divides the batch, or ``auto``: as many rows
            as fit ``budget``.
        longest: tokens of the longest row.
        processes: that share the batch.
        budget: tokens of a forward pass that ``auto`` allows.
        group: rows that must stay together in a process.
        word: of `train` that says how many rows.

    Raises:
        PipelineError: the batch does not divide over the processes.
    """
    share, rest = divmod(batch_size, processes)
    if rest or share % group:
        step = processes * group
        below, above = batch_size // step * step, -(-batch_size // step) * step
        near = f"{below} or {above}" if below else f"{above}"
        together = f", {group} of a prompt together" if group > 1 else ""
        found = f"train.{word} {batch_size} does not divide over {processes} processes{together}"
        raise PipelineError(Problem(found, f"a multiple of {step}", f"use {near}, or another number of processes"))
    most = asked if isinstance(asked, int) else max(1, budget // max(longest, 1))
    return Division(batch_size, max(n for n in range(1, share + 1) if share % n == 0 and n <= max(most, 1)), processes)


def head_problem(heads: int, kv_heads: int, size: int) -> Problem | None:
    """Return what keeps attention heads from being shared out evenly over ``size`` processes."""
    for word, count in (("num_attention_heads", heads), ("num_key_value_heads", kv_heads)):
        if count % size:
            fitting = [n for n in range(1, count + 1) if heads % n == 0 and kv_heads % n == 0]
            near = min(fitting, key=lambda n: (abs(n - size), n))
            found = f"compute.tensor_parallel {size} for a model with {word} {count}"
            remedy = f"use {near}" + (", on as many processes" if near > 1 else "")
            return Problem(found, f"one of {', '.join(map(str, fitting))}", remedy)
    return None
