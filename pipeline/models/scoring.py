"""Scores of a reward model, one number per sequence.

Owns the batching: sequences sorted by length, right-padded, a budget of tokens per forward pass. Knows nothing of
prompts or of what the scores are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipeline.errors import PipelineError, Problem
from pipeline.models.batching import length_batches
from pipeline.models.forward import evaluating


def score(model: Any, sequences: Sequence[Sequence[int]], pad_id: int, *, token_budget: int = 4096) -> list[float]:
    """Return the model's score of each sequence of token ids, in their order.

    Args:
        model: a sequence classification model with one label.
        sequences: prompt and response together, each non-empty.
        pad_id: the model's padding id.
        token_budget: padded tokens in one forward pass.

    Raises:
        PipelineError: a sequence is empty.
    """
    empty = [row for row, sequence in enumerate(sequences) if not sequence]
    if empty:
        raise PipelineError(Problem(f"sequence {empty[0]} is empty", "at least one token", "remove the row"))
    scores = [0.0] * len(sequences)
    with evaluating(model), torch.inference_mode():
        for rows in length_batches([len(sequence) for sequence in sequences], token_budget):
            width = max(len(sequences[row]) for row in rows)
            fill = [width - len(sequences[row]) for row in rows]
            ids = [[*sequences[row], *[pad_id] * extra] for row, extra in zip(rows, fill, strict=True)]
            mask = [[1] * (width - extra) + [0] * extra for extra in fill]
            output = model(
                input_ids=torch.tensor(ids, device=model.device), attention_mask=torch.tensor(mask, device=model.device)
            )
            for row, value in zip(rows, output.logits[:, 0].float().tolist(), strict=True):
                scores[row] = value
    return scores
