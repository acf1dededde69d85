"""Chooses the next token: greedy, or sampled after temperature, top-k and top-p.

Owns the options, the arithmetic and the random numbers. Knows nothing of models.

Shapes: B rows, T steps, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import Problem


@dataclass(frozen=True)
class Sampling:
    """Options for choosing the next token.

    Attributes:
        greedy: take the most likely token; the other fields are then unused.
        temperature: divides the logits; > 0.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all.
    """

    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def problems(self) -> list[Problem]:
        """Return a problem for each option that is out of range."""
        problems = []
        if not self.greedy and not self.temperature > 0:
            remedy = "use greedy decoding for the most likely token"
            problems.append(Problem(f"temperature is {self.temperature}", "must be > 0", remedy))
        if self.top_k < 0:
            problems.append(Problem(f"top_k is {self.top_k}", "must be >= 0", "0 keeps every token"))
        if not 0 < self.top_p <= 1:
            problems.append(Problem(f"top_p is {self.top_p}", "must be > 0 and <= 1", "1 keeps every token"))
        return problems


def next_tokens(logits_BV: Tensor, sampling: Sampling, uniforms_B: Tensor | None) -> Tensor:
    """Choose one token per row.

    Sampling inverts the cumulative distribution: token i is taken when the row's uniform number falls into its share.

    Args:
        logits_BV: unnormalised log-probabilities.
        sampling: how to choose.
        uniforms_B: float64 in [0, 1), one per row; None for greedy.

    Returns:
        Token ids, shape (B,).
    """
    if sampling.greedy or uniforms_B is None:
        return logits_BV.argmax(dim=-1)
    logits_BV = truncated(logits_BV.float() / sampling.temperature, sampling)
    # Float64, because a running sum of 150,000 small float32 terms would shift the boundaries between tokens.
    shares_BV = torch.softmax(logits_BV, dim=-1).double().cumsum_(dim=-1)
    total_B1 = shares_BV[:, -1:]
    index_B = torch.searchsorted(shares_BV, uniforms_B[:, None] * total_B1, right=True)[:, 0]
    # Rounding may put a uniform number close to 1 past the end; it then chooses the last token with a probability > 0.
    return torch.minimum(index_B, (shares_BV < total_B1).sum(dim=-1))


def truncated(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Set the logits outside the top-k and then outside the top-p to minus infinity."""
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        smallest_B1 = torch.topk(logits_BV, sampling.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_B1, -torch.inf)
    if sampling.top_p < 1:
        sorted_BV, index_BV = torch.sort(logits_BV, dim=-1, descending=True, stable=True)
        probs_BV = torch.softmax(sorted_BV, dim=-1)
        # A token stays as long as the likelier ones have not reached top_p; the most likely one always stays.
        outside_BV = probs_BV.cumsum(dim=-1) - probs_BV >= sampling.top_p
        outside_BV[:, 0] = False
        logits_BV = logits_BV.masked_fill(outside_BV.scatter(-1, index_BV, outside_BV), -torch.inf)
    return logits_BV


def uniforms(keys: Sequence[tuple[int, int]], steps: int, device: torch.device) -> Tensor:
    """Draw float64 numbers in [0, 1), shape (B, T).

    Each row has its own generator, seeded by its key (seed, row id). The draws are made on the CPU, so they are the
    same on all devices.
    """
    rows = []
    for seed, row_id in keys:
        mixed = hashlib.blake2b(f"{seed}:{row_id}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mixed, "big"))
        rows.append(torch.rand(steps, generator=generator, dtype=torch.float64))
    return torch.stack(rows).to(device)
