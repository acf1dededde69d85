"""One decoding step of a causal language model: its last logits and its key-value cache.

Owns how a model of any architecture is called. Knows nothing of sampling.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from pipeline.plain_data import KeywordArguments

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def context_limit(model: PreTrainedModel | PeftModel) -> int | None:
    """Return how many positions the model has, or None when it does not say."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


@contextmanager
def evaluating(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Switch the model to evaluation mode (no dropout) and back."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


CACHES = ("past_key_values", "cache_params")
"""Names of the cache argument in `transformers`: keys and values, or recurrent states."""


class Forward:
    """Calls a model for the logits of its last position, with the arguments that its class accepts.

    Attributes:
        cache_argument: name of the cache argument; None when the class has none of `CACHES`.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, *, padded: bool) -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        names = inspect.signature(inner.forward).parameters
        self.model = model
        self.padded = padded
        self.cache_argument = next((name for name in CACHES if name in names), None)
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
        extra: KeywordArguments = {str(self.cache_argument): cache}
        if self.takes_positions:
            # A row that ended may still be in the batch and would step past the last position.
            positions_BT = (mask_BT.cumsum(dim=1) - 1).clamp_(min=0, max=self.last_position)
            extra["position_ids"] = positions_BT[:, -ids_BT.shape[1] :]
        if self.takes_keep:
            extra["logits_to_keep"] = 1
        # Without padding no mask is needed. A recurrent model needs a mask only for the prompt: afterwards its mask
        # covers the new tokens only, and none of them is padding.
        is_read = self.cache_argument == "cache_params" and ids_BT.shape[1] < mask_BT.shape[1]
        mask = mask_BT if self.padded and not is_read else None
        output = self.model(input_ids=ids_BT, attention_mask=mask, use_cache=True, **extra)
        logits_BV: Tensor = output.logits[:, -1]
        return logits_BV


class StaticLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values in preallocated buffers, so that a step copies one token instead of the cache."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.filled = 0
        self.buffers: tuple[Tensor, ...] = ()
        self.keys: Tensor
        self.values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new tokens and return all so far, each (B, heads, T, head size)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.filled + key_states.shape[-2]
        if not self.buffers or end > self.capacity:
            self.capacity = max(self.capacity, end)
            self.buffers = tuple(
                self._allocated(new, cached) for new, cached in ((key_states, self.keys), (value_states, self.values))
            )
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., self.filled : end, :] = new
        self.filled = end
        self.keys, self.values = (buffer[..., :end, :] for buffer in self.buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select the rows (batch indices) ``beam_idx``."""
        self.buffers = tuple(self._allocated(cached, cached, beam_idx) for cached in (self.keys, self.values))
        self.keys, self.values = (buffer[..., : self.filled, :] for buffer in self.buffers)

    def _allocated(self, like: Tensor, cached: Tensor, rows: Tensor | None = None) -> Tensor:
        """Allocate a buffer of the layer's capacity, and copy the cached tokens (of ``rows``) to its start."""
        count = like.shape[0] if rows is None else len(rows)
        buffer = like.new_empty((count, like.shape[1], self.capacity, like.shape[3]))
        if self.filled:
            part = cached[..., : self.filled, :]
            buffer[..., : self.filled, :] = part if rows is None else part.index_select(0, rows)
        return buffer


def cache_for(model: PreTrainedModel | PeftModel, capacity: int) -> DynamicCache:
    """Return an empty cache with the layer types the architecture needs, and room for ``capacity`` tokens."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [StaticLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
