"""Builds a trainer's config (SFTConfig, …) from the recipe's fields. Surprising defaults of trl are set explicitly."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from pipeline.errors import PipelineError, Problem, counted
from pipeline.machine.limits import usable_cpus
from pipeline.models.cpu.bf16_speed import NO_INSTRUCTIONS, SMALLEST_WIDTH
from pipeline.models.cpu.matmul import use_fastest_matmul
from pipeline.models.cpu.precision import Choice, fastest_precision
from pipeline.models.load.adapter_config import Adapter
from pipeline.models.load.kernels import attention_of, uses_liger, without_mask
from pipeline.models.load.pretrained import Precision, WeightOptions, hidden_size, stored_bits
from pipeline.models.load.quantized_files import layout_problem, quantized_files_problem
from pipeline.parallel.process_group import init_process_group
from pipeline.parallel.ranks import Ranks
from pipeline.parallel.zero.config import deepspeed_config
from pipeline.parallel.zero.zero3 import DeepSpeedConfig
from pipeline.plain_data import KeywordArguments
from pipeline.stage import StageContext
from pipeline.training.distribution import sharding
from pipeline.training.fields import CommonTrain
from pipeline.training.precision_problems import cpu_problem

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

Arguments = TypeVar("Arguments")


def use_cpu(ctx: StageContext) -> bool:
    """Return whether the stage runs without an accelerator.

    Raises:
        PipelineError: the recipe asks for CUDA, and there is no CUDA device.
    """
    asked = ctx.compute.device
    if asked == "cuda" and not torch.cuda.is_available():
        raise PipelineError(
            Problem("compute.device is cuda", "this machine has no CUDA device", "use `compute.device: auto`")
        )
    return asked == "cpu" or not torch.cuda.is_available()


def device_of(ctx: StageContext) -> str:
    """Return this process's device: ``cpu``, or the GPU of its local rank."""
    return "cpu" if use_cpu(ctx) else f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def precision_of(ctx: StageContext) -> Precision:
    """Return the compute precision of a stage that has begun: `fp32`, `bf16` or `fp16`.

    Raises:
        RuntimeError: the stage's context still says ``auto``.
    """
    precision = ctx.compute.precision
    if precision == "auto":
        raise RuntimeError("the precision is not resolved: a stage begins with `ctx = prepare(ctx)`")
    return precision


def resolve_precision(ctx: StageContext, width: int = 0) -> StageContext:
    """Return the context with the precision that `compute.precision: auto` stands for.

    It is bf16 on a GPU that supports it and fp16 on another GPU; on a CPU it is the faster format for the model's
    width. The first process decides for all; a resumed stage keeps its precision, on any machine. Every process calls
    it.

    Args:
        ctx: the stage's context.
        width: hidden size of the model; that of the stage's input model when omitted.
    """
    asked = ctx.compute.precision
    return with_precision(ctx, _auto_precision(ctx, width) if asked == "auto" else asked)


def with_precision(ctx: StageContext, precision: Precision) -> StageContext:
    """Return the context with this compute precision, and report it."""
    ctx.report(precision=precision)
    return replace(ctx, compute=replace(ctx.compute, precision=precision))


def _auto_precision(ctx: StageContext, width: int) -> Precision:
    if not use_cpu(ctx):
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    if ctx.dims.zero:  # transformers supports bf16 with DeepSpeed on a GPU only
        return "fp32"
    width = width or _width_of_input(ctx)
    if width < SMALLEST_WIDTH:
        return "fp32"
    decided = _decided_precision(ctx, width) if ctx.is_first else "fp32"
    return "bf16" if Ranks.current().all_reduce_max(float(decided == "bf16")) else "fp32"


def _decided_precision(ctx: StageContext, width: int) -> str:
    """Return the precision this stage began with; decide for the faster one when it begins."""
    file = ctx.work / "precision.json"
    try:
        choice = Choice(*json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        choice = fastest_precision(width)
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(choice), encoding="utf-8")
        partial.replace(file)
        if choice.reason != NO_INSTRUCTIONS:
            other = "bf16" if choice.precision == "fp32" else "fp32"
            ctx.note(f"computes in {choice.precision}: {choice.reason}; `compute.precision: {other}` takes the other")
    ctx.report(precision_reason=choice.reason)
    return choice.precision


def _width_of_input(ctx: StageContext) -> int:
    starts = [*ctx.inputs.get("model", []), *ctx.inputs.get("init", [])]
    return hidden_size(starts[0], ctx.trust_remote_code) if starts else 0


