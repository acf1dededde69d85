"""What GRPO and RLOO share: prompts that fit, reward functions for trl, batches of prompts, checkpoints of rollouts.

Connects a recipe's prompts and rewards with a trl trainer that samples its own responses. The objectives are trl's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.utils.data import Sampler

from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.models.generate.continuation import with_leading_space
from pipeline.models.load.pretrained import source_of
from pipeline.models.tokenizer.contract import end_ids
from pipeline.plain_data import KeywordArguments, Row, ShapedRow
from pipeline.rl.on_policy.fields import OnPolicyTrain
from pipeline.rl.rewards.sources import RewardSources, Sample, Scorer, reward_readers
from pipeline.stage import ResolvedInput, StageContext
from pipeline.training.arguments import build_arguments
from pipeline.training.data.encoding import encode_prompts
from pipeline.training.data.padding import needs_positions
from pipeline.training.data.sources import encode_source
from pipeline.training.distribution import divided
from pipeline.training.fitting import context_length

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.models.tokenizer.template import Messages

Arguments = TypeVar("Arguments")


@dataclass(frozen=True)
class Prompts:
    """The prompts of a stage: training prompts first, then held-out ones.

    Attributes:
        rows: rows as they were read, with all their columns.
        prompt_ids: tokens of each prompt up to the beginning of the answer.
        shown: text that trl gets and logs instead of each prompt; all are different.
        train: number of training prompts.
        counts: number of prompts read, and of prompts left out because they leave too little room.
        tokenizer: the policy's tokenizer.
        with_positions: whether the model needs `position_ids` for rows padded on the left.
    """

    rows: list[Row]
    prompt_ids: list[list[int]]
    shown: list[str]
    train: int
    counts: dict[str, int]
    tokenizer: PreTrainedTokenizerBase
    with_positions: bool = False

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Index of each prompt, by its text in `shown`."""
        return {text: number for number, text in enumerate(self.shown)}

    @property
    def train_rows(self) -> list[ShapedRow]:
        """Training rows for the trainer; the number of a row leads back to its data."""
        return [_stand_in(i, shown) for i, shown in enumerate(self.shown[: self.train])]

    @property
    def held_out_rows(self) -> list[ShapedRow]:
        """Held-out rows for the trainer."""
        return [_stand_in(i, shown) for i, shown in enumerate(self.shown) if i >= self.train]


def _stand_in(number: int, shown: str) -> ShapedRow:
    """Return a stand-in row for trl, because Arrow would add keys to tool calls and tools, or refuse them."""
    return {"prompt": [{"role": "user", "content": shown}], "row": number}


def fitting_prompts(
    ctx: StageContext, train: OnPolicyTrain, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase
) -> Prompts:
    """Read and encode the prompts, drop those that `max_length` excludes, and set the model's end tokens.

    Raises:
        PipelineError: no prompt is left, `max_new_tokens` does not fit the context, or a prompt does not fit the
            model's context and the recipe sets no `max_length`.
    """
    rows, readers = ctx.load_rows("data"), reward_readers(ctx, tokenizer)
    context = context_length(model, train.max_length)
    room = context - train.max_new_tokens
    if room < 1:
        statement = f"train.max_new_tokens is {train.max_new_tokens}"
        raise PipelineError(Problem(statement, f"less than the {context} tokens of prompt and response", "lower it"))
    all_rows = [*rows.train, *rows.held_out]
    encode = functools.partial(encode_prompts, tokenizer, readers=readers)
    encoded = encode_source(ctx, "data", rows, encode, what="prompts")
    first = len(rows.train)
    kept_rows = [*encoded.train.kept, *(first + i for i in encoded.held_out.kept)]
    ids = dict(
        zip(kept_rows, [one["prompt_ids"] for one in (*encoded.train.rows, *encoded.held_out.rows)], strict=True)
    )
    fits = [i for i, tokens in ids.items() if len(tokens) <= room]
    too_long = [(rows.places[i], len(tokens)) for i, tokens in ids.items() if len(tokens) > room]
    if too_long and train.max_length is None:
        _refuse_long(ctx, too_long, room, context, train)
    learned = sum(i < len(rows.train) for i in fits)
    if not learned:
        statement = f"none of {counted(len(rows.train), 'prompt')} fits" if rows.train else "no prompts"
        raise PipelineError(
            Problem(statement, f"prompts of at most {room} tokens", "raise train.max_length or bring more")
        )
    if too_long:
        longer = agreeing(len(too_long), "is longer", "are longer")
        were = agreeing(len(too_long), "was", "were")
        ctx.note(
            f"{len(too_long)} of {counted(len(all_rows), 'prompt')} {longer} than {room} tokens and {were} left out"
        )
    counts = {**encoded.counts, "dropped": len(too_long)}
    fitting = [ids[i] for i in fits]
    with_positions = needs_positions(ctx, model, fitting, tokenizer.pad_token_id)
    model.generation_config.eos_token_id = end_ids(tokenizer, model)  # trl stops at these; the template's is included
    shown = [f"[{number}] {tokenizer.decode(ids)}" for number, ids in enumerate(fitting)]
    return Prompts([all_rows[i] for i in fits], fitting, shown, learned, counts, tokenizer, with_positions)


