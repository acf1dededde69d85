"""What training stages do before and around their algorithm: open the model, plan the steps, build the trainer.

Owns the order of loading and of the use of random numbers, which must be the same in all stages. Each function returns
a record for the next one. Knows nothing of objectives: a stage's `train.py` has its algorithm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from datasets import Dataset
from transformers import set_seed

from pipeline.models.load.adapter_config import Adapter
from pipeline.models.load.adapters import lora_config
from pipeline.models.load.deferred import Deferred
from pipeline.models.load.fitting import separate_padding
from pipeline.models.load.pretrained import load_causal_lm, load_reward_model, load_tokenizer
from pipeline.models.tokenizer.contract import end_ids
from pipeline.stage import StageContext
from pipeline.training.arguments import build_arguments, prepare_torch, resolve_precision, starting_weights
from pipeline.training.composition import TrainerParts
from pipeline.training.data.batches import Batches
from pipeline.training.distribution import divided
from pipeline.training.fields import CommonTrain
from pipeline.training.fitting import context_length, fit
from pipeline.training.loop import steps_of
from pipeline.training.reference import unhashed

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

    from pipeline.training.data.sources import EncodedData, TrainerRows

Arguments = TypeVar("Arguments")
AnyTrainer = TypeVar("AnyTrainer")


class OpenedModel(NamedTuple):
    """The model that a stage starts from, and its tokenizer, fitted to one another.

    Attributes:
        model: the model.
        tokenizer: its tokenizer.
        max_length: longest row to train on, in tokens.
        adapter: the recipe's `adapter:` block; None without one.
        deferred: weights that are loaded later, with pipeline or tensor parallelism; else None.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    adapter: Adapter | None = None
    deferred: Deferred | None = None


class Schedule(NamedTuple):
    """How the rows become optimizer steps.

    Attributes:
        batches: batch sampler.
        micro_batch: rows per forward pass.
        steps: optimizer steps in all.
    """

    batches: Batches
    micro_batch: int
    steps: int


def prepare(ctx: StageContext, width: int = 0) -> StageContext:
    """Prepare torch and the process group, and seed all random generators; return the context to go on with.

    Args:
        ctx: the stage's context.
        width: hidden size of the model to train; that of the stage's input model when omitted.

    Returns:
        The context with its compute precision resolved.
    """
    ctx = resolve_precision(prepare_torch(ctx), width)
    set_seed(ctx.seed)
    return ctx


def open_causal_lm(
    ctx: StageContext, adapter: Adapter | None, max_length: int | None, *, chat_template: str | None = None
) -> OpenedModel:
    """Load the language model of `model` with its tokenizer, as the start of training.

    Args:
        ctx: the stage's context.
        adapter: the recipe's `adapter:` block; None without one.
        max_length: the recipe's `train.max_length`.
        chat_template: replaces the tokenizer's chat template.

    Raises:
        PipelineError: the weights cannot be trained or fitted, or ``max_length`` exceeds the model's context.
    """
    tokenizer = load_tokenizer(ctx.input("model"), ctx.trust_remote_code)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    weights = starting_weights(ctx, adapter)
    model = load_causal_lm(ctx.input("model"), trust_remote_code=ctx.trust_remote_code, **weights)
    fit(ctx, model, tokenizer, weights)
    return OpenedModel(model, tokenizer, context_length(model, max_length), adapter)


def open_reward_model(ctx: StageContext, adapter: Adapter | None, max_length: int | None) -> OpenedModel:
    """Load the model of `model` with a reward head; its padding token differs from its end tokens.

    Args:
        ctx: the stage's context.
        adapter: the recipe's `adapter:` block; None without one.
        max_length: the recipe's `train.max_length`.

    Raises:
        PipelineError: the weights cannot be trained or fitted, or ``max_length`` exceeds the model's context.
    """
    source = ctx.input("model")
    tokenizer = load_tokenizer(source, ctx.trust_remote_code)
    note = separate_padding(tokenizer, end_ids(tokenizer))
    if note:
        ctx.note(note)
    weights = starting_weights(ctx, adapter)
    model = load_reward_model(source, tokenizer, seed=ctx.seed, trust_remote_code=ctx.trust_remote_code, **weights)
    fit(ctx, model, tokenizer, weights)
    return OpenedModel(model, tokenizer, context_length(model, max_length), adapter)


def plan_steps(
    ctx: StageContext, train: CommonTrain, lengths: Sequence[int], what: str, *, shuffle: bool = True
) -> Schedule:
    """Divide the batch over the processes and plan the optimizer steps.

    Args:
        ctx: the stage's context.
        train: the recipe's `train` block.
        lengths: tokens of each training row.
        what: name of the rows in notes.
        shuffle: whether rows are shuffled each epoch.

    Raises:
        PipelineError: the batch does not divide over the processes, or there are fewer rows than one batch.
    """
    micro_batch = divided(ctx, train.batch_size, max(lengths), what).micro_batch
    batches = Batches(lengths, train.batch_size, micro_batch, ctx.seed, shuffle=shuffle)
    return Schedule(batches, micro_batch, steps_of(batches, train.epochs, train.max_steps))


def arguments_for(
    arguments_class: type[Arguments],
    ctx: StageContext,
    train: CommonTrain,
    schedule: Schedule,
    *,
    has_held_out: bool,
    **fixed: Any,
) -> Arguments:
    """Return the trainer's configuration for a schedule, see `build_arguments`.

    Raises:
        PipelineError: ``arguments_class`` refuses a value.
    """
    return build_arguments(
        arguments_class,
        ctx,
        train,
        micro_batch=schedule.micro_batch,
        steps=schedule.steps,
        has_held_out=has_held_out,
        **fixed,
    )


def build_trainer(
    trainer_class: type[AnyTrainer],
    opened: OpenedModel,
    arguments: TrainingArguments,
    data: EncodedData | TrainerRows,
    parts: TrainerParts,
    *,
    task: Literal["causal", "reward"] = "causal",
    **options: Any,
) -> AnyTrainer:
    """Return a trl trainer of the opened model on encoded rows; with a reference, its log-probabilities are computed.

    Args:
        trainer_class: class of the trainer, from `composed`.
        opened: the model, its tokenizer, and the adapter to train.
        arguments: the trainer's configuration.
        data: rows to train and to evaluate on.
        parts: the trainer's parts.
        task: what the adapter is for.
        options: further arguments of ``trainer_class``.
    """
    is_evaluated = bool(data.held_out) and arguments.eval_strategy != "no"  # else the reference would score them too
    with unhashed(trainer_class) if parts.reference is not None else nullcontext():
        build: Callable[..., AnyTrainer] = trainer_class
        return build(
            parts=parts,
            model=opened.model,
            args=arguments,
            train_dataset=Dataset.from_list(data.train),
            eval_dataset=Dataset.from_list(data.held_out) if is_evaluated else None,
            processing_class=opened.tokenizer,
            peft_config=lora_config(opened.adapter, task, opened.model) if opened.adapter else None,
            **options,
        )
