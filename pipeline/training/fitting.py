"""Model, tokenizer and rows fitted to one another before a training stage starts.

Owns whether the weights can change their size here, and how long a row may be. Knows nothing of objectives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import PipelineError, Problem
from pipeline.models.fitting import fit_embedding
from pipeline.stage import StageContext


def fit(ctx: StageContext, model: Any, tokenizer: Any, weights: Mapping[str, Any]) -> None:
    """Give the model a row of its embedding for every token, and say so.

    Args:
        ctx: of the stage.
        model: just loaded.
        tokenizer: of the model.
        weights: how it was loaded.

    Raises:
        PipelineError: sharded weights, shards or few bits cannot grow.
    """
    in_pieces = weights.get("zero3") is not None or int(weights.get("tp_size") or 1) > 1
    note = fit_embedding(model, tokenizer, can_grow=not in_pieces and not weights.get("quantize"))
    if note:
        ctx.note(note)


def context_length(model: Any, asked: int | None) -> int:
    """Return the longest row to train on: what was asked, at most the model's context.

    Raises:
        PipelineError: more was asked than the model has.
    """
    limit = getattr(model.config, "max_position_embeddings", None) or getattr(model.config, "n_positions", None)
    if asked is None:
        return min(int(limit), 2048) if limit else 2048
    if limit and asked > limit:
        raise PipelineError(
            Problem(f"train.max_length is {asked}", f"at most the model's context of {limit} tokens", "lower it")
        )
    return asked
