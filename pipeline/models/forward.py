"""One step of a causal language model: its last logits and its key-value cache.

Owns how a model of any architecture is called, and a cache that writes in place. Knows nothing of sampling.

Shapes: B rows, T positions, V vocabulary.
"""
# ruff: noqa: N803, N806  (shape suffixes)

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

_GROW_TOKENS = 64
"""Room added to a key-value buffer when it is full."""


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


class Forward:
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
        """Feed new tokens and return the logits after the last of them, shape (B, V).

        Args:
            ids_BT: the new tokens.
            mask_BT: 1 for each real token of the whole sequence, cached ones included.
            cache: filled by the call.
        """
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


def cache_for(model: Any) -> DynamicCache:
    """Return an empty cache of the layers the model's architecture needs."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    # Only plain layers: a sliding window or a recurrent state has its own bookkeeping.
    cache.layers = [InPlaceLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
