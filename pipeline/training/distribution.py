"""Distributes a trainer over processes: splits its batch, configures its sharding, and checks that both took effect."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from pipeline.errors import PipelineError, Problem
from pipeline.parallel.batch_split import BatchSplit, divide
from pipeline.parallel.fsdp import arguments as fsdp
from pipeline.parallel.pipeline.split import pipeline_bubble_problem
from pipeline.parallel.ranks import Ranks
from pipeline.parallel.sequence.attention import SequenceShard, parallelism
from pipeline.parallel.zero.config import deepspeed_config, fit_buckets, width_of
from pipeline.stage import StageContext


def divided(ctx: StageContext, batch_size: int, longest: int, what: str = "rows", **options: Any) -> BatchSplit:
    """Split a batch over the stage's processes, and note the split if there is one.

    Args:
        ctx: the stage's context.
        batch_size: rows per optimizer step over all processes.
        longest: tokens of the longest row.
        what: name of the rows in the note.
        options: further arguments of `divide`.

    Raises:
        PipelineError: the batch does not divide over the processes.
    """
    stages, together = ctx.dims.pipeline_parallel, ctx.dims.model_parallel_size
    if stages > 1:
        problem = pipeline_bubble_problem(batch_size, ctx.replicas, stages)
        if problem is not None:
            raise PipelineError(problem)
        ctx.note(f"the decoder layers lie on {stages} processes, a pipeline: together they count as one process")
    note_model_parallel(ctx)
    division = divide(
        batch_size, ctx.compute.micro_batch, longest, ctx.replicas, passes=stages, together=together, **options
    )
    sentence = ctx.runtime_report["batch"] = division.sentence(what, longest)
    if division.processes > 1 or division.accumulation > 1:
        ctx.note(sentence)
    return division


def note_model_parallel(ctx: StageContext) -> None:
    """Note that the processes of a tensor- or sequence-parallel group count as one for the batch."""
    size = ctx.dims.sequence_parallel
    if size > 1:
        ctx.note(f"sequence parallel: {size} processes share the tokens of each row and count as one process")
    size = ctx.dims.tensor_parallel
    if size > 1:
        ctx.note(f"tensor parallel: {size} processes share every large matrix and count as one process")


def sharding(ctx: StageContext, precision: str) -> dict[str, Any]:
    """Return the `TrainingArguments` fields for data parallelism, ZeRO, FSDP2 and sequence parallelism."""
    joined = "RANK" in os.environ
    fields: dict[str, Any] = {"accelerator_config": {"use_configured_state": joined}}
    fields["ddp_find_unused_parameters"] = False
    if ctx.dims.zero:
        ctx.runtime_report["deepspeed"] = deepspeed_config(ctx.dims, precision)
        if ctx.dims.sequence_parallel > 1:
            shard = SequenceShard.of(Ranks.current(), ctx.dims.sequence_parallel)
            fields["parallelism_config"] = parallelism(shard, ctx.runtime_report["attention"])
        return {**fields, "deepspeed": ctx.runtime_report["deepspeed"]}
    if ctx.dims.fsdp:
        sharded = fsdp.trainer_fields()
        ctx.runtime_report["accelerate"] = dict(sharded["fsdp_config"])
        return {**fields, **sharded, "accelerator_config": fields["accelerator_config"] | sharded["accelerator_config"]}
    return fields


def check_distribution(ctx: StageContext, trainer: Any) -> None:
    """Check that the trainer is distributed as `compute` says; fit DeepSpeed's bucket sizes to its model.

    accelerate falls back silently to plain data parallelism, or to one process, if it cannot do what is asked.

    Raises:
        PipelineError: accelerate runs another kind of distribution, or on another number of processes.
    """
    accelerator = trainer.accelerator
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    zero, is_fsdp = ctx.dims.zero, ctx.dims.fsdp
    wanted = "DEEPSPEED" if zero else "FSDP" if is_fsdp else "NO" if ctx.ranks == 1 else "MULTI"
    size, config = ctx.dims.sequence_parallel, accelerator.parallelism_config
    sharded = int(config.sp_size) if config is not None else 1
    if kind.startswith(wanted) and accelerator.num_processes == ctx.ranks and sharded == size:
        ctx.runtime_report.setdefault("accelerate", {}).update(distributed_type=kind, num_processes=ctx.ranks)
        if size > 1:
            ctx.runtime_report["accelerate"].update(sp_backend=str(config.sp_backend), sp_size=sharded)
        _check_shards(ctx, trainer)
        if zero:  # the trainer starts DeepSpeed later, with this configuration
            engine = accelerator.state.deepspeed_plugin.hf_ds_config.config
            ctx.runtime_report["deepspeed"]["zero_optimization"].update(fit_buckets(engine, width_of(trainer.model)))
        return
    asked = f"ZeRO-{zero}" if zero else "FSDP2" if is_fsdp else "data parallelism"
    asked += f" and sequence parallelism over {size} processes" if size > 1 else ""
    matrices = ctx.dims.tensor_parallel
    asked = f"tensor parallelism over {matrices} processes" if matrices > 1 else asked
    raise PipelineError(
        Problem(
            f"compute asks for {asked} on {ctx.ranks} processes, accelerate runs {kind} on {accelerator.num_processes}",
            "what was asked for",
            "set compute.zero: 3" if is_fsdp else "see `trueup doctor`",
            stage=ctx.name,
        )
    )


def _check_shards(ctx: StageContext, trainer: Any) -> None:
    """Check that the model is sharded as `compute.tensor_parallel` says, and report it for the manifest.

    Raises:
        PipelineError: it is not, or this process holds all weights.
    """
    from pipeline.parallel.tensor.audit import shards_of, shards_problem

    problem = shards_problem(trainer.model, ctx.dims.tensor_parallel, trainer.get_tp_size())
    if problem is not None:
        raise PipelineError(replace(problem, stage=ctx.name))
    shards = shards_of(trainer.model)
    if shards is not None:
        ctx.runtime_report["accelerate"].update(tp_size=trainer.accelerator.parallelism_config.tp_size)
        ctx.runtime_report["tensor_parallel"] = shards._asdict()
