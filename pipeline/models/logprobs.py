"""Log-probabilities of responses under a model: for the KL divergence from a reference, and for rollouts.

Owns the batching and the arithmetic. Rows are sorted by length and padded on the right; under causal attention no token
sees the padding to its right, so no mask is needed. Only positions that predict a response token go through the output
layer, because its logits (positions times vocabulary) take most of the memory.

Shapes: N response positions of a batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import PipelineError, Problem, counted
from pipeline.models.batching import Progress, length_batches
from pipeline.models.cpu.precision import computing_in
from pipeline.models.forward import context_limit, evaluating
from pipeline.models.positions import flat, logits_at
from pipeline.parallel.zero.zero3 import forward_without_engine, idle_passes, shape_of_weight

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_LOGITS_PER_BATCH = 2**27
"""Half a GiB of float32 logits."""

TOKEN_BUDGET = 4096
"""Padded tokens in one forward pass, unless the vocabulary is large."""


def response_logprobs(
    model: PreTrainedModel | PeftModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    temperature: float = 1.0,
    token_budget: int = TOKEN_BUDGET,
    precision: str = "fp32",
    on_progress: Progress | None = None,
) -> list[list[float]]:
    """Return the log-probability of each response token given all before it.

    Args:
        model: a causal language model of `transformers` or `peft`; an adapter counts unless it is disabled
            (`without_adapter`). If the weights are sharded, every rank must call this, even without rows of its own.
        prompts: token ids, one non-empty list per row.
        responses: token ids, as `decode` returns them; may be empty.
        temperature: divides the logits; pass the one the responses were sampled with.
        token_budget: padded tokens in one forward pass; lowered for a large vocabulary.
        precision: compute precision, if it is lower than that of the weights.
        on_progress: called after each batch.

    Returns:
        One list per row with a value for each response token, in nats.

    Raises:
        PipelineError: a prompt is empty, or a row is longer than the model's context.
    """
    rows = [(list(prompt), list(response)) for prompt, response in zip(prompts, responses, strict=True)]
    _check(model, rows)
    logprobs: list[list[float]] = [[] for _ in rows]
    done = 0
    batches = logprob_batches(model, rows, token_budget)
    idle = idle_passes(model, sum(any(rows[row][1] for row in batch) for batch in batches))
    with evaluating(model), forward_without_engine(model), computing_in(precision, model.device):
        for batch in batches:
            values = _batch_logprobs(model, [rows[row] for row in batch], temperature).tolist()
            for row in batch:
                length = len(rows[row][1])
                logprobs[row], values = values[:length], values[length:]
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(rows))
        for _ in range(idle):
            _batch_logprobs(model, [([0], [0])], temperature)
    return logprobs


def logprob_batches(
    model: PreTrainedModel | PeftModel,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    token_budget: int = TOKEN_BUDGET,
) -> list[list[int]]:
    """Return the rows that `response_logprobs` computes together; each batch by itself gives the same values.

    Args:
        model: a causal language model.
        rows: prompt and response of each row, as token ids.
        token_budget: padded tokens in one forward pass; lowered for a large vocabulary.
    """
    vocabulary = shape_of_weight(model.get_output_embeddings().weight)[0]
    budget = max(1, min(token_budget, _LOGITS_PER_BATCH // vocabulary))
    return list(length_batches([len(prompt) + len(response) for prompt, response in rows], budget))


def token_logprobs(logits_NV: Tensor, tokens_N: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log softmax(logits / temperature) at the given tokens, in float32, shape (N,)."""
    logits_NV = logits_NV.float() / temperature
    return logits_NV.gather(-1, tokens_N[:, None])[:, 0] - logits_NV.logsumexp(dim=-1)


def _batch_logprobs(
    model: PreTrainedModel | PeftModel, rows: Sequence[tuple[list[int], list[int]]], temperature: float
) -> Tensor:
    width = max(len(prompt) + len(response) for prompt, response in rows)
    ids = [[*prompt, *response, *[0] * (width - len(prompt) - len(response))] for prompt, response in rows]
    # The token at position t is predicted at position t - 1.
    row_N = [i for i, (_, response) in enumerate(rows) for _ in response]
    position_N = [len(prompt) - 1 + t for prompt, response in rows for t in range(len(response))]
    targets_N = torch.tensor([token for _, response in rows for token in response], dtype=torch.long)
    if not row_N:
        return torch.empty(0)
    positions_N = flat(torch.tensor(row_N), torch.tensor(position_N), width).to(model.device)
    logits_NV, _ = logits_at(model, positions_N, input_ids=torch.tensor(ids, device=model.device))
    return token_logprobs(logits_NV, targets_N.to(logits_NV.device), temperature)


def _check(model: PreTrainedModel | PeftModel, rows: Sequence[tuple[list[int], list[int]]]) -> None:
    limit = context_limit(model)
    for row, (prompt, response) in enumerate(rows):
        if not prompt:
            raise PipelineError(Problem(f"prompt {row} is empty", "at least one token", "remove the row"))
        if limit is not None and len(prompt) + len(response) > limit:
            statement = f"row {row} has {len(prompt)} + {counted(len(response), 'token')}"
            raise PipelineError(Problem(statement, f"at most the model's {limit} positions", "shorten or drop the row"))
