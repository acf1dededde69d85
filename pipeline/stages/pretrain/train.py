"""Trains a language model on texts with transformers' Trainer; `config.py` names the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import TrainingArguments

from pipeline.artifacts.provenance import descended
from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.models.load.deferred import Deferred
from pipeline.models.load.pretrained import hidden_size, load_causal_lm, load_deferred_causal_lm, load_tokenizer
from pipeline.models.load.scratch import build_causal_lm, model_config
from pipeline.models.save.artifact import save_model
from pipeline.models.tokenizer.encoding import TextEncoder
from pipeline.parallel.consolidation import consolidated_model
from pipeline.parallel.tensor.sharding import shard_model
from pipeline.parallel.zero.zero3 import count_parameters
from pipeline.plain_data import JsonObject, KeywordArguments
from pipeline.stage import StageContext, StageResult
from pipeline.stages.pretrain.config import Config
from pipeline.stages.pretrain.documents import cut_documents
from pipeline.training.arguments import attend_without_mask, attention_kernel, zero3_config
from pipeline.training.composition import TrainerParts, composed
from pipeline.training.data.batch_loader import BatchLoader
from pipeline.training.data.collate import CausalCollator
from pipeline.training.data.sources import EncodedData
from pipeline.training.finish import finish
from pipeline.training.fitting import context_length, fit
from pipeline.training.loop import Trained, run_trainer
from pipeline.training.pipelined import train_through_pipeline
from pipeline.training.pipelined_fields import refuse_unused
from pipeline.training.sequence_parallel import SequenceParallelTrainer, refuse_sequence_parallel
from pipeline.training.setup import OpenedModel, arguments_for, plan_steps, prepare

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def run(ctx: StageContext, config: Config) -> StageResult:
    """Build or load the model, train it, and save it with its tokenizer."""
    ctx = prepare(ctx, _width(ctx, config))
    train = config.train
    opened = _open(ctx, config)
    data = _encode(ctx, config, opened)
    lengths = [len(row["input_ids"]) for row in data.train]
    refuse_sequence_parallel(ctx, opened.model, max(lengths))
    schedule = plan_steps(ctx, train, lengths, "rows", shuffle=train.order == "shuffled")
    arguments = arguments_for(TrainingArguments, ctx, train, schedule, has_held_out=bool(data.held_out))
    parameters = count_parameters(opened.model)
    ctx.phase(f"training {parameters / 1e6:.2f} M parameters on {counted(sum(lengths), 'token')}")
    collate = CausalCollator(opened.tokenizer.pad_token_id)
    if ctx.dims.pipeline_parallel > 1:
        refuse_unused(train)
        trained, consolidated = train_through_pipeline(ctx, opened, arguments, schedule, data, collate)
    else:
        trainer = composed(SequenceParallelTrainer)(
            parts=TrainerParts.of(BatchLoader(schedule.batches, data.train)),
            model=opened.model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.held_out or None,
            data_collator=collate,
        )
        trained = run_trainer(ctx, trainer, schedule.batches, schedule.steps)
        consolidated = consolidated_model(trainer)
    if consolidated is not None:
        save_model(consolidated, opened.tokenizer, ctx.out, [row["input_ids"] for row in data.train[:3]])
    return _finish(ctx, config, trained, data, parameters)


def _width(ctx: StageContext, config: Config) -> int:
    """Return the hidden size of the model to train; 0 if its configuration has none.

    Raises:
        PipelineError: the `model:` block is not one of its architecture.
    """
    if config.model is None:
        return hidden_size(ctx.input("init"), ctx.trust_remote_code)
    built = model_config(config.model, _tokenizer(ctx, config))
    return int(getattr(built.get_text_config(), "hidden_size", 0))


def _tokenizer(ctx: StageContext, config: Config) -> PreTrainedTokenizerBase:
    return load_tokenizer(ctx.input("tokenizer" if config.tokenizer else "init"), ctx.trust_remote_code)


def _open(ctx: StageContext, config: Config) -> OpenedModel:
    """Load the tokenizer, and build or load the model.

    Raises:
        PipelineError: model and tokenizer do not fit, or `train.max_length` exceeds the model's context.
    """
    tokenizer = _tokenizer(ctx, config)
    model, deferred = _model(ctx, config, tokenizer)
    tp_size = ctx.dims.tensor_parallel
    if config.model is None:
        fit(ctx, model, tokenizer, {"zero3": deferred or zero3_config(ctx), "tp_size": tp_size})
    if tp_size > 1:
        model = shard_model(model, tp_size, deferred)
    attend_without_mask(ctx, model)
    return OpenedModel(model, tokenizer, context_length(model, config.train.max_length), deferred=deferred)


def _model(
    ctx: StageContext, config: Config, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, Deferred | None]:
    """Build or load the model; with pipeline or tensor parallelism, also return its deferred weights, else None."""
    is_pipelined, attention = ctx.dims.pipeline_parallel > 1, attention_kernel(ctx)
    if config.model is None:
        source = ctx.input("init")
        if is_pipelined:
            return load_deferred_causal_lm(source, ctx.trust_remote_code, attention=attention)
        zero3 = zero3_config(ctx)
        return load_causal_lm(source, "fp32", ctx.trust_remote_code, attention=attention, zero3=zero3), None
    if not is_pipelined and ctx.dims.tensor_parallel == 1:
        return build_causal_lm(config.model, tokenizer, ctx.seed, attention=attention, zero3=zero3_config(ctx)), None
    with Deferred() as deferred:
        return build_causal_lm(config.model, tokenizer, ctx.seed, attention=attention), deferred


def _encode(ctx: StageContext, config: Config, opened: OpenedModel) -> EncodedData:
    """Tokenize the texts and cut them into rows.

    Raises:
        PipelineError: there is no text.
    """
    rows, tokenizer = ctx.load_rows("data"), opened.tokenizer
    ctx.phase("tokenizing")
    total = len(rows.train) + len(rows.held_out)
    texts, held_texts = ([row["text"] for row in part] for part in (rows.train, rows.held_out))
    is_parsed = config.control_tokens == "parsed"
    options: KeywordArguments = {"max_length": opened.max_length, "mode": config.train.mode, "parsed": is_parsed}
    documents = cut_documents(tokenizer, texts, **options, progress=lambda done: ctx.progress(done, total))
    held_out = cut_documents(
        tokenizer, held_texts, **options, progress=lambda done: ctx.progress(len(texts) + done, total)
    )
    _say_spelled(ctx, tokenizer, [*texts, *held_texts], parsed=is_parsed)
    if not documents:
        raise PipelineError(
            Problem("no text to train on", "at least one token", "check the data source", stage=ctx.name)
        )
    counts = {"train": len(rows.train), "held_out": len(rows.held_out), "sequences": len(documents)}
    return EncodedData(documents, held_out, counts)


def _say_spelled(ctx: StageContext, tokenizer: PreTrainedTokenizerBase, texts: list[str], *, parsed: bool) -> None:
    """Note how many texts spell a control token, unless these are parsed."""
    spells = TextEncoder(tokenizer).names
    spelled = 0 if parsed else sum(map(spells, texts))
    if spelled:
        spell = agreeing(spelled, "spells", "spell")
        ctx.note(
            f"{spelled} of {counted(len(texts), 'text')} {spell} a control token; there it is text. If they are "
            "conversations rendered beforehand, set `control_tokens: parsed`"
        )


def _finish(ctx: StageContext, config: Config, trained: Trained, data: EncodedData, parameters: int) -> StageResult:
    """Return the stage's result for the manifest."""
    lineage: JsonObject = {"base": "scratch", "adapters": []}
    if config.model is None:
        init = ctx.input("init")
        lineage = descended(init.manifest.get("lineage", {}), init.name, init.fingerprint)
    return finish(
        ctx,
        trained,
        metrics={"parameters": float(parameters)},
        rows=data.counts,
        lineage=lineage,
        summary=f"{parameters / 1e6:.2f} M parameters, loss {trained.metrics.get('loss', float('nan')):.3f}",
    )
