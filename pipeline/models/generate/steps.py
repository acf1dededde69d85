"""Decodes a batch of prompts token by token, with the model's cache if that gives correct logits.

Whether it does is measured once per model, by comparison with a pass without a cache. There are three cases:

- The cache is correct: rows of any lengths are padded on the left and decoded together.
- The model's state absorbs left padding: only rows of one length are decoded together.
- The cache is of an unknown kind or wrong: every token reads all of its row again, padded on the right, which a causal
  model does not see.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pipeline.models.agreement import disagreement, rounding_of
from pipeline.models.forward import Forward, cache_for, context_limit, evaluating
from pipeline.models.positions import flat, logits_at

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CacheUse = Literal["padded", "unpadded", "none"]
"""With a cache and rows of any lengths together, with a cache and rows of one length together, or without a cache."""

Say = Callable[[str], None]
"""Shows one line to the user."""

SLOWER: dict[CacheUse, str] = {
    "unpadded": "rows are decoded together with rows of their own length only",
    "none": "every token is decoded without a cache, which is slower",
}

_SHORT, _LONG, _NEW = 5, 12, 3
"""Prompt tokens of the two rows that a cache is tested on, and the number of tokens then fed one by one."""

_MEASURED: WeakKeyDictionary[Any, CacheUse] = WeakKeyDictionary()


class Steps(Protocol):
    """A batch of rows that is decoded token by token."""

    def begin(self) -> Tensor:
        """Read the prompts and return the logits after them, shape (B, V)."""
        ...

    def next(self, tokens_B: Tensor) -> Tensor:
        """Add a token to each row and return the logits after it, shape (B, V)."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` (batch indices)."""
        ...


class CachedSteps:
    """Decodes rows padded on the left, with the model's cache."""

    def __init__(
        self, model: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]], pad_id: int, room: int
    ) -> None:
        self.ids_BT, self.mask_BT = left_padded(prompts, pad_id, model.device)
        self.call = Forward(model, padded=not bool(self.mask_BT.all()))
        self.cache = cache_for(model, self.ids_BT.shape[1] + room)

    def begin(self) -> Tensor:
        """Read the prompts and return the logits after them, shape (B, V)."""
        return self.call(self.ids_BT, self.mask_BT, self.cache)

    def next(self, tokens_B: Tensor) -> Tensor:
        """Add a token to each row and return the logits after it, shape (B, V)."""
        self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(len(self.mask_BT), 1)], dim=1)
        return self.call(tokens_B[:, None], self.mask_BT, self.cache)

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` (batch indices)."""
        self.cache.reorder_cache(rows)
        self.mask_BT = self.mask_BT[rows]


class UncachedSteps:
    """Decodes rows padded on the right without a cache: each token reads the full row. Correct for any causal model."""

    def __init__(self, model: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]], pad_id: int) -> None:
        width = max(map(len, prompts))
        rows = [[*prompt, *[pad_id] * (width - len(prompt))] for prompt in prompts]
        self.model, self.pad_id = model, pad_id
        self.ids_BT = torch.tensor(rows, device=model.device)
        self.lengths_B = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        self.last_position = (context_limit(model) or sys.maxsize) - 1

    def begin(self) -> Tensor:
        """Read the rows so far and return the logits after their last tokens, shape (B, V)."""
        count, width = self.ids_BT.shape
        ends_B = flat(torch.arange(count, device=self.ids_BT.device), self.lengths_B - 1, width)
        logits_BV, _ = logits_at(self.model, ends_B, input_ids=self.ids_BT)
        return logits_BV

    def next(self, tokens_B: Tensor) -> Tensor:
        """Add a token to each row and return the logits after it, shape (B, V)."""
        # A row that ended may still be in the batch and would step past the last position.
        ends_B = self.lengths_B.clamp(max=self.last_position)
        if int(ends_B.max()) == self.ids_BT.shape[1]:
            self.ids_BT = torch.nn.functional.pad(self.ids_BT, (0, 1), value=self.pad_id)
        self.ids_BT[torch.arange(len(tokens_B), device=tokens_B.device), ends_B] = tokens_B
        self.lengths_B = ends_B + 1
        return self.begin()

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` (batch indices)."""
        self.ids_BT, self.lengths_B = self.ids_BT[rows], self.lengths_B[rows]


def steps_for(
    model: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]], pad_id: int, room: int, use: CacheUse
) -> Steps:
    """Return the decoder of a batch; with ``unpadded`` its prompts must have one length.

    Args:
        model: a causal language model.
        prompts: token ids of each row.
        pad_id: fills shorter rows.
        room: most new tokens, for the size of the cache.
        use: use of the model's cache, from `cache_use`.
    """
    return UncachedSteps(model, prompts, pad_id) if use == "none" else CachedSteps(model, prompts, pad_id, room)


def cache_use(
    model: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]], pad_id: int, say: Say | None = None
) -> CacheUse:
    """Return how a model's cache can be used, measured with its first prompts and remembered for the model.

    Args:
        model: a causal language model of `transformers` or `peft`.
        prompts: at least one; the test rows are made of their tokens.
        pad_id: fills the left of shorter rows.
        say: called once for a model whose cache cannot be used fully; prints to standard error when omitted.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if inner not in _MEASURED:
        with evaluating(model), torch.inference_mode():
            _MEASURED[inner], why = _measure_use(model, prompts, pad_id)
        if why:
            kind = getattr(model.config, "model_type", type(inner).__name__)
            text = f"the cache of this {kind} model cannot be used as it is ({why}): {SLOWER[_MEASURED[inner]]}"
            say(text) if say is not None else print(text, file=sys.stderr)
    return _MEASURED[inner]


