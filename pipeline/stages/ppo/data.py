"""The data of PPO: prompts that leave room for a response, and the conversations of PPO-ptx with their loss."""

from __future__ import annotations

import functools
import random
from typing import TYPE_CHECKING, Literal

import torch

from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.labels import IGNORE
from pipeline.models.forward import context_limit
from pipeline.models.tokenizer.contract import eos_is_learned
from pipeline.plain_data import Row
from pipeline.rl.rewards.sources import reward_readers
from pipeline.rl.rollout.episodes import Prompt
from pipeline.rl.rollout.rollouts import prompt_order
from pipeline.stage import StageContext
from pipeline.stages.ppo.config import Config
from pipeline.training.data.encoding import ANSWER, encode_messages, encode_prompts
from pipeline.training.data.sources import encode_source

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.rl.ppo.trainer import LanguageLoss


def load_prompts(
    ctx: StageContext, config: Config, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Prompt], list[Prompt]]:
    """Return encoded training and held-out prompts; raise if one leaves no room for a response in the context."""
    rows = ctx.load_rows("data")
    limit, room = context_limit(model), config.train.max_new_tokens
    encode = functools.partial(encode_prompts, tokenizer, readers=reward_readers(ctx, tokenizer))
    encoded_source = encode_source(ctx, "data", rows, encode, what="prompts")
    train, held_out = (
        [Prompt(source_rows[i], tuple(one["prompt_ids"])) for i, one in zip(part.kept, part.rows, strict=True)]
        for source_rows, part in ((rows.train, encoded_source.train), (rows.held_out, encoded_source.held_out))
    )
    indices = [*encoded_source.train.kept, *(len(rows.train) + i for i in encoded_source.held_out.kept)]
    for prompt, where in zip([*train, *held_out], [rows.places[i] for i in indices], strict=True):
        if limit is not None and len(prompt.ids) + room > limit:
            raise PipelineError(
                Problem(
                    f"the prompt has {counted(len(prompt.ids), 'token')}, with max_new_tokens {room} more than fit",
                    f"at most {limit - room} tokens, for the model's context is {limit}",
                    "shorten or drop the prompt, or lower train.max_new_tokens",
                    where,
                    ctx.name,
                )
            )
    if not held_out and len(train) > 1:
        count = min(config.train.eval_prompts, max(1, len(train) // 10))
        random.Random(f"{ctx.seed}/held out").shuffle(train)
        train, held_out = train[count:], train[:count]
    if not train:
        raise PipelineError(Problem("no prompts", "at least two", "check the data source", stage=ctx.name))
    if not held_out and config.train.best_by == "watch":
        statement = f"train.best_by is watch, and data {config.data} has one prompt"
        remedy = "bring more prompts, or leave best_by out"
        raise PipelineError(Problem(statement, "another prompt, whose answers are watched", remedy))
    return train, held_out[: config.train.eval_prompts]


def language_loss(
    ctx: StageContext, config: Config, tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> LanguageLoss | None:
    """Return the loss of PPO-ptx: mean cross-entropy on the assistant's tokens of a batch of conversations.

    Conversations longer than the model's context of ``limit`` tokens are truncated.
    """
    if config.ptx_data is None:
        return None

    encode = functools.partial(encode_messages, tokenizer)
    what, fate = "conversations of ptx_data", "cut at the end"
    conversations = ctx.load_rows("ptx_data")
    rows = encode_source(ctx, "ptx_data", conversations, encode, what=what, max_length=limit, fate=fate).train.rows
    if not rows:
        statement = f"no conversation of ptx_data has an answer within {limit} tokens"
        raise PipelineError(Problem(statement, "at least one", "shorten the conversations", stage=ctx.name))
    if conversations.held_out:
        are = agreeing(len(conversations.held_out), "is", "are")
        ctx.note(f"{counted(len(conversations.held_out), 'held-out conversation')} of ptx_data {are} not used")
    size = min(config.train.ptx_batch, len(rows))

    def loss(model: PreTrainedModel | PeftModel, step: int) -> torch.Tensor:
        chosen = [rows[i] for i in prompt_order(len(rows), step * size, size, ctx.seed)]
        width = max(len(row["input_ids"]) for row in chosen)

        def padded(column: Literal["input_ids", "labels"], filler: int) -> torch.Tensor:
            rows = [[*row[column], *[filler] * (width - len(row[column]))] for row in chosen]
            return torch.tensor(rows, device=model.device)

        ids, labels = padded("input_ids", 0), padded("labels", IGNORE)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())

    return loss


def ends_are_taught(tokenizer: PreTrainedTokenizerBase, row: Row) -> bool:
    """Return whether the chat template ends an answer with a token that the model can learn to generate."""
    return eos_is_learned(tokenizer, [*row["prompt"], ANSWER], row.get("tools"))
