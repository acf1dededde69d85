"""Which models and trainer settings tensor parallelism supports. No torch: `trueup check` uses it."""

from __future__ import annotations

from pipeline.errors import Problem

OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "sgd")
"""Optimizers whose steps tests have shown to be equal under tensor parallelism."""


def head_problem(heads: int, kv_heads: int, size: int) -> Problem | None:
    """Return the problem of attention heads that do not divide over ``size`` processes; None if they do."""
    for word, count in (("num_attention_heads", heads), ("num_key_value_heads", kv_heads)):
        if count % size:
            fitting = [n for n in range(1, count + 1) if heads % n == 0 and kv_heads % n == 0]
            near = min(fitting, key=lambda n: (abs(n - size), n))
            statement = f"compute.tensor_parallel {size} for a model with {word} {count}"
            remedy = f"use {near}" + (", on as many processes or a multiple" if near > 1 else "")
            return Problem(statement, f"one of {', '.join(map(str, fitting))}", remedy)
    return None


def optimizer_problem(optim: str, size: int) -> Problem | None:
    """Return the problem of `train.optim` on ``size`` processes; None if its steps are those of one process."""
    if optim in OPTIMIZERS:
        return None
    statement = f"train.optim is {optim} with compute.tensor_parallel {size}"
    return Problem(statement, f"one that steps each number by itself: {', '.join(OPTIMIZERS)}")


def dropout_problem(dropout: float, size: int) -> Problem | None:
    """Return the problem of `adapter.dropout` on ``size`` processes; None without dropout."""
    if not dropout:
        return None
    statement = f"adapter.dropout is {dropout} with compute.tensor_parallel {size}"
    remedy = "remove adapter.dropout, or set compute.tensor_parallel: 1"
    return Problem(statement, "0: processes would drop other numbers than one does", remedy)
