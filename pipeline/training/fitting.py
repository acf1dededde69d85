"""Fits model, tokenizer and rows to one another before a training stage starts.

Owns whether the embedding may be resized, and how long a row may be. Knows nothing of objectives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError, Problem
from pipeline.models.load.fitting import fit_embedding
from pipeline.stage import StageContext

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def fit(
    ctx: StageContext,
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    weights: Mapping[str, object],
) -> None:
    """Resize the model's embedding to the tokenizer if it has fewer rows than there are tokens, and note it.

    Args:
        ctx: the stage's context.
        model: the loaded model.
        tokenizer: the model's tokenizer.
        weights: how the model was loaded: fields of `WeightOptions`, or what stands for them.

    Raises:
        PipelineError: the weights are sharded or quantised, so the embedding cannot be resized.
    """
    is_sharded = weights.get("zero3") is not None or weights.get("tp_size", 1) != 1
    note = fit_embedding(model, tokenizer, can_grow=not is_sharded and not weights.get("quantize"))
    if note:
        ctx.note(note)


def context_length(model: PreTrainedModel | PeftModel, asked: int | None) -> int:
    """Return the longest row to train on, in tokens: ``asked``, or by default the model's context up to 2048.

    Raises:
        PipelineError: ``asked`` exceeds the model's context.
    """
    limit = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    if asked is None:
        return min(int(limit), 2048) if limit else 2048
    if limit and asked > limit:
        raise PipelineError(
            Problem(f"train.max_length is {asked}", f"at most the model's context of {limit} tokens", "lower it")
        )
    return asked
