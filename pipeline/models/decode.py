"""Sampling from a causal language model: a lean batched loop over the model's own key-value cache.

Owns the loop, the truncation of the distribution (temperature, top-k, top-p) and the random numbers. Knows nothing of
text, tokenizers or chat. Any `transformers` causal model works, through its `DynamicCache`; beam search is left to
`model.generate`.

What makes it faster than `model.generate` on a CPU: prompts are sorted by length, so little is padded; rows that ended
leave the batch; keys and values are written in place into buffers instead of being concatenated every step; nothing
runs per step that greedy or sampled decoding does not need.

Left out: repetition penalties, stop strings, speculative decoding, continuous refilling of the batch.

Shapes: B rows in the batch, T tokens, V vocabulary.
"""
# ruff: noqa: N803, N806  (shape suffixes)

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer

from pipeline.errors import PipelineError, Problem

Progress = Callable[[int, int], None]
"""Called with (prompts done, prompts in all)."""

_COMPACT_SHARE = 0.125
"""Ended rows are dropped once they are this share of the batch: dropping copies the cache."""

_GROW_TOKENS = 64
"""Room added to a key-value buffer when it is full."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

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
        """Return what is out of range."""
        found = []
        if not self.greedy and not self.temperature > 0:
            remedy = "use greedy decoding for the most likely token"
            found.append(Problem(f"temperature is {self.temperature}", "must be > 0", remedy))
        if self.top_k < 0:
            found.append(Problem(f"top_k is {self.top_k}", "must be >= 0", "0 keeps every token"))
        if not 0 < self.top_p <= 1:
            found.append(Problem(f"top_p is {self.top_p}", "must be > 0 and <= 1", "1 keeps every token"))
        return found


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos_ids: int | Sequence[int],
    pad_id: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    greedy: bool = False,
    seed: int = 0,
    batch_size: int = 128,
    row_ids: Sequence[int] | None = None,
    on_progress: Progress | None = None,
) -> list[list[int]]:
    """Sample one response per prompt.

    A row's random numbers come from ``(seed, its row id)`` alone, so a response does not depend on the batch size or
    on the other prompts, beyond floating-point rounding.

    Args:
        model: a causal language model of `transformers` or `peft`.
        prompts: token ids, one non-empty list per row.
        max_new_tokens: length limit of a response; also ends where the model's context is full.
        eos_ids: tokens that end a response.
        pad_id: fills the left of shorter prompts.
        temperature: divides the logits.
        top_k: keeps the k most likely tokens; 0 keeps all.
        top_p: keeps the smallest set of tokens whose probability reaches this; 1 keeps all.
        greedy: take the most likely token.
        seed: of the random numbers.
        batch_size: rows decoded together.
        row_ids: identity of each row for its random numbers; its position when omitted.
        on_progress: told after each batch.

    Returns:
        Response token ids in the order of the prompts, without the prompt. The token of ``eos_ids`` that ended a
        response is its last element; a response without one hit the limit.

    Raises:
        PipelineError: a prompt is empty or fills the context, or an option is out of range.
    """
    sampling = Sampling(greedy=greedy, temperature=temperature, top_k=top_k, top_p=top_p)
    limit = context_limit(model)
    _check(prompts, sampling, max_new_tokens, limit)
    eos = [eos_ids] if isinstance(eos_ids, int) else list(eos_ids)
    ids = range(len(prompts)) if row_ids is None else row_ids
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    responses: list[list[int]] = [[] for _ in prompts]
    done = 0
    with evaluating(model), torch.inference_mode():
        for rows in _batches(order, batch_size):
            batch = [prompts[row] for row in rows]
            rooms = [max_new_tokens if limit is None else min(max_new_tokens, limit - len(row)) for row in batch]
            uniforms_BT = None if greedy else _uniforms([(seed, ids[row]) for row in rows], max(rooms), model.device)
            outputs = _decode_batch(model, batch, rooms, eos, pad_id, sampling, uniforms_BT)
            for row, output in zip(rows, outputs, strict=True):
                responses[row] = output
            done += len(rows)
            if on_progress is not None:
                on_progress(done, len(prompts))
    return responses


def beam_search(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    max_new_tokens: int,
    eos_ids: int | Sequence[int],
    pad_id: int,
    batch_size: int = 16,
) -> list[list[int]]:
    """Return the best beam of each prompt, found by `model.generate`; ends with its end token when it has one."""
    _check(prompts, Sampling(greedy=True), max_new_tokens, context_limit(model))
    eos = [eos_ids] if isinstance(eos_ids, int) else list(eos_ids)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, num_beams=beams, do_sample=False, eos_token_id=eos, pad_token_id=pad_id
    )
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    responses: list[list[int]] = [[] for _ in prompts]
    with evaluating(model), torch.inference_mode():
        for rows in _batches(order, batch_size):
            ids_BT, mask_BT = _left_padded([prompts[row] for row in rows], pad_id, model.device)
            found_BT = model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=settings)
            for row, tokens in zip(rows, found_BT[:, ids_BT.shape[1] :].tolist(), strict=True):
                responses[row] = _until_eos(tokens, eos)
    return responses


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
    # Float64: the running sum of 150,000 small float32 terms would shift the boundaries between tokens.
    shares_BV = torch.softmax(logits_BV, dim=-1).double().cumsum_(dim=-1)
    total_B1 = shares_BV[:, -1:]
    index_B = torch.searchsorted(shares_BV, uniforms_B[:, None] * total_B1, right=True)[:, 0]
    # Rounding may push a uniform number next to 1 past the end: the last token with a share takes it.
    return torch.minimum(index_B, (shares_BV < total_B1).sum(dim=-1))


def truncated(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Set the logits outside the top-k and then outside the top-p to minus infinity."""
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        smallest_B1 = torch.topk(logits_BV, sampling.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < smallest_B1, -torch.inf)
    if sampling.top_p < 1:
        sorted_BV, index_BV = torch.sort(logits_BV, dim=-1, descending=True, stable=True)
        probs_BV = torch.softmax(sorted_BV, dim=-1)
        # A token stays while those before it have not reached top_p: the most likely one always does.
        outside_BV = probs_BV.cumsum(dim=-1) - probs_BV >= sampling.top_p
        outside_BV[:, 0] = False
        logits_BV = logits_BV.masked_fill(outside_BV.scatter(-1, index_BV, outside_BV), -torch.inf)
    return logits_BV


