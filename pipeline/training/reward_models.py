"""Opens a reward model of any form for scoring, on the stage's device and fitted to its tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.models.implicit_reward import ImplicitReward, load_implicit_reward
from pipeline.models.load.pretrained import load_reward_model
from pipeline.parallel.zero.zero3 import DeepSpeedConfig
from pipeline.stage import ResolvedInput, StageContext
from pipeline.training.arguments import frozen_weights
from pipeline.training.fitting import fit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def open_scorer(
    ctx: StageContext,
    source: ResolvedInput,
    tokenizer: PreTrainedTokenizerBase,
    *,
    zero3: DeepSpeedConfig | None = None,
) -> PreTrainedModel | ImplicitReward:
    """Load a frozen reward model, a sequence classification model or an implicit reward, for `score`.

    Args:
        ctx: the stage's context.
        source: artifact, folder or hub id of the reward model.
        tokenizer: its tokenizer.
        zero3: ZeRO-3's configuration if the weights are to be sharded; every rank must then call this.

    Raises:
        PipelineError: the model cannot be loaded, or not be fitted to its tokenizer.
    """
    device, weights = frozen_weights(ctx)
    weights["zero3"] = zero3
    implicit = load_implicit_reward(source, ctx.trust_remote_code, **weights)
    if implicit is not None:
        for model in implicit.models:
            _settle(ctx, model, tokenizer, zero3)
            if zero3 is None:
                model.to(device)
        return implicit
    model = load_reward_model(source, tokenizer, seed=ctx.seed, trust_remote_code=ctx.trust_remote_code, **weights)
    _settle(ctx, model, tokenizer, zero3)
    model.to(device) if zero3 is None else model.score.to(device)
    return model


def _settle(
    ctx: StageContext, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, zero3: DeepSpeedConfig | None
) -> None:
    """Freeze a model and fit it to its tokenizer."""
    model.requires_grad_(False)
    fit(ctx, model, tokenizer, {"zero3": zero3})
