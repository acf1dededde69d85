"""The models of PPO: policy, reference, value function, and the engine that shards them.

Owns what they start from and in which precision. Knows nothing of prompts and rewards.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError, Problem
from pipeline.models.cpu.precision import HALF
from pipeline.models.implicit_reward import is_implicit_reward
from pipeline.models.load.pretrained import WeightOptions, load_causal_lm, load_reward_model, load_tokenizer
from pipeline.models.tokenizer.contract import disagreements, facts
from pipeline.parallel.zero.config import deepspeed_config, fit_buckets, width_of
from pipeline.rl.policy.adapters import reward_on_trunk, start_value_from_reward
from pipeline.rl.policy.policy import Policy, ValueHead
from pipeline.rl.policy.trunk_scorer import trunk_scorer
from pipeline.rl.train_engines.sharded import FsdpEngine, ZeroEngine
from pipeline.stage import ResolvedInput, StageContext
from pipeline.stages.ppo.config import Config
from pipeline.training.arguments import (
    device_of,
    precision_of,
    resolve_precision,
    starting_weights,
    with_precision,
    zero3_config,
)
from pipeline.training.fitting import fit
from pipeline.training.precision_problems import ppo_problem

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pipeline.parallel.ranks import Ranks
    from pipeline.rl.rewards.sources import Scorer
    from pipeline.rl.train_engines.engines import TrainEngine


def resolve_ppo_precision(ctx: StageContext) -> StageContext:
    """Return the context with its compute precision resolved; with sharded weights PPO takes no fp16.

    Raises:
        PipelineError: the recipe asks for fp16 with sharded weights.
    """
    resolved = resolve_precision(ctx)
    if precision_of(resolved) != "fp16" or not ctx.dims.is_sharded:
        return resolved
    problem = ppo_problem(ctx.compute.precision, ctx.dims)
    if problem is not None:
        raise PipelineError(replace(problem, stage=ctx.name))
    ctx.note("this GPU has no bf16, and PPO with sharded weights takes no fp16: computes in fp32")
    return with_precision(ctx, "fp32")


def compute_dtype(ctx: StageContext) -> torch.dtype | None:
    """Return the dtype of the computation if it differs from that of the weights; else None."""
    return HALF.get(precision_of(ctx))


def load_start(
    ctx: StageContext, config: Config, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """Return the policy's initial model, and with ZeRO-3 a second one as reference, since shards cannot be copied."""
    weights = starting_weights(ctx, config.adapter)
    load = functools.partial(load_causal_lm, ctx.input("model"), trust_remote_code=ctx.trust_remote_code, **weights)
    model = load()
    fit(ctx, model, tokenizer, weights)
    if weights.get("zero3") is not None:
        return model, load() if config.adapter is None else None
    if config.adapter is None or config.adapter.quantize is None:  # quantised weights are loaded onto the device
        model.to(device_of(ctx))
    return model, None


def load_value_start(ctx: StageContext, config: Config, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return the initial separate value model: a reward model with the policy's tokenizer, else the policy's start.

    An implicit reward has no head that gives one number, so no value model starts from it.
    """
    weights = WeightOptions(zero3=zero3_config(ctx))

    def load(source: ResolvedInput) -> PreTrainedModel:
        model = load_reward_model(source, tokenizer, seed=ctx.seed, trust_remote_code=ctx.trust_remote_code, **weights)
        fit(ctx, model, tokenizer, weights)
        return model

    for source in ctx.inputs.get("reward", []):
        if is_implicit_reward(source):
            continue
        own = load_tokenizer(source, ctx.trust_remote_code)
        if not disagreements(facts(tokenizer, "policy"), facts(own, source.name)):
            return load(source)
    classifier = load(ctx.input("model"))
    classifier.score.weight.data.zero_()
    return classifier


def scorer_on_trunk(ctx: StageContext, policy: Policy, source: ResolvedInput, pad_id: int) -> Scorer | None:
    """Return a scorer for a reward model that is an adapter on the policy's trunk; None if it must be loaded."""
    reward = reward_on_trunk(policy.model, Path(source.path)) if Path(source.path).is_dir() else None
    if reward is None:
        return None
    ctx.note(f"reward model {source.ref} is an adapter on the policy's own trunk")
    head = policy.value if policy.value_adapter else None
    if isinstance(head, ValueHead) and start_value_from_reward(policy.model, head.linear, reward):
        ctx.note("the value function starts as the reward model")
    return trunk_scorer(policy, reward, pad_id)


def sharded_engine(ctx: StageContext, config: Config, policy: Policy, ranks: Ranks) -> TrainEngine | None:
    """Return the engine that shards the training state (ZeRO or FSDP2); None if it is not sharded."""
    if config.train.ema_decay and ctx.dims.is_sharded:
        statement = "train.ema_decay with sharded weights (compute.zero or compute.fsdp)"
        raise PipelineError(
            Problem(statement, "whole weights in every process", "leave one of them out", stage=ctx.name)
        )
    if ctx.dims.zero:
        deepspeed = deepspeed_config(ctx.dims, precision_of(ctx))
        fit_buckets(deepspeed, width_of(policy.model))
        ctx.report(deepspeed=deepspeed)
        return ZeroEngine(policy, config.train, ranks, deepspeed)
    if ctx.dims.fsdp:
        return FsdpEngine(policy, config.train, ranks)
    return None
