"""Distributes a trainer over processes: splits its batch, configures its sharding, and checks that both took effect."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.errors import PipelineError, Problem
from pipeline.parallel.batch_split import BatchSplit, divide
from pipeline.parallel.dims import ParallelDims
from pipeline.parallel.fsdp import arguments as fsdp
from pipeline.parallel.pipeline.split import pipeline_bubble_problem
from pipeline.parallel.ranks import Ranks
from pipeline.parallel.sequence.attention import SequenceShard, parallelism
from pipeline.parallel.tensor.audit import shards_of, shards_problem
from pipeline.parallel.zero.config import deepspeed_config, fit_buckets, width_of
from pipeline.plain_data import KeywordArguments
from pipeline.stage import StageContext

if TYPE_CHECKING:
    from transformers import Trainer


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
    stages = ctx.dims.pipeline_parallel
    if stages > 1:
        problem = pipeline_bubble_problem(batch_size, ctx.replicas, stages)
        if problem is not None:
            raise PipelineError(problem)
        ctx.note(f"the decoder layers lie on {stages} processes, a pipeline: together they count as one process")
    note_model_parallel(ctx)
    division = divide(batch_size, ctx.compute.micro_batch, longest, ctx.replicas, dims=ctx.dims, **options)
    sentence = division.sentence(what, longest)
    ctx.report(batch=sentence)
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


def sharding(dims: ParallelDims, precision: str, attention: str) -> KeywordArguments:
    """Return the `TrainingArguments` fields for data parallelism, ZeRO, FSDP2 and sequence parallelism.

    Args:
        dims: the parallel dimensions of the run.
        precision: compute precision.
        attention: `transformers`' name of the attention implementation, around which Ulysses exchanges shards.
    """
    accelerator_config: KeywordArguments = {"use_configured_state": "RANK" in os.environ}
    fields: KeywordArguments = {"accelerator_config": accelerator_config, "ddp_find_unused_parameters": False}
    if dims.zero:
        fields["deepspeed"] = deepspeed_config(dims, precision)
        if dims.sequence_parallel > 1:
            shard = SequenceShard.of(Ranks.current(), dims.sequence_parallel)
            fields["parallelism_config"] = parallelism(shard, attention)
    elif dims.fsdp:
        sharded = fsdp.trainer_fields()
        fields |= {**sharded, "accelerator_config": accelerator_config | sharded["accelerator_config"]}
    return fields


def check_distribution(ctx: StageContext, trainer: Trainer, precision: str) -> None:
    """Check that the trainer is distributed as `compute` says; fit DeepSpeed's bucket sizes to its model.

    accelerate falls back silently to plain data parallelism, or to one process, if it cannot do what is asked.

    Args:
        ctx: the stage's context.
        trainer: the trainer, before it trains.
        precision: compute precision.

    Raises:
        PipelineError: accelerate runs another kind of distribution, or on another number of processes.
    """
    accelerator, dims = trainer.accelerator, ctx.dims
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    wanted = "DEEPSPEED" if dims.zero else "FSDP" if dims.fsdp else "NO" if ctx.ranks == 1 else "MULTI"
    config = accelerator.parallelism_config
    sequence_shards = int(config.sp_size) if config is not None else 1
    is_as_asked = kind.startswith(wanted) and accelerator.num_processes == ctx.ranks
    if not is_as_asked or sequence_shards != dims.sequence_parallel:
        raise PipelineError(replace(_fallback_problem(dims, kind, accelerator.num_processes), stage=ctx.name))
    problem = shards_problem(trainer.model, dims.tensor_parallel, trainer.get_tp_size())
    if problem is not None:
        raise PipelineError(replace(problem, stage=ctx.name))
    engine = dict(fsdp.CONFIG) if dims.fsdp else {}
    ctx.report(accelerate={**engine, "distributed_type": kind, "num_processes": ctx.ranks})
    if dims.sequence_parallel > 1:
        ctx.report(accelerate={"sp_backend": str(config.sp_backend), "sp_size": sequence_shards})
    shards = shards_of(trainer.model)
    if shards is not None:
        ctx.report(accelerate={"tp_size": config.tp_size}, tensor_parallel=shards._asdict())
    if dims.zero:  # the trainer starts DeepSpeed later, with this configuration
        sizes = fit_buckets(accelerator.state.deepspeed_plugin.hf_ds_config.config, width_of(trainer.model))
        deepspeed = deepspeed_config(dims, precision)
        ctx.report(deepspeed={**deepspeed, "zero_optimization": {**deepspeed["zero_optimization"], **sizes}})


def _fallback_problem(dims: ParallelDims, kind: str, processes: int) -> Problem:
    """Return the problem of accelerate, which runs another kind of distribution, or on other processes."""
    asked = "data parallelism" if dims.engine == "plain" else dims.engine
    if dims.sequence_parallel > 1:
        asked += f" and sequence parallelism over {dims.sequence_parallel} processes"
    if dims.tensor_parallel > 1:
        asked = f"tensor parallelism over {dims.tensor_parallel} processes"
    statement = f"compute asks for {asked} on {dims.world_size} processes, accelerate runs {kind} on {processes}"
    return Problem(statement, "what was asked for", "set compute.zero: 3" if dims.fsdp else "see `trueup doctor`")
