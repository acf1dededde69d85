"""Scores of a reward model over many sequences, bucketed by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

TOKEN_BUDGET = 8192
"""Tokens, padding included, of one forward."""


@torch.inference_mode()
def score(model: Any, sequences: Sequence[Sequence[int]], pad_id: int, token_budget: int = TOKEN_BUDGET) -> list[float]:
    """Return one score per sequence of token ids, in the order given.

    Args:
        model: sequence classification model with one label, see `load_reward_model`.
        sequences: prompt and response of each row, as ids; not empty.
        pad_id: the model's padding token.
        token_budget: tokens of one forward, padding included.
    """
    model.eval()
    order = sorted(range(len(sequences)), key=lambda row: len(sequences[row]))
    scores = [0.0] * len(sequences)
    device = next(model.parameters()).device
    for batch in token_batches([len(sequences[row]) for row in order], token_budget):
        rows = [order[i] for i in batch]
        longest = max(len(sequences[row]) for row in rows)
        ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(sequences[row])] = torch.tensor(sequences[row])
            mask[i, : len(sequences[row])] = 1
        logits_B1 = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        for row, value in zip(rows, logits_B1.squeeze(-1).float().tolist(), strict=True):
            scores[row] = value
    return scores


def token_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Cut ascending ``lengths`` into batches whose padded size stays within ``token_budget``; at least one row each."""
    batches: list[list[int]] = []
    current: list[int] = []
    for i, length in enumerate(lengths):
        if current and (len(current) + 1) * length > token_budget:
            batches.append(current)
            current = []
        current.append(i)
    if current:
        batches.append(current)
    return batches