def _measure_use(
    model: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]], pad_id: int
) -> tuple[CacheUse, str]:
    """Return the first use of the cache whose logits equal those without one, and what was wrong with the others."""
    rows, new = trial_rows(model, prompts)
    if Forward(model, padded=False).cache_argument is None:
        return "none", "it is not one that transformers fills"
    expected = [plain_logits(model, [*row, *more], len(row)) for row, more in zip(rows, new, strict=True)]
    mixed_lengths = _difference(model, rows, new, expected, pad_id)
    if not mixed_lengths:
        return "padded", ""
    same_length = _difference(model, [rows[1]] * 2, [new[1]] * 2, [expected[1]] * 2, pad_id)
    return ("none", same_length) if same_length else ("unpadded", f"with padding on the left {mixed_lengths}")


def trial_rows(
    model: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]]
) -> tuple[list[list[int]], list[list[int]]]:
    """Return two test rows of different lengths, and the tokens that follow each, all made from the first prompts."""
    known = [token for prompt in prompts[:8] for token in prompt]
    limit = context_limit(model) or _LONG + _NEW
    new = max(1, min(_NEW, limit - 2))
    lengths = [max(1, min(length, limit - new)) for length in (_SHORT, _LONG)]
    text = (known * (_LONG + _NEW))[: _LONG + _NEW]
    return [text[:length] for length in lengths], [text[length : length + new] for length in lengths]


def plain_logits(model: PreTrainedModel | PeftModel, ids: list[int], read: int) -> Tensor:
    """Return the logits after ``read`` tokens and after each following one, (T, V), by one pass without a cache."""
    logits_TV: Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0, read - 1 :]
    return logits_TV.float()


def _difference(
    model: PreTrainedModel | PeftModel, rows: list[list[int]], new: list[list[int]], expected: list[Tensor], pad_id: int
) -> str:
    """Return how the logits with a cache are wrong, as text; empty if they differ by rounding only."""
    try:
        logits = _stepwise_logits(model, rows, new, pad_id)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an unknown kind of cache may fail in any way
        return f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
    worst, spread = disagreement(logits, [b[: len(a)] for a, b in zip(logits, expected, strict=True)])
    if worst <= rounding_of(model) * spread:
        return ""
    return f"its logits differ by {worst:.2g}, of {spread:.2g} between the likeliest and the unlikeliest token"


def _stepwise_logits(
    model: PreTrainedModel | PeftModel, rows: list[list[int]], new: list[list[int]], pad_id: int
) -> list[Tensor]:
    """Return each row's logits, (T, V), as new tokens are fed one by one.

    Before the last token all rows but the last are dropped, which tests `keep`: their logits have one line less.
    """
    alive, count = list(range(len(rows))), len(new[0])
    steps = CachedSteps(model, rows, pad_id, count)
    lines: list[list[Tensor]] = [[line] for line in steps.begin()]
    for step in range(count):
        if step == count - 1 and len(alive) > 1:
            steps.keep(torch.tensor(alive[-1:], device=model.device))
            alive = alive[-1:]
        logits_BV = steps.next(torch.tensor([new[i][step] for i in alive], device=model.device))
        for i, line in zip(alive, logits_BV, strict=True):
            lines[i].append(line)
    return [torch.stack(each) for each in lines]


def left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad rows on the left; return ids and mask (1 for real tokens), each (B, T)."""
    width = max(len(row) for row in rows)
    ids_BT = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], device=device)
    mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids_BT, mask_BT
