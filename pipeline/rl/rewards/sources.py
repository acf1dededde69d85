"""Loads the rewards of an on-policy stage: reward models and Python functions behind one call.

A reward model with the policy's tokenizer scores the sampled tokens themselves. One with another tokenizer gets the
decoded text, rendered through its own chat template. Python functions have trl's signature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError, Problem
from pipeline.models.implicit_reward import ImplicitReward
from pipeline.models.load.pretrained import load_tokenizer
from pipeline.models.prompted_response import PromptedResponse
from pipeline.models.scoring import finite, score, token_scores
from pipeline.models.tokenizer.contract import disagreements, facts
from pipeline.plain_data import Row
from pipeline.rl.rewards.fields import RewardFields
from pipeline.rl.rewards.functions import Offered, call_reward
from pipeline.stage import ResolvedInput, StageContext
from pipeline.training.arguments import zero3_config
from pipeline.training.data.encoding import Reader, encode_answers
from pipeline.training.reward_models import open_scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sample:
    """One sampled response.

    Attributes:
        row: row of the prompt, with `prompt` (messages) and further columns.
        prompt_ids: tokens of the rendered prompt.
        response_ids: sampled tokens; the end token, if there is one, is the last.
        text: the response without special tokens.
    """

    row: Row
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    text: str


Scorer = Callable[[Sequence[Sample], Offered], list[float]]
"""Returns one number per sample, NaN where the reward does not apply; also gets the trainer's further arguments."""