def _refuse_long(
    ctx: StageContext, too_long: list[tuple[str, int]], room: int, context: int, train: OnPolicyTrain
) -> None:
    place, length = too_long[0]
    more = f", as {agreeing(len(too_long) - 1, 'is', 'are')} {len(too_long) - 1} more" if len(too_long) > 1 else ""
    raise PipelineError(
        Problem(
            f"the prompt is {counted(length, 'token')} long{more}",
            f"at most {room}: the model's context of {context} less train.max_new_tokens ({train.max_new_tokens})",
            f"lower train.max_new_tokens, or set train.max_length to {context} to leave such prompts out",
            place,
            ctx.name,
        )
    )


@dataclass
class PromptBatches(Sampler[list[int]]):
    """Batch sampler: yields the row indices of each micro-step as trl expects them, a pure function of its fields.

    A batch contains each prompt `group` times in a row. It is repeated for every micro-step and iteration that trains
    on its responses, because trl samples only in the first of them. With several processes accelerate gives each
    process every n-th micro-step, and trl gathers the rewards in rank order.

    Attributes:
        prompts: number of prompts.
        group: responses per prompt.
        responses: responses sampled at a time, over all processes.
        repeats: micro-steps of each process that train on them.
        seed: seed of the order.
        shuffle: whether prompts are shuffled each epoch.
        epoch: set by the trainer before each epoch.
        processes: processes that share the responses.
    """

    prompts: int
    group: int
    responses: int
    repeats: int
    seed: int
    shuffle: bool = True
    epoch: int = field(default=0)
    processes: int = 1

    @property
    def micro_batch(self) -> int:
        """Rows that are yielded at a time, for one process."""
        return self.responses // self.processes

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch whose order is yielded next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the micro-steps of all processes in an epoch; an incomplete last batch of prompts is dropped."""
        return self.prompts // (self.responses // self.group) * self.repeats * self.processes

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the row indices of each micro-step."""
        order = list(range(self.prompts))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.prompts, generator=generator).tolist()
        at_once = self.responses // self.group
        for start in range(0, self.prompts - at_once + 1, at_once):
            rows = [row for row in order[start : start + at_once] for _ in range(self.group)]
            for _ in range(self.repeats):
                for first in range(0, self.responses, self.micro_batch):
                    yield rows[first : first + self.micro_batch]


@dataclass(frozen=True)
class Generated:
    """Counts the tokens that a trainer has read and sampled over all sessions."""

    trainer: Any

    def tokens(self, steps: int) -> int:
        """Return all tokens so far, whatever ``steps`` is."""
        return int(self.trainer.state.num_input_tokens_seen)


