"""Builds a trainer's own config from the recipe's words. trl's defaults that surprise are set explicitly here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import PipelineError, Problem
from pipeline.models.adapter_config import Adapter
from pipeline.parallel.joining import join
from pipeline.stage import StageContext
from pipeline.training.distribution import sharding
from pipeline.training.fields import CommonTrain

Arguments = TypeVar("Arguments")


def use_cpu(ctx: StageContext) -> bool:
    """Return whether the stage runs without an accelerator."""
    import torch

    asked = ctx.compute.get("device", "auto")
    if asked == "cuda" and not torch.cuda.is_available():
        raise PipelineError(
            Problem("compute.device is cuda", "this machine has no CUDA device", "use `compute.device: auto`")
        )
    return asked == "cpu" or not torch.cuda.is_available()


def device_of(ctx: StageContext) -> str:
    """Return the device of this process: ``cpu``, or the GPU of its own."""
    return "cpu" if use_cpu(ctx) else f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def precision_of(ctx: StageContext) -> str:
    """Return `fp32`, `bf16` or `fp16`; ``auto`` is fp32 on a CPU, bf16 on a GPU that has it, fp16 otherwise."""
    import torch

    asked = str(ctx.compute.get("precision", "auto"))
    if asked != "auto":
        return asked
    if use_cpu(ctx):
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def prepare_torch(ctx: StageContext) -> None:
    """Give torch its threads (`compute.threads`; its own number by default) and its fastest matmul; join the others."""
    import torch

    from pipeline.models.matmul import use_fastest_matmul

    threads = ctx.compute.get("threads")
    if threads:
        torch.set_num_threads(int(threads))
    elif "LOCAL_WORLD_SIZE" in os.environ and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
    use_fastest_matmul()
    join(cpu=use_cpu(ctx), deepspeed=bool(ctx.compute.get("zero")))


def starting_weights(ctx: StageContext, adapter: Adapter | None) -> dict[str, Any]:
    """Return how a stage loads the weights it starts from.

    Weights that are trained are fp32, whatever the precision of the computation; those frozen beneath an adapter may
    be quantised.
    """
    if adapter is None or adapter.quantize is None:
        return {"dtype": "fp32"}
    if int(ctx.compute.get("zero") or 0) == 3:
        found = f"adapter.quantize is {adapter.quantize} and compute.zero is 3"
        raise PipelineError(Problem(found, "whole quantised weights on each process", "use compute.zero 0, 1 or 2"))
    return {"dtype": precision_of(ctx), "quantize": adapter.quantize}


def build_arguments(
    arguments_class: type[Arguments],
    ctx: StageContext,
    train: CommonTrain,
    *,
    micro_batch: int,
    steps: int,
    has_held_out: bool,
    **fixed: Any,
) -> Arguments:
    """Return ``arguments_class`` (SFTConfig, …) filled from the recipe.

    Args:
        arguments_class: config class of the trainer.
        ctx: of the stage.
        train: the recipe's words; its unknown keys are fields of ``arguments_class``.
        micro_batch: rows per forward.
        steps: optimizer steps in all.
        has_held_out: whether there are rows to evaluate on while training.
        fixed: fields the stage decides.

    Raises:
        PipelineError: ``arguments_class`` refuses a value.
    """
    precision = precision_of(ctx)
    logging_steps = max(1, min(10, steps // 20))
    values: dict[str, Any] = {
        "output_dir": str(checkpoints_dir(ctx)),
        "per_device_train_batch_size": micro_batch,
        "per_device_eval_batch_size": micro_batch,
        "gradient_accumulation_steps": train.batch_size // (micro_batch * ctx.ranks),
        "max_steps": steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.lr_scheduler_type,
        "warmup_steps": train.warmup_steps,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": train.optim,
        "seed": ctx.seed,
        "data_seed": ctx.seed,
        "use_cpu": use_cpu(ctx) and not ctx.compute.get("zero"),  # asked for a CPU, accelerate forgets DeepSpeed
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "gradient_checkpointing": bool(ctx.compute.get("activation_checkpointing", False)),
        "logging_steps": logging_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "save_total_limit": None,  # older checkpoints go once the new one is whole
        "eval_strategy": "steps" if has_held_out else "no",
        "eval_steps": max(logging_steps, -(-steps // 4)),
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": not use_cpu(ctx),
        "remove_unused_columns": False,
        **sharding(ctx, precision),
    }
    values.update(train.passthrough())
    values.update(fixed)
    return _made(arguments_class, values)


def _made(arguments_class: type[Arguments], values: dict[str, Any]) -> Arguments:
    try:
        return arguments_class(**values)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise PipelineError(Problem(f"{arguments_class.__name__} does not take this `train`: {reason}")) from error


def checkpoints_dir(ctx: StageContext) -> Path:
    """Return the folder a stage's trainer keeps its checkpoints in."""
    return ctx.work / "checkpoints"