@dataclass(frozen=True)
class TokenScorer:
    """Scores samples by an implicit reward with the policy's tokenizer, so that each token has a share in the score.

    Attributes:
        model: the implicit reward.
        name: its name for messages.
    """

    model: ImplicitReward
    name: str

    def __call__(self, samples: Sequence[Sample], offered: Offered) -> list[float]:
        """Return the score of each sample."""
        return [sum(tokens) for tokens in self.by_token(samples)]

    def by_token(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Return the share of each token of each sample.

        Raises:
            PipelineError: a score is not finite.
        """
        answers = [PromptedResponse.of(one.prompt_ids, one.response_ids) for one in samples]
        shares = token_scores(self.model, answers)
        finite([sum(tokens) for tokens in shares], self.name)  # NaN would count as a reward that does not apply
        return shares


@dataclass(frozen=True)
class RewardSources:
    """All rewards of a stage.

    Attributes:
        names: names for metrics and messages, models first.
        weights: one weight per reward.
        scorers: one scorer per reward.
        how: way to combine them: `sum`, `mean`, `min` or `uwo`.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    scorers: tuple[Scorer, ...]
    how: str = "sum"

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return the weighted and combined reward of each sample."""
        return self.combined(self.parts(samples))

    def parts(self, samples: Sequence[Sample]) -> dict[str, list[float]]:
        """Return each reward of each sample by name; NaN where a function returned None, because it does not apply.

        Raises:
            PipelineError: a function raises, returns another number of values, or one that is not finite.
        """
        return {name: scorer(samples, {}) for name, scorer in zip(self.names, self.scorers, strict=True)}

    def by_token(self, samples: Sequence[Sample]) -> tuple[list[float], list[list[float]]]:
        """Return the combined reward of each sample, and the part of it that each of its tokens earned.

        What rewards other than implicit ones give is in the first alone. The rewards must be combined by `sum`.
        """
        earned = [[0.0] * len(sample.response_ids) for sample in samples]
        parts = {}
        for name, scorer, weight in zip(self.names, self.scorers, self.weights, strict=True):
            if not isinstance(scorer, TokenScorer):
                parts[name] = scorer(samples, {})
                continue
            shares = scorer.by_token(samples)
            parts[name] = [sum(tokens) for tokens in shares]
            earned = [
                [sum_ + weight * one for sum_, one in zip(sums, tokens, strict=True)]
                for sums, tokens in zip(earned, shares, strict=True)
            ]
        return self.combined(parts), earned

    @property
    def has_token_rewards(self) -> bool:
        """Whether a reward says how much each token earned."""
        return any(isinstance(scorer, TokenScorer) for scorer in self.scorers)

    def combined(self, parts: dict[str, list[float]]) -> list[float]:
        """Weight and combine the rewards that apply; return one number per sample."""
        weighted = [
            [weight * value for value in parts[name]] for name, weight in zip(self.names, self.weights, strict=True)
        ]
        rows = ([value for value in row if not math.isnan(value)] for row in zip(*weighted, strict=True))
        return [combine(row, self.how) for row in rows]


def combine(values: Sequence[float], how: str) -> float:
    """Combine a response's rewards: their `sum`, `mean` or `min`, or `uwo`, their mean less their variance.

    Reference: Coste et al. 2023, arXiv:2310.02743: `min` is worst-case optimisation (equation 2), `uwo` uncertainty
    weighted optimisation (equation 3, λ = 1), for ensembles of reward models of one scale.
    """
    if not values:
        return 0.0
    if how == "min":
        return min(values)
    mean = sum(values) / len(values)
    if how == "mean":
        return mean
    if how == "uwo":
        return mean - sum((value - mean) ** 2 for value in values) / len(values)
    return sum(values)


def load_rewards(
    ctx: StageContext,
    config: RewardFields,
    tokenizer: PreTrainedTokenizerBase,
    on_trunk: Callable[[ResolvedInput], Scorer | None] | None = None,
) -> RewardSources:
    """Load the rewards that a configuration names.

    Args:
        ctx: the stage's context.
        config: the configuration.
        tokenizer: the policy's tokenizer.
        on_trunk: returns a scorer for a reward model that is an adapter on the policy's trunk, given the model's stage
            input; if it returns None, the model is loaded. It is asked only for models with the policy's tokenizer.

    Raises:
        PipelineError: a model or function cannot be loaded.
    """
    names: list[str] = []
    scorers: list[Scorer] = []
    for source, name in zip(ctx.inputs.get("reward", []), config.reward, strict=True):
        scorers.append(_model_scorer(ctx, source, tokenizer, on_trunk))
        names.append(name)
    for spec in config.reward_functions:
        scorers.append(_function_scorer(ctx, spec))
        names.append(spec.rpartition(":")[2])
    distinct = [name if names.count(name) == 1 else f"{name}.{i}" for i, name in enumerate(names)]
    return RewardSources(tuple(distinct), tuple(config.weights), tuple(scorers), config.reward_combine)


def reward_readers(ctx: StageContext, tokenizer: PreTrainedTokenizerBase) -> list[Reader]:
    """Return the reward and watched models that read answers as text, because their tokenizer is not the policy's.

    Args:
        ctx: the stage's context.
        tokenizer: the policy's tokenizer.
    """
    readers = []
    for source in [*ctx.inputs.get("reward", []), *ctx.inputs.get("watch", [])]:
        own = load_tokenizer(source, ctx.trust_remote_code)
        if disagreements(facts(tokenizer, "policy"), facts(own, source.name)):
            readers.append(Reader(f"reward model `{source.ref}`", own))
    return readers


def load_watched(
    ctx: StageContext, names: Sequence[str], functions: Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> RewardSources:
    """Load the watched scores: the sum of models and functions that the policy is not trained on.

    Args:
        ctx: the stage's context; the models are its input `watch`.
        names: names of the models.
        functions: Python functions.
        tokenizer: the policy's tokenizer.
    """
    scorers = [_model_scorer(ctx, source, tokenizer, None) for source in ctx.inputs.get("watch", [])]
    scorers += [_function_scorer(ctx, spec) for spec in functions]
    return RewardSources((*names, *functions), (1.0,) * len(scorers), tuple(scorers))


def _function_scorer(ctx: StageContext, spec: str) -> Scorer:
    if ctx.functions is None:
        raise PipelineError(Problem(f"no way to load {spec}", stage=ctx.name))
    function = ctx.functions(spec)

    def scores(samples: Sequence[Sample], offered: Offered) -> list[float]:
        if not samples:  # a process may have none; it still takes part in sharded reward models
            return []
        completions = [[{"role": "assistant", "content": sample.text}] for sample in samples]
        extra = {"completion_ids": [list(sample.response_ids) for sample in samples], **offered}
        rows = [sample.row for sample in samples]
        return call_reward(function, spec, rows, completions, extra=extra, may_skip_rows=True)

    return scores


def _model_scorer(
    ctx: StageContext,
    source: ResolvedInput,
    tokenizer: PreTrainedTokenizerBase,
    on_trunk: Callable[[ResolvedInput], Scorer | None] | None,
) -> Scorer:
    own = load_tokenizer(source, ctx.trust_remote_code)
    same = not disagreements(facts(tokenizer, "policy"), facts(own, source.name))
    on_policy = on_trunk(source) if same and on_trunk is not None else None
    if on_policy is not None:
        return on_policy
    model = open_scorer(ctx, source, own, zero3=zero3_config(ctx))
    if same and isinstance(model, ImplicitReward):
        return TokenScorer(model, source.name)

    def scores(samples: Sequence[Sample], offered: Offered) -> list[float]:
        if same:
            answers = [PromptedResponse.of(sample.prompt_ids, sample.response_ids) for sample in samples]
        else:
            answers = encode_answers(own, [sample.row for sample in samples], [sample.text for sample in samples])
        return finite(score(model, answers, own.pad_token_id), source.name)

    return scores
