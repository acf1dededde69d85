"""Instruction tuning (SFT): learn the assistant's turns of demonstrations, with trl's SFTTrainer.

Reference: Ouyang et al. 2022 (InstructGPT), section 3.5, step 1. The loss is computed on the assistant's tokens only,
end-of-turn token included, so that the model learns to stop. Rows are bucketed by length (fastest on a CPU), or packed
into full rows whose conversations do not attend to one another (best on a GPU: every step has the same shape).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.errors import PipelineError, Problem, counted
from pipeline.models.adapter_config import Adapter
from pipeline.stage import Data, Input, Rows, StageConfig, StageContext, StageResult, stage
from pipeline.training.fields import CommonTrain, unknown_word

LOSSES = ("nll", "dft")
"""Losses of trl's SFTTrainer: cross-entropy of the next token, and dynamic fine-tuning (arXiv:2508.05629)."""

if TYPE_CHECKING:
    from pipeline.training.encoded import EncodedSource


class Train(CommonTrain):
    """`train:` of instruction tuning; other keys are fields of trl's SFTConfig.

    Attributes:
        mode: `rows`, or `packed`: conversations joined to rows of `max_length` tokens; `batch_size` counts those.
    """

    trainer: ClassVar[str] = "SFTConfig"
    learning_rate: float = Field(default=2e-5, gt=0)
    mode: Literal["rows", "packed"] = "rows"

    def check(self) -> list[Problem]:
        """Return contradictions between fields, and a loss trl does not have."""
        loss = self.passthrough().get("loss_type", LOSSES[0])
        unknown = [] if loss in LOSSES else [unknown_word("loss_type", loss, LOSSES)]
        return [*super().check(), *unknown]


class Config(StageConfig):
    """Configuration of an instruction-tuning stage.

    Attributes:
        data: conversations.
        model: what to start from.
        adapter: LoRA instead of full fine-tuning.
        chat_template: Jinja text that renders conversations, for a base model that has none, or in place of its own;
            with `{% generation %}` markers around what the assistant says. Later stages inherit it with the tokenizer.
        train: how to train.
    """

    data: Annotated[str, Data("messages")]
    model: Annotated[str, Input(external=True)]
    adapter: Adapter | None = None
    chat_template: str | None = Field(default=None, min_length=1)
    train: Train = Train()

    def check(self) -> list[Problem]:
        """Return contradictions in `train`."""
        return self.train.check()


