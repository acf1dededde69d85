"""The rewards of an on-policy stage, loaded and ready: reward models and Python functions behind one call.

A reward model that shares the policy's tokenizer scores the very tokens that were sampled; one with another tokenizer
gets the decoded text, rendered through its own chat template. Python functions have trl's signature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import PipelineError, Problem
from pipeline.stage import StageContext
from pipeline.training.reward_fields import RewardFields
from pipeline.training.rewards import call_reward


@dataclass(frozen=True)
class Sample:
    """One sampled response.

    Attributes:
        row: of the prompt, with `prompt` (messages) and further columns.
        prompt_ids: tokens of the rendered prompt.
        response_ids: tokens sampled, the end token last where there is one.
        text: the response without special tokens.
    """

    row: dict[str, Any]
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    text: str


Scorer = Callable[[Sequence[Sample], Mapping[str, Any]], list[float]]
"""Returns one number per sample, NaN where the reward does not apply; also given what a trainer offers functions."""


@dataclass(frozen=True)
class RewardSources:
    """All rewards of a stage.

    Attributes:
        names: for metrics and messages, models first.
        weights: one per reward.
        scorers: one per reward.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    scorers: tuple[Scorer, ...]

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return the weighted sum of all rewards for each sample."""
        return self.combined(self.parts(samples))

    def parts(self, samples: Sequence[Sample]) -> dict[str, list[float]]:
        """Return each reward of each sample; NaN where a function returned None, since it does not apply.

        Raises:
            PipelineError: a function raises, returns another number of values, or one that is not finite.
        """
        return {name: scorer(samples, {}) for name, scorer in zip(self.names, self.scorers, strict=True)}

    def combined(self, parts: dict[str, list[float]]) -> list[float]:
        """Return the weighted sum of the rewards that apply."""
        weighted = [
            [0.0 if math.isnan(value) else weight * value for value in parts[name]]
            for name, weight in zip(self.names, self.weights, strict=True)
        ]
        return [sum(values) for values in zip(*weighted, strict=True)]


def load_rewards(ctx: StageContext, config: RewardFields, tokenizer: Any) -> RewardSources:
    """Load the rewards a configuration names.

    Args:
        ctx: of the stage.
        config: names them.
        tokenizer: of the policy.

    Raises:
        PipelineError: a model or function cannot be loaded, or a model's tokenizer has no chat template.
    """
    names: list[str] = []
    scorers: list[Scorer] = []
    for source, name in zip(ctx.inputs.get("reward", []), config.reward, strict=True):
        scorers.append(_model_scorer(ctx, source, tokenizer))
        names.append(name)
    for spec in config.reward_functions:
        if ctx.functions is None:
            raise PipelineError(Problem(f"no way to load {spec}", stage=ctx.name))
        scorers.append(_function_scorer(ctx.functions(spec), spec))
        names.append(spec.rpartition(":")[2])
    distinct = [name if names.count(name) == 1 else f"{name}.{i}" for i, name in enumerate(names)]
    return RewardSources(tuple(distinct), tuple(config.weights), tuple(scorers))


def _function_scorer(function: Callable[..., Any], spec: str) -> Scorer:
    def scores(samples: Sequence[Sample], offered: Mapping[str, Any]) -> list[float]:
        completions = [[{"role": "assistant", "content": sample.text}] for sample in samples]
        extra = {"completion_ids": [list(sample.response_ids) for sample in samples], **offered}
        rows = [sample.row for sample in samples]
        return call_reward(function, spec, rows, completions, extra=extra, may_skip_rows=True)

    return scores


def _model_scorer(ctx: StageContext, source: Any, tokenizer: Any) -> Scorer:
    from pipeline.models.contract import disagreements, facts
    from pipeline.models.load import load_reward_model, load_tokenizer
    from pipeline.models.scoring import score
    from pipeline.training.arguments import device_of
    from pipeline.training.encode import render

    own = load_tokenizer(source, ctx.trust_remote_code)
    model = load_reward_model(source, own, seed=ctx.seed, trust_remote_code=ctx.trust_remote_code)
    model.requires_grad_(False).to(device_of(ctx))
    same = not disagreements(facts(tokenizer, "policy"), facts(own, source.name))
    if not same and not own.chat_template:
        raise PipelineError(
            Problem(
                f"reward model `{source.ref}` has another tokenizer than the policy, without a chat template",
                "a chat template, to render conversations for it",
                "put a chat_template.jinja into its folder",
                stage=ctx.name,
            )
        )

    def scores(samples: Sequence[Sample], offered: Mapping[str, Any]) -> list[float]:
        if same:
            sequences = [[*sample.prompt_ids, *sample.response_ids] for sample in samples]
        else:
            sequences = [
                render(own, [*sample.row["prompt"], {"role": "assistant", "content": sample.text}])
                for sample in samples
            ]
        return score(model, sequences, own.pad_token_id)

    return scores
