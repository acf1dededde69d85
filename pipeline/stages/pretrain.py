"""Pretraining: next-token prediction from scratch, or continued, with transformers' Trainer.

Reference: Radford et al. 2019 (GPT-2). Architectures are those of transformers, built from their configuration.
There are two modes: `rows` has one document per row and buckets rows by length (no work on padding, no attention
between documents; fastest on a CPU); `packed` joins documents into full rows (best on a GPU).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.estimate.shape import size_problems, type_problems
from pipeline.stage import Data, Input, StageConfig, StageContext, StageResult, stage
from pipeline.training.fields import CommonTrain


class Train(CommonTrain):
    """`train:` of pretraining.

    Attributes:
        mode: `rows` or `packed`.
        order: `shuffled`, or `file` to follow the file (a curriculum).
    """

    batch_size: int = Field(default=32, gt=0)
    learning_rate: float = Field(default=3e-4, gt=0)
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = Field(default=0.05, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    mode: Literal["rows", "packed"] = "rows"
    order: Literal["shuffled", "file"] = "shuffled"


class Config(StageConfig):
    """Configuration of a pretraining stage.

    Attributes:
        data: text to learn from.
        tokenizer: a tokenizer stage, a folder, or a hub id.
        model: architecture: `type` of transformers (llama, qwen3, gpt2, …) and any field of its config.
        init: weights to go on from, instead of `model`.
        control_tokens: how the name of a control token in a text, such as `<|user|>`, is tokenized: as `text` like any
            other, or `parsed` to the token, for texts that are conversations rendered beforehand.
        train: how to train.
    """

    data: Annotated[str, Data("text")]
    tokenizer: Annotated[str | None, Input("tokenizer", external=True)] = None
    model: dict[str, Any] | None = None
    init: Annotated[str | None, Input(external=True)] = None
    control_tokens: Literal["text", "parsed"] = "text"
    train: Train = Train()

    def check(self) -> list[Problem]:
        """Return problems unless exactly one of `model` and `init` is set, and a new model has a tokenizer."""
        problems = self.train.check()
        if (self.model is None) == (self.init is None):
            problems.append(
                Problem(
                    "both `model` and `init`" if self.model else "neither `model` nor `init`", "exactly one of them"
                )
            )
        if self.model is not None:
            problems += type_problems(self.model) + size_problems(self.model)
        if self.model is not None and self.tokenizer is None:
            problems.append(Problem("no `tokenizer`", "a tokenizer for the new model", "add `tokenizer: NAME`"))
        return problems


@stage("pretrain", version=2, config=Config, makes="model", parallel=True)
def run(ctx: StageContext, config: Config) -> StageResult:
    """Build or load the model, train it, and save it with its tokenizer."""
    from transformers import TrainingArguments, set_seed

    from pipeline.models.load import load_tokenizer
    from pipeline.parallel.consolidation import consolidated_model
    from pipeline.parallel.tensor.sharding import shard_model
    from pipeline.parallel.zero.zero3 import count_parameters
    from pipeline.training.arguments import (
        attend_without_mask,
        build_arguments,
        precision_of,
        prepare_torch,
        zero3_config,
    )
    from pipeline.training.batches import Batches, BucketedBatches
    from pipeline.training.collate import CausalCollator
    from pipeline.training.distribution import divided
    from pipeline.training.fitting import context_length, fit
    from pipeline.training.loop import run_trainer, steps_of
    from pipeline.training.pipelined import train_through_pipeline
    from pipeline.training.pipelined_fields import refuse_unused
    from pipeline.training.sequence_parallel import SequenceParallelTrainer, refuse_sequence_parallel

    class PretrainTrainer(BucketedBatches, SequenceParallelTrainer):
        """transformers' Trainer on bucketed batches."""

    prepare_torch(ctx)
    set_seed(ctx.seed)
    train = config.train
    tokenizer = load_tokenizer(ctx.input("tokenizer" if config.tokenizer else "init"), ctx.trust_remote_code)
    model, deferred = _model(ctx, config, tokenizer)
    tp_size = int(ctx.compute.get("tensor_parallel", 1))
    if config.model is None:
        fit(ctx, model, tokenizer, {"zero3": deferred or zero3_config(ctx), "tp_size": tp_size})
    if tp_size > 1:
        model = shard_model(model, tp_size, deferred)
    attend_without_mask(ctx, model)
    precision_of(ctx, int(getattr(model.config.get_text_config(), "hidden_size", 0)))
    max_length = context_length(model, train.max_length)
    rows = ctx.load_rows("data")
    ctx.phase("tokenizing")
    total = len(rows.train) + len(rows.held_out)
    texts, held_texts = ([row["text"] for row in part] for part in (rows.train, rows.held_out))
    encode_options: dict[str, Any] = {
        "max_length": max_length,
        "mode": train.mode,
        "parsed": config.control_tokens == "parsed",
    }
    documents = _documents(tokenizer, texts, **encode_options, progress=lambda done: ctx.progress(done, total))
    held_out = _documents(
        tokenizer, held_texts, **encode_options, progress=lambda done: ctx.progress(len(texts) + done, total)
    )
    _say_spelled(ctx, tokenizer, [*texts, *held_texts], parsed=encode_options["parsed"])
    if not documents:
        raise PipelineError(
            Problem("no text to train on", "at least one token", "check the data source", stage=ctx.name)
        )
    lengths = [len(row["input_ids"]) for row in documents]
    refuse_sequence_parallel(ctx, model, max(lengths))
    micro_batch = divided(ctx, train.batch_size, max(lengths), "rows").micro_batch
    batches = Batches(lengths, train.batch_size, micro_batch, ctx.seed, shuffle=train.order == "shuffled")
    steps = steps_of(batches, train.epochs, train.max_steps)
    arguments = build_arguments(
        TrainingArguments, ctx, train, micro_batch=micro_batch, steps=steps, has_held_out=bool(held_out)
    )
    parameters = count_parameters(model)
    ctx.phase(f"training {parameters / 1e6:.2f} M parameters on {counted(sum(lengths), 'token')}")
    if int(ctx.compute.get("pipeline_parallel", 1)) > 1:
        refuse_unused(train)
        collate = CausalCollator(tokenizer.pad_token_id)
        trained, consolidated = train_through_pipeline(
            ctx, model, deferred, arguments, batches, steps, documents, held_out, collate
        )
        return _finished(ctx, config, trained, consolidated, tokenizer, rows, parameters, documents)
    trainer = PretrainTrainer(
        model=model,
        args=arguments,
        train_dataset=documents,
        eval_dataset=held_out or None,
        data_collator=CausalCollator(tokenizer.pad_token_id),
    )
    trainer.train_rows, trainer.batches = documents, batches
    trained = run_trainer(ctx, trainer, batches, steps)
    return _finished(ctx, config, trained, consolidated_model(trainer), tokenizer, rows, parameters, documents)