def context_limit(model: Any) -> int | None:
    """Return how many positions the model has, or None when it does not say."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Switch the model to evaluation mode (no dropout) and back."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class InPlaceLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of the cache that writes new keys and values into a buffer with room, instead of concatenating.

    `keys` and `values` are views of the filled part, so all that reads a `DynamicLayer` works.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the states of the new positions and return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        filled = self.keys.shape[-2]
        end = filled + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            self._buffers = (_with_room(self.keys, end), _with_room(self.values, end))
        keys, values = self._buffers
        keys[..., filled:end, :] = key_states
        values[..., filled:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the given rows, in that order."""
        super().reorder_cache(beam_idx)
        self._buffers = None


def _with_room(states: Tensor, needed: int) -> Tensor:
    *outer, filled, width = states.shape
    buffer = states.new_empty(*outer, needed + _GROW_TOKENS, width)
    buffer[..., :filled, :] = states
    return buffer


def _cache_for(model: Any) -> DynamicCache:
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    # Only plain layers: a sliding window or a recurrent state has its own bookkeeping.
    cache.layers = [InPlaceLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _decode_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    rooms: Sequence[int],
    eos_ids: Sequence[int],
    pad_id: int,
    sampling: Sampling,
    uniforms_BT: Tensor | None,
) -> list[list[int]]:
    device, steps = model.device, max(rooms)
    ids_BT, mask_BT = _left_padded(prompts, pad_id, device)
    eos_E, rooms_B = torch.tensor(eos_ids, device=device), torch.tensor(rooms, device=device)
    taken_BT = torch.full((len(prompts), steps), pad_id, dtype=torch.long, device=device)
    alive_B = torch.arange(len(prompts), device=device)
    ended_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    call = _Forward(model, padded=not bool(mask_BT.all()))
    cache = _cache_for(model)
    logits_BV = call(ids_BT, mask_BT, cache)
    for step in range(steps):
        tokens_B = next_tokens(logits_BV, sampling, None if uniforms_BT is None else uniforms_BT[alive_B, step])
        taken_BT[alive_B, step] = tokens_B
        ended_B = ended_B | torch.isin(tokens_B, eos_E) | (rooms_B[alive_B] <= step + 1)
        ended = int(ended_B.sum())
        if ended == len(ended_B) or step + 1 == steps:
            break
        if ended >= max(1.0, _COMPACT_SHARE * len(ended_B)):
            keep = (~ended_B).nonzero()[:, 0]
            cache.reorder_cache(keep)
            alive_B, tokens_B, mask_BT, ended_B = alive_B[keep], tokens_B[keep], mask_BT[keep], ended_B[keep]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], dim=1)
        logits_BV = call(tokens_B[:, None], mask_BT, cache)
    found = taken_BT[:, : step + 1].tolist()
    return [_until_eos(row[:room], eos_ids) for row, room in zip(found, rooms, strict=True)]


