"""What a training stage does to model and tokenizer before it starts, and says.

Owns the question whether the weights can change their size here. Knows nothing of objectives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
        PipelineError: weights in parts, slices or few bits cannot grow.
    """
    in_pieces = weights.get("parts") is not None or int(weights.get("slices") or 1) > 1
    note = fit_embedding(model, tokenizer, can_grow=not in_pieces and not weights.get("quantize"))
    if note:
        ctx.note(note)