def _model(ctx: StageContext, config: Config, tokenizer: Any) -> tuple[Any, Any | None]:
    """Build or load the model; with pipeline or tensor parallelism, also return its deferred weights, else None."""
    from pipeline.models.deferred import Deferred
    from pipeline.models.load import load_causal_lm, load_deferred_causal_lm
    from pipeline.models.scratch import build_causal_lm
    from pipeline.training.arguments import attention_kernel, zero3_config

    is_pipelined, attention = int(ctx.compute.get("pipeline_parallel", 1)) > 1, attention_kernel(ctx)
    if config.model is None:
        source = ctx.input("init")
        if is_pipelined:
            return load_deferred_causal_lm(source, ctx.trust_remote_code, attention=attention)
        zero3 = zero3_config(ctx)
        return load_causal_lm(source, "fp32", ctx.trust_remote_code, attention=attention, zero3=zero3), None
    if not is_pipelined and int(ctx.compute.get("tensor_parallel", 1)) == 1:
        return build_causal_lm(config.model, tokenizer, ctx.seed, attention=attention, zero3=zero3_config(ctx)), None
    with Deferred() as deferred:
        return build_causal_lm(config.model, tokenizer, ctx.seed, attention=attention), deferred


def _finished(
    ctx: StageContext,
    config: Config,
    trained: Any,
    consolidated: Any | None,
    tokenizer: Any,
    rows: Any,
    parameters: int,
    documents: list[dict[str, list[int]]],
) -> StageResult:
    """Write the model, and return the stage's result for the manifest."""
    from pipeline.artifacts.provenance import descended
    from pipeline.models.save import save_model
    from pipeline.training.finish import finish

    if consolidated is not None:
        save_model(consolidated, tokenizer, ctx.out, [row["input_ids"] for row in documents[:3]])
    lineage: dict[str, Any] = {"base": "scratch", "adapters": []}
    if config.model is None:
        init = ctx.input("init")
        lineage = descended(init.manifest.get("lineage", {}), init.name, init.fingerprint)
    return finish(
        ctx,
        trained,
        metrics={"parameters": float(parameters)},
        rows={"train": len(rows.train), "held_out": len(rows.held_out), "sequences": len(documents)},
        lineage=lineage,
        summary=f"{parameters / 1e6:.2f} M parameters, loss {trained.metrics.get('loss', float('nan')):.3f}",
    )


def _say_spelled(ctx: StageContext, tokenizer: Any, texts: list[str], *, parsed: bool) -> None:
    """Note how many texts spell a control token, unless these are parsed."""
    from pipeline.models.tokens import TextEncoder

    spells = TextEncoder(tokenizer).names
    spelled = 0 if parsed else sum(map(spells, texts))
    if spelled:
        spell = agreeing(spelled, "spells", "spell")
        ctx.note(
            f"{spelled} of {counted(len(texts), 'text')} {spell} a control token; there it is text. If they are "
            "conversations rendered beforehand, set `control_tokens: parsed`"
        )


def _documents(
    tokenizer: Any,
    texts: list[str],
    max_length: int,
    mode: str,
    *,
    parsed: bool = False,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, list[int]]]:
    """Tokenize texts and cut them into rows of at most ``max_length`` tokens.

    Each text gets the tokenizer's prefix tokens, such as Llama's `<s>`, and the end token.
    """
    if not texts:
        return []
    from pipeline.models.tokens import TextEncoder
    from pipeline.training.encode import encode_texts

    before, eos = TextEncoder(tokenizer).prefix, tokenizer.eos_token_id
    encoded = encode_texts(tokenizer, texts, parsed=parsed, progress=progress)
    begun = ([*before, *ids] if ids and ids[: len(before)] != before else ids for ids in encoded)
    streams = [ids if ids[-1:] == [eos] else [*ids, eos] for ids in begun]
    if mode == "packed":
        streams = [[token for ids in streams for token in ids]]
    rows = [ids[i : i + max_length] for ids in streams for i in range(0, len(ids), max_length)]
    return [{"input_ids": row} for row in rows if len(row) > 1]
