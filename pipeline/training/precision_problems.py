"""Number formats that a CPU, or PPO spread so, does not train in. No torch: `trueup check` asks it too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import Problem


def cpu_problem(precision: str, zero: int) -> Problem | None:
    """Return what speaks against training on a CPU so; None if nothing does.

    Args:
        precision: `compute.precision`.
        zero: `compute.zero` of a trainer of transformers, which takes bf16 with DeepSpeed on a GPU only; 0 of another.
    """
    if precision == "fp16":
        found, expected = "compute.precision is fp16 on a CPU", "auto, fp32 or bf16: only GPUs train in fp16"
        return Problem(found, expected, "set compute.precision: auto")
    if precision == "bf16" and zero:
        found, expected = f"compute.precision is bf16 with compute.zero {zero} on a CPU", "auto or fp32"
        return Problem(found, expected, "set compute.precision: fp32")
    return None


def ppo_problem(compute: Mapping[str, Any]) -> Problem | None:
    """Return what speaks against PPO in the number format of `compute`; None if nothing does.

    The loss of an fp16 computation is scaled, and the scale settled with all gradients in every process.
    """
    parts = next((word for word in ("zero", "fsdp") if compute.get(word)), None)
    if compute.get("precision") != "fp16" or parts is None:
        return None
    statement = f"compute.precision is fp16 for a ppo stage with compute.{parts}"
    expected = "auto, fp32 or bf16: sharded gradients are not scaled"
    return Problem(statement, expected, f"set compute.precision: bf16, or leave compute.{parts} out")
