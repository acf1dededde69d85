"""Compute precisions that are not supported on a CPU, or with sharding. No torch: `trueup check` uses it too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import Problem


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


def ppo_problem(compute: Mapping[str, Any], kind: str = "ppo") -> Problem | None:
    """Return why PPO cannot use the precision and the sharding of `compute`; None if it can.

    With fp16 the loss is scaled, and adjusting the scale needs all gradients on every process.

    Args:
        compute: the `compute` settings.
        kind: kind of the stage, PPO or another that scales its loss so (`ComputeSupport.sharded_fp16` is false).
    """
    parts = next((word for word in ("zero", "fsdp") if compute.get(word)), None)
    if compute.get("precision") != "fp16" or parts is None:
        return None
    statement = f"compute.precision is fp16 for a {kind} stage with compute.{parts}"
    expected = "auto, fp32 or bf16: sharded gradients are not scaled"
    return Problem(statement, expected, f"set compute.precision: bf16, or leave compute.{parts} out")