@stage("sft", version=2, config=Config, makes="model", parallel=True)
def run(ctx: StageContext, config: Config) -> StageResult:
    """Tune the model on demonstrations."""
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    from pipeline.models.adapters import lora_config
    from pipeline.models.load import load_causal_lm, load_deferred_causal_lm, load_tokenizer
    from pipeline.parallel.consolidation import consolidated_model
    from pipeline.training.arguments import (
        attend_without_mask,
        attention_kernel,
        build_arguments,
        prepare_torch,
        starting_weights,
    )
    from pipeline.training.batches import Batches, BucketedBatches
    from pipeline.training.collate import CausalCollator
    from pipeline.training.distribution import divided
    from pipeline.training.fitting import context_length, fit
    from pipeline.training.loop import run_trainer, steps_of
    from pipeline.training.packing import packed, refuse_unpackable
    from pipeline.training.pipelined import train_through_pipeline
    from pipeline.training.pipelined_fields import refuse_unused
    from pipeline.training.sequence_parallel import SequenceParallelTrainer, refuse_sequence_parallel

    class BucketedSFTTrainer(BucketedBatches, SFTTrainer, SequenceParallelTrainer):  # type: ignore[misc]
        """trl's SFTTrainer on bucketed batches."""

    prepare_torch(ctx)
    set_seed(ctx.seed)
    train, source = config.train, ctx.input("model")
    tokenizer = load_tokenizer(source, ctx.trust_remote_code)
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template
    is_pipelined, deferred = int(ctx.compute.get("pipeline_parallel", 1)) > 1, None
    if is_pipelined:
        refuse_unused(train, config.adapter)
        starting_weights(ctx, config.adapter)  # raises for quantised files
        attention = attention_kernel(ctx)
        model, deferred = load_deferred_causal_lm(source, ctx.trust_remote_code, attention=attention)
    else:
        weights = starting_weights(ctx, config.adapter)
        model = load_causal_lm(source, trust_remote_code=ctx.trust_remote_code, **weights)
    fit(ctx, model, tokenizer, {"zero3": is_pipelined} if is_pipelined else weights)
    max_length = context_length(model, train.max_length)
    rows = ctx.load_rows("data")
    encoded_source = _encode(ctx, tokenizer, rows, max_length)
    encoded, held_out, counts = encoded_source.train.rows, encoded_source.held_out.rows, encoded_source.counts
    if not encoded:
        raise PipelineError(Problem("no row fits", f"rows of at most {max_length} tokens", "raise train.max_length"))
    conversations, seen = len(encoded), [row["input_ids"] for row in encoded[:3]]
    if train.mode == "packed":
        encoded = packed(encoded, max_length)
    else:
        attend_without_mask(ctx, model)
    lengths = [len(row["input_ids"]) for row in encoded]
    refuse_sequence_parallel(ctx, model, max(lengths))
    micro_batch = divided(ctx, train.batch_size, max(lengths), "rows").micro_batch
    batches = Batches(lengths, train.batch_size, micro_batch, ctx.seed)
    steps = steps_of(batches, train.epochs, train.max_steps)
    arguments = build_arguments(
        SFTConfig,
        ctx,
        train,
        micro_batch=micro_batch,
        steps=steps,
        has_held_out=bool(held_out),
        max_length=None,
        packing=False,
    )
    is_flat = "flash" in ctx.runtime_report["attention"] and int(ctx.compute.get("sequence_parallel", 1)) == 1
    collate = CausalCollator(tokenizer.pad_token_id, with_mask=True, flat=is_flat)
    ctx.phase(f"training on {counted(conversations, 'conversation')}")
    if is_pipelined:
        trained, consolidated = train_through_pipeline(
            ctx, model, deferred, arguments, batches, steps, encoded, held_out, collate
        )
        return _finished(ctx, config, trained, consolidated, tokenizer, counts, seen)
    trainer = BucketedSFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(encoded),
        eval_dataset=Dataset.from_list(held_out) if held_out else None,
        processing_class=tokenizer,
        data_collator=collate,
        peft_config=lora_config(config.adapter, "causal", model) if config.adapter else None,
    )
    trainer.train_rows, trainer.batches = encoded, batches
    if train.mode == "packed":
        refuse_unpackable(ctx, trainer.model, encoded, collate)
    trained = run_trainer(ctx, trainer, batches, steps, config.adapter)
    return _finished(ctx, config, trained, consolidated_model(trainer), tokenizer, counts, seen)


def _finished(
    ctx: StageContext,
    config: Config,
    trained: Any,
    consolidated: Any | None,
    tokenizer: Any,
    counts: dict[str, int],
    seen: list[list[int]],
) -> StageResult:
    """Write the model, and return the stage's result for the manifest."""
    from pipeline.training.finish import finish, save_trained

    lineage = save_trained(ctx, consolidated, tokenizer, ctx.input("model"), config.adapter, seen)
    return finish(
        ctx,
        trained,
        metrics={},
        rows=counts,
        lineage=lineage,
        summary=f"loss {trained.metrics.get('loss', float('nan')):.3f} on the assistant's tokens",
    )


def _encode(ctx: StageContext, tokenizer: Any, rows: Rows, max_length: int) -> EncodedSource:
    """Tokenize conversations; truncate rows that are too long, and drop rows without a token to train on.

    Raises:
        PipelineError: there is no chat template, or the end token is not trained on.
    """
    from pipeline.models.contract import unseen_opening
    from pipeline.training.encode import encode_messages, template_problems
    from pipeline.training.encoded import encode_source

    encode = functools.partial(encode_messages, tokenizer)
    fate = "cut at the end"
    encoded_source = encode_source(ctx, "data", rows, encode, what="conversations", max_length=max_length, fate=fate)
    train = encoded_source.train
    problems = template_problems(tokenizer, rows.train, train)
    if problems:
        raise PipelineError(*problems)
    if train.kept and tokenizer.chat_template:
        first = rows.train[train.kept[0]]
        opening = unseen_opening(tokenizer, first["messages"], first.get("tools"))
        if opening:
            ctx.note(
                f"the chat template begins a generated answer with {opening!r}, and the answers of these conversations "
                "begin otherwise: what follows such a beginning is not learnt here"
            )
    empty = len(rows.train) - len({*train.kept, *(fault.index for fault in train.faults)})
    return dataclasses.replace(
        encoded_source, counts={**encoded_source.counts, "cut": len(train.too_long), "dropped": empty}
    )