class _Forward:
    """Calls a model for the logits of its last position, with the arguments its class takes."""

    def __init__(self, model: Any, *, padded: bool) -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        names = inspect.signature(inner.forward).parameters
        self.model = model
        self.padded = padded
        self.takes_positions = "position_ids" in names
        self.takes_keep = "logits_to_keep" in names
        self.last_position = (context_limit(model) or sys.maxsize) - 1

    def __call__(self, ids_BT: Tensor, mask_BT: Tensor, cache: DynamicCache) -> Tensor:
        extra: dict[str, Any] = {}
        if self.takes_positions:
            # A row that ended may still be in the batch and would step past the last position.
            positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp_(min=0, max=self.last_position)
            extra["position_ids"] = positions_BT[:, -ids_BT.shape[1] :]
        if self.takes_keep:
            extra["logits_to_keep"] = 1
        # Without padding every row attends to all before it: no mask is built.
        mask = mask_BT if self.padded else None
        output = self.model(input_ids=ids_BT, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV


def _left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids_BT = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids_BT, mask_BT


def _uniforms(keys: Sequence[tuple[int, int]], steps: int, device: torch.device) -> Tensor:
    """Return float64 numbers in [0, 1), shape (B, T): each row from its own generator, on the CPU for all devices."""
    rows = []
    for seed, row_id in keys:
        mixed = hashlib.blake2b(f"{seed}:{row_id}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mixed, "big"))
        rows.append(torch.rand(steps, generator=generator, dtype=torch.float64))
    return torch.stack(rows).to(device)


def _until_eos(tokens: list[int], eos_ids: Sequence[int]) -> list[int]:
    for position, token in enumerate(tokens):
        if token in eos_ids:
            return tokens[: position + 1]
    return tokens


def _batches(order: Sequence[int], batch_size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _check(prompts: Sequence[Sequence[int]], sampling: Sampling, max_new_tokens: int, limit: int | None) -> None:
    problems = sampling.problems()
    if max_new_tokens < 1:
        problems.append(Problem(f"max_new_tokens is {max_new_tokens}", "must be >= 1"))
    for row, prompt in enumerate(prompts):
        if not prompt:
            problems.append(Problem(f"prompt {row} is empty", "at least one token", "remove the row"))
        elif limit is not None and len(prompt) >= limit:
            found = f"prompt {row} has {len(prompt)} tokens"
            problems.append(Problem(found, f"less than the model's {limit} positions", "shorten or drop the prompt"))
    if problems:
        raise PipelineError(*problems[:10])
