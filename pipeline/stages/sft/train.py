"""Trains a model on the assistant's turns of conversations with trl's SFTTrainer; `config.py` names the paper."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from trl import SFTConfig, SFTTrainer

from pipeline.errors import PipelineError, counted
from pipeline.models.load.pretrained import load_deferred_causal_lm, load_tokenizer
from pipeline.models.tokenizer.contract import unseen_opening
from pipeline.parallel.consolidation import consolidated_model
from pipeline.stage import Rows, StageContext, StageResult
from pipeline.stages.sft.config import Config
from pipeline.training.arguments import attend_without_mask, attention_kernel, attention_name, starting_weights
from pipeline.training.composition import TrainerParts, composed
from pipeline.training.data.batch_loader import BatchLoader
from pipeline.training.data.collate import CausalCollator
from pipeline.training.data.encoding import EncodedRows, encode_messages, template_problems
from pipeline.training.data.packing import packed, refuse_unpackable
from pipeline.training.data.sources import EncodedData, encode_source
from pipeline.training.fields import nothing_fits
from pipeline.training.finish import save_and_finish
from pipeline.training.fitting import context_length, fit
from pipeline.training.loop import Trained, run_trainer
from pipeline.training.pipelined import train_through_pipeline
from pipeline.training.pipelined_fields import refuse_unused
from pipeline.training.sequence_parallel import SequenceParallelTrainer, refuse_sequence_parallel
from pipeline.training.setup import (
    OpenedModel,
    Schedule,
    arguments_for,
    build_trainer,
    open_causal_lm,
    plan_steps,
    prepare,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run(ctx: StageContext, config: Config) -> StageResult:
    """Tune the model on demonstrations."""
    ctx = prepare(ctx)
    train, is_pipelined = config.train, ctx.dims.pipeline_parallel > 1
    opened = _open_pipelined(ctx, config) if is_pipelined else _open(ctx, config)
    data = _encode(ctx, opened)
    conversations, seen = len(data.train), [row["input_ids"] for row in data.train[:3]]
    if train.mode == "packed":
        data = data._replace(train=packed(data.train, opened.max_length))
    else:
        attend_without_mask(ctx, opened.model)
    lengths = [len(row["input_ids"]) for row in data.train]
    refuse_sequence_parallel(ctx, opened.model, max(lengths))
    schedule = plan_steps(ctx, train, lengths, "rows")
    arguments = arguments_for(
        SFTConfig, ctx, train, schedule, has_held_out=bool(data.held_out), max_length=None, packing=False
    )
    is_flat = "flash" in attention_name(ctx) and ctx.dims.sequence_parallel == 1
    collate = CausalCollator(opened.tokenizer.pad_token_id, with_mask=True, flat=is_flat)
    ctx.phase(f"training on {counted(conversations, 'conversation')}")
    if is_pipelined:
        trained, consolidated = train_through_pipeline(ctx, opened, arguments, schedule, data, collate)
    else:
        trained, consolidated = _train(ctx, config, opened, data, schedule, arguments, collate)
    return save_and_finish(
        ctx,
        trained,
        consolidated,
        opened,
        seen,
        rows=data.counts,
        summary=f"loss {trained.metrics.get('loss', float('nan')):.3f} on the assistant's tokens",
    )


def _open(ctx: StageContext, config: Config) -> OpenedModel:
    return open_causal_lm(ctx, config.adapter, config.train.max_length, chat_template=config.chat_template)


def _open_pipelined(ctx: StageContext, config: Config) -> OpenedModel:
    """Load the tokenizer and the model's structure; each pipeline stage loads its own weights later.

    Raises:
        PipelineError: a field is not supported with pipeline parallelism, or the files are quantised.
    """
    source = ctx.input("model")
    tokenizer = load_tokenizer(source, ctx.trust_remote_code)
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template
    refuse_unused(config.train, config.adapter)
    starting_weights(ctx, config.adapter)  # raises for quantised files
    model, deferred = load_deferred_causal_lm(source, ctx.trust_remote_code, attention=attention_kernel(ctx))
    fit(ctx, model, tokenizer, {"zero3": True})
    return OpenedModel(model, tokenizer, context_length(model, config.train.max_length), config.adapter, deferred)


def _train(
    ctx: StageContext,
    config: Config,
    opened: OpenedModel,
    data: EncodedData,
    schedule: Schedule,
    arguments: SFTConfig,
    collate: CausalCollator,
) -> tuple[Trained, Any | None]:
    """Train with trl's trainer; return the measurements and, on the first process, the consolidated model."""
    parts = TrainerParts.of(BatchLoader(schedule.batches, data.train))
    trainer_class = composed(SFTTrainer, beneath=SequenceParallelTrainer)
    trainer = build_trainer(trainer_class, opened, arguments, data, parts, data_collator=collate)
    if config.train.mode == "packed":
        refuse_unpackable(ctx, trainer.model, data.train, collate)
    return run_trainer(ctx, trainer, schedule.batches, schedule.steps, config.adapter), consolidated_model(trainer)


def _encode(ctx: StageContext, opened: OpenedModel) -> EncodedData:
    """Tokenize conversations; truncate rows that are too long, and drop rows without a token to train on.

    Raises:
        PipelineError: there is no chat template, the end token is not trained on, or no row is left.
    """
    rows, tokenizer, max_length = ctx.load_rows("data"), opened.tokenizer, opened.max_length
    encode = functools.partial(encode_messages, tokenizer)
    fate = "cut at the end"
    source = encode_source(ctx, "data", rows, encode, what="conversations", max_length=max_length, fate=fate)
    train = source.train
    problems = template_problems(tokenizer, rows.train, train)
    if problems:
        raise PipelineError(*problems)
    if train.kept and tokenizer.chat_template:
        _note_unseen_opening(ctx, tokenizer, rows, train)
    if not train.rows:
        raise nothing_fits("row", max_length)
    empty = len(rows.train) - len({*train.kept, *(fault.index for fault in train.faults)})
    counts = {**source.counts, "cut": len(train.too_long), "dropped": empty}
    return EncodedData(train.rows, source.held_out.rows, counts)


def _note_unseen_opening(ctx: StageContext, tokenizer: PreTrainedTokenizerBase, rows: Rows, train: EncodedRows) -> None:
    """Note if the chat template begins generated answers otherwise than the conversations do."""
    first = rows.train[train.kept[0]]
    opening = unseen_opening(tokenizer, first["messages"], first.get("tools"))
    if opening:
        ctx.note(
            f"the chat template begins a generated answer with {opening!r}, and the answers of these conversations "
            "begin otherwise: what follows such a beginning is not learnt here"
        )