def prepare_torch(ctx: StageContext) -> StageContext:
    """Set torch's number of threads, choose the fastest matmul, and initialise the process group.

    On a GPU the precision is resolved in the returned context. On a CPU it is not: a stage that trains resolves it for
    the model's width, and one that only generates or scores computes in fp32.

    The number of threads is `compute.threads`, else `OMP_NUM_THREADS`, else torch's own number or less: the processes
    of one machine share its cores, and a container may have fewer cores than it sees.

    Raises:
        PipelineError: not all processes of the stage have joined.
    """
    if ctx.compute.threads:
        torch.set_num_threads(ctx.compute.threads)
    elif "OMP_NUM_THREADS" not in os.environ:
        share = max(1, usable_cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        torch.set_num_threads(min(share, torch.get_num_threads()))
    if use_cpu(ctx):
        use_fastest_matmul()
    else:
        ctx = resolve_precision(ctx)
        if precision_of(ctx) != "fp32":
            torch.set_float32_matmul_precision("high")  # TF32 for the few products autocast leaves in fp32
    if use_cpu(ctx) and ctx.dims.offload != "none":
        ctx.note(f"compute.offload: {ctx.dims.offload} saves nothing here: it moves a GPU's state to the CPU")
    init_process_group(cpu=use_cpu(ctx), deepspeed=ctx.dims.zero > 0)
    joined = Ranks.current().count
    if joined != ctx.ranks:
        statement = f"{joined} of {counted(ctx.ranks, 'process', 'processes')} joined"
        raise PipelineError(Problem(statement, "all of them", "see the logs of the others", stage=ctx.name))
    return ctx


def starting_weights(ctx: StageContext, adapter: Adapter | None) -> WeightOptions:
    """Return how a stage loads its starting weights.

    Trained weights are fp32, whatever the compute precision; frozen weights under an adapter may be quantised.

    Raises:
        PipelineError: the files are quantised, and this stage cannot train or shard such a model.
    """
    common = WeightOptions(attention=attention_kernel(ctx), tp_size=ctx.dims.tensor_parallel)
    source = ctx.input("model")
    bits = stored_bits(source, ctx.trust_remote_code)
    problem = quantized_files_problem(source.ref, bits, adapter)
    if bits and problem is None:
        problem = layout_problem(f"`{source.ref}` is kept quantised ({bits})", ctx.dims)
    if problem is not None:
        raise PipelineError(problem)
    if adapter is None or adapter.quantize is None:
        return {"dtype": "fp32", "zero3": zero3_config(ctx), **common}
    return {"dtype": precision_of(ctx), "quantize": adapter.quantize, **common}


def zero3_config(ctx: StageContext) -> DeepSpeedConfig | None:
    """Return the ZeRO-3 configuration with which a stage shards a model while loading it; None without ZeRO-3."""
    if ctx.dims.zero < 3 or "RANK" not in os.environ:
        return None
    ctx.report(loaded="sharded")
    return deepspeed_config(ctx.dims, precision_of(ctx))


def frozen_weights(ctx: StageContext) -> tuple[str, WeightOptions]:
    """Return the device of a model that only generates or scores.

    On a GPU its weights are in the compute precision, which halves the memory; on a CPU they are fp32.
    """
    return device_of(ctx), {"dtype": "fp32" if use_cpu(ctx) else precision_of(ctx)}


def attention_kernel(ctx: StageContext) -> str | None:
    """Resolve `compute.attention` to `transformers`' name of an implementation; None leaves it to `transformers`.

    Raises:
        PipelineError: FlashAttention is asked for, and it is not installed or not supported here.
    """
    on_gpu = not use_cpu(ctx)
    return attention_of(ctx.compute.attention, on_gpu=on_gpu, precision=precision_of(ctx) if on_gpu else "fp32")


def attention_name(ctx: StageContext) -> str:
    """Return `transformers`' name of the attention implementation that a stage asks for; see `attention_kernel`."""
    return attention_kernel(ctx) or "sdpa"


def liger_kernels(ctx: StageContext) -> bool:
    """Return whether Liger's kernels are used.

    Raises:
        PipelineError: they are asked for, and there is no GPU or Liger is not installed.
    """
    sharded = ctx.dims.tensor_parallel > 1  # Liger's kernels do not support DTensors
    asked = "off" if sharded else ctx.compute.liger
    return uses_liger(asked, on_gpu=not use_cpu(ctx))


def attend_without_mask(ctx: StageContext, model: PreTrainedModel | PeftModel) -> None:
    """On a GPU, keep a model whose rows are padded on the right from building attention masks."""
    if ctx.dims.sequence_parallel > 1:  # DeepSpeed drops masks, and does not know `WITHOUT_MASK`
        return
    if not use_cpu(ctx):
        without_mask(model)


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
        ctx: the stage's context.
        train: the recipe's `train` block; its further keys are fields of ``arguments_class``.
        micro_batch: rows per forward pass.
        steps: optimizer steps in all.
        has_held_out: whether there are held-out rows to evaluate on.
        fixed: fields that the stage sets.

    Raises:
        PipelineError: ``arguments_class`` refuses a value.
    """
    logging_steps = max(1, min(10, steps // 20))
    values: KeywordArguments = {
        "output_dir": str(checkpoints_dir(ctx)),
        "per_device_train_batch_size": micro_batch,
        "per_device_eval_batch_size": micro_batch,
        "gradient_accumulation_steps": train.batch_size // (micro_batch * ctx.replicas),
        "max_steps": steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.lr_scheduler_type,
        "warmup_steps": train.warmup_steps,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "optim": train.optim,
        "seed": ctx.seed,
        "data_seed": ctx.seed,
        "logging_steps": logging_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "save_total_limit": None,  # `checkpoints.py` removes older checkpoints once the new one is complete
        "eval_strategy": "steps" if has_held_out else "no",
        "eval_steps": max(logging_steps, -(-steps // 4)),
        "report_to": "none",
        "run_name": ctx.name,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        **_computing(ctx),
    }
    values.update(train.passthrough())
    values.update(fixed)
    return _with_best(arguments_class, values, has_held_out=has_held_out)


def _with_best(arguments_class: type[Arguments], values: KeywordArguments, *, has_held_out: bool) -> Arguments:
    """Return the arguments; `load_best_model_at_end` is set only after transformers' checks (`best.py` implements it).

    transformers would need a checkpoint of every evaluation, and would choose the best among those that are left.

    Raises:
        PipelineError: the best evaluation is asked for, and there are no held-out rows.
    """
    keeps_best = bool(values.pop("load_best_model_at_end", False))
    if keeps_best:
        if not has_held_out:
            statement, remedy = "train.load_best_model_at_end is true", "set `held_out` of the data source"
            raise PipelineError(Problem(statement, "held-out rows to evaluate on", remedy))
        values["metric_for_best_model"] = values.get("metric_for_best_model") or "loss"
        values["save_strategy"] = "no"  # `Watcher` saves periodically, and `is_new_best` at each new best evaluation
    arguments: Any = _instantiated(arguments_class, values)
    arguments.load_best_model_at_end = keeps_best
    return cast(Arguments, arguments)


def _computing(ctx: StageContext) -> KeywordArguments:
    """Return the `TrainingArguments` fields for device, precision, checkpointing, kernels and distribution."""
    precision, on_gpu = precision_of(ctx), not use_cpu(ctx)
    problem = None if on_gpu else cpu_problem(precision, ctx.dims.zero)
    if problem is not None:
        raise PipelineError(problem)
    fields = {
        "use_cpu": not on_gpu and not ctx.dims.zero,  # with `use_cpu` accelerate ignores DeepSpeed
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "gradient_checkpointing": ctx.compute.recomputes,
        "dataloader_pin_memory": on_gpu,
        "use_liger_kernel": liger_kernels(ctx),
        **sharding(ctx.dims, precision, attention_name(ctx)),
    }
    fields["accelerator_config"]["non_blocking"] = on_gpu  # copies to a GPU overlap with its computation
    return fields


def _instantiated(arguments_class: type[Arguments], values: KeywordArguments) -> Arguments:
    try:
        arguments: Any = arguments_class(**values)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise PipelineError(Problem(f"{arguments_class.__name__} does not take this `train`: {reason}")) from error
    if arguments.n_gpu > 1:  # no nn.DataParallel over all visible GPUs: `compute.processes` sets their number
        arguments._n_gpu = 1
    return cast(Arguments, arguments)


def checkpoints_dir(ctx: StageContext) -> Path:
    """Return the folder a stage's trainer keeps its checkpoints in."""
    return ctx.work / "checkpoints"