def on_policy_arguments(
    arguments_class: type[Arguments],
    ctx: StageContext,
    train: OnPolicyTrain,
    prompts: Prompts,
    sources: RewardSources,
    source: ResolvedInput,
    **fixed: Any,
) -> tuple[Arguments, PromptBatches, int]:
    """Return the trainer's config, the batches of prompts, and the total optimizer steps.

    Raises:
        PipelineError: there are fewer prompts than one batch needs.
    """
    longest = max(map(len, prompts.prompt_ids)) + train.max_new_tokens
    micro_batch = divided(ctx, train.batch_size, longest, "responses").micro_batch
    at_once, revision = train.responses_at_once, source_of(source).revision
    shuffle = bool(train.passthrough().get("shuffle_dataset", True))
    batches = PromptBatches(
        prompts=prompts.train,
        group=train.num_generations,
        responses=at_once,
        repeats=at_once // (micro_batch * ctx.ranks) * train.num_iterations,
        seed=ctx.seed,
        shuffle=shuffle,
        processes=ctx.ranks,
    )
    per_epoch = len(batches) * micro_batch // train.batch_size
    if not per_epoch:
        statement = f"{counted(prompts.train, 'prompt')} to learn from"
        expected = f"at least {at_once // train.num_generations}, for one batch of {at_once} responses"
        raise PipelineError(Problem(statement, expected, "lower train.batch_size or bring more prompts"))
    steps = train.max_steps if train.max_steps is not None else max(1, round(train.epochs * per_epoch))
    arguments = build_arguments(
        arguments_class,
        ctx,
        train,
        micro_batch=micro_batch,
        steps=steps,
        has_held_out=len(prompts.rows) > prompts.train,
        num_generations=train.num_generations,
        generation_batch_size=at_once,
        num_iterations=train.num_iterations,
        max_completion_length=train.max_new_tokens,
        temperature=train.temperature,
        epsilon=train.epsilon,
        disable_dropout=train.disable_dropout,
        reward_weights=list(sources.weights) if sources.how == "sum" else None,
        # Held-out responses are sampled in batches whose size must not depend on the machine.
        per_device_eval_batch_size=at_once // ctx.ranks,
        trust_remote_code=ctx.trust_remote_code,
        model_init_kwargs={"revision": revision} if revision else None,  # for the reference, which trl loads itself
        **_best_metric(train.passthrough()),
        **fixed,
    )
    return arguments, batches, steps


def _best_metric(asked: KeywordArguments) -> KeywordArguments:
    """Return the metric that decides the best evaluation: by default the reward, since the loss is uninformative."""
    if not asked.get("load_best_model_at_end") or asked.get("metric_for_best_model"):
        return {}
    return {"metric_for_best_model": "reward", "greater_is_better": asked.get("greater_is_better", True)}


def trl_rewards(sources: RewardSources, prompts: Prompts) -> list[Callable[..., list[float]]]:
    """Return the rewards as trl reward functions.

    For a weighted sum there is one function per reward, and trl adds them up. Other combinations are one function.
    """
    if sources.how != "sum":
        return [_combined(sources, prompts)]
    return [_named(name, scorer, prompts) for name, scorer in zip(sources.names, sources.scorers, strict=True)]


def _named(name: str, scorer: Scorer, known: Prompts) -> Callable[..., list[float]]:
    def reward(
        prompts: object, completions: list[Messages], completion_ids: list[list[int]], row: list[int], **offered: Any
    ) -> list[float]:
        samples = [
            Sample(known.rows[i], known.prompt_ids[i], ids, _said(turns, ids, known.prompt_ids[i], known.tokenizer))
            for i, ids, turns in zip(row, completion_ids, completions, strict=True)
        ]
        return scorer(samples, offered)

    reward.__name__ = name
    return reward


def _said(turns: Messages, ids: Sequence[int], prompt_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return with_leading_space(turns[0]["content"], ids, prompt_ids, tokenizer)


def _combined(sources: RewardSources, known: Prompts) -> Callable[..., list[float]]:
    each = [_named(name, scorer, known) for name, scorer in zip(sources.names, sources.scorers, strict=True)]

    def combined(**given: Any) -> list[float]:
        return sources.combined({reward.__name__: reward(**given) for reward in each})

    return combined
