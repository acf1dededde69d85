"""Compute precisions that are not supported on a CPU, or with sharding. No torch: `trueup check` uses it too."""

from __future__ import annotations

from pipeline.errors import Problem
from pipeline.parallel.dims import ParallelSettings


def cpu_problem(precision: str, zero: int) -> Problem | None:
    """Return why a precision is not supported on a CPU; None if it is.

    Args:
        precision: `compute.precision`.
        zero: `compute.zero` for a transformers Trainer, which supports bf16 with DeepSpeed on a GPU only; 0 for others.
    """
    if precision == "fp16":
        statement, expected = "compute.precision is fp16 on a CPU", "auto, fp32 or bf16: only GPUs train in fp16"
        return Problem(statement, expected, "set compute.precision: auto")
    if precision == "bf16" and zero:
        statement, expected = f"compute.precision is bf16 with compute.zero {zero} on a CPU", "auto or fp32"
        return Problem(statement, expected, "set compute.precision: fp32")
    return None


def ppo_problem(precision: str, settings: ParallelSettings, kind: str = "ppo") -> Problem | None:
    """Return why PPO cannot use a precision with the sharding of `compute`; None if it can.

    With fp16 the loss is scaled, and adjusting the scale needs all gradients on every process.

    Args:
        precision: `compute.precision`.
        settings: the stage's `compute` block, or its parallel dimensions.
        kind: kind of the stage, PPO or another that scales its loss so (`ComputeSupport.sharded_fp16` is false).
    """
    word = "zero" if settings.zero else "fsdp" if settings.fsdp else None
    if precision != "fp16" or word is None:
        return None
    statement = f"compute.precision is fp16 for a {kind} stage with compute.{word}"
    expected = "auto, fp32 or bf16: sharded gradients are not scaled"
    return Problem(statement, expected, f"set compute.precision: bf16, or leave compute.{word} out")
