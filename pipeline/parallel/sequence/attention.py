"""Sequence parallelism: the processes of a group hold a shard of the tokens of the same rows each.

DeepSpeed's Ulysses exchanges shards of tokens for shards of heads around attention, and sums gradients over all
processes. Owns how rows are cut, and the check that a model computes from shards what it computes from whole rows.

Reference: Jacobs et al. 2023, arXiv:2309.14509; Bekman et al. 2025, arXiv:2506.13996 (for transformers). DeepSpeed's
`UlyssesSPDataLoaderAdapter` is not used: it spreads the micro-batches of a step over several, and knows neither epochs
nor where a resumed one begins.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pipeline.models.labels import IGNORE
from pipeline.parallel.ranks import Ranks

PROBE_TOKENS, PROBE_ROUNDING = 16, {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Tokens of the rows a prepared model is tried with, in each shard; and how far rounding may move their logits."""


@dataclass(frozen=True)
class SequenceShard:
    """Which shard is this process's, and which group of processes it is in.

    Attributes:
        index: of the shard.
        count: of shards, the processes of a group.
        group: the groups share the rows of a batch.
        groups: of them.
    """

    index: int = 0
    count: int = 1
    group: int = 0
    groups: int = 1

    @staticmethod
    def of(ranks: Ranks, count: int) -> SequenceShard:
        """Return this process's: neighbours form a group, as DeepSpeed has it (`parallel_state_sp.py`)."""
        return SequenceShard(ranks.index % count, count, ranks.index // count, ranks.count // count)

    def cut(self, tokens: Tensor) -> Tensor:
        """Return this process's shard of (batch, tokens); the tokens divide."""
        width = tokens.shape[1] // self.count
        return tokens[:, self.index * width : (self.index + 1) * width].contiguous()

    def batch(self, batch: dict[str, Tensor], pad_id: int) -> dict[str, Tensor]:
        """Return this process's shard of a padded batch, with each token's place in its row, and what follows it.

        Rows are padded to a multiple of the shards. Labels are shifted before they are cut: what the last token of a
        shard predicts is the first of the next one.

        Args:
            batch: `input_ids`, `labels` and perhaps `attention_mask`, each (batch, tokens); of packed rows
                `position_ids`, each token's place in its own document.
            pad_id: token to pad with.
        """
        ids, labels = batch["input_ids"], batch["labels"]
        rest = -ids.shape[1] % self.count
        ids = torch.nn.functional.pad(ids, (0, rest), value=pad_id)
        follows = torch.nn.functional.pad(labels, (0, rest + 1), value=IGNORE)[:, 1:]
        places = torch.arange(ids.shape[1]).expand_as(ids)
        if "position_ids" in batch:
            filling = torch.arange(rest).expand(ids.shape[0], rest)  # a document of its own
            places = torch.cat([batch["position_ids"], filling], dim=1)
        made = {"input_ids": ids, "position_ids": places, "labels": follows, "shift_labels": follows}
        if "attention_mask" in batch:
            made["attention_mask"] = torch.ones_like(ids)  # padding is on the right: a causal mask hides it
        return {name: self.cut(tensor) for name, tensor in made.items()}


def parallelism(shard: SequenceShard, kernel: str) -> Any:
    """Return accelerate's configuration of it.

    Args:
        shard: of this process.
        kernel: `transformers`' name of the attention, torch's (`sdpa`) or a FlashAttention.
    """
    from accelerate import ParallelismConfig
    from accelerate.utils import DeepSpeedSequenceParallelConfig

    handler = DeepSpeedSequenceParallelConfig(sp_seq_length_is_variable=True, sp_attn_implementation=kernel)
    return ParallelismConfig(
        sp_size=shard.count, sp_backend="deepspeed", sp_handler=handler, dp_replicate_size=shard.groups
    )


def documents_of(places: Tensor) -> list[list[int]]:
    """Return how long the documents of each row are, in their order: one begins wherever the place is 0.

    Args:
        places: of each token in its own document, (batch, tokens); the first of a row is 0.
    """
    tokens = places.shape[1]
    starts = [torch.nonzero(row == 0).flatten().tolist() for row in places]
    return [[end - start for start, end in pairwise([*row, tokens])] for row in starts]


def by_document(attention: Callable[..., tuple[Tensor, Any]]) -> Callable[..., tuple[Tensor, Any]]:
    """Return an attention of `transformers` in which the documents of packed rows do not see one another.

    Each document is attended to by itself: exact for every kernel, without a mask, whose size grows with the square of
    the tokens, and no work is spent on pairs of tokens that do not see each other. DeepSpeed gives attention no mask,
    and `transformers` keeps documents apart by their places for FlashAttention and for one row only.

    Args:
        attention: takes queries, keys and values as (batch, heads, tokens, size) and `position_ids` of the whole rows
            as (batch, tokens); returns (batch, tokens, heads, size).
    """

    def attend(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        places, rows = kwargs.pop("position_ids"), []
        for i, lengths in enumerate(documents_of(places)):
            parts = [torch.split(tensor[i : i + 1], lengths, dim=2) for tensor in (query, key, value)]
            own = torch.split(places[i : i + 1], lengths, dim=1)
            made = [
                attention(module, *document, None, *args, position_ids=place, **kwargs)[0]
                for *document, place in zip(*parts, own, strict=True)
            ]
            rows.append(torch.cat(made, dim=1))
        return torch.cat(rows), None

    return attend


class UlyssesAttention:
    """DeepSpeed's exchange of tokens for heads, as it lies around a prepared model's attention."""

    def __init__(self, kernel: str, shard: SequenceShard, *, is_packed: bool = False) -> None:
        """Find it.

        Args:
            kernel: attention it is put around.
            shard: of this process.
            is_packed: whether rows hold several documents, which are to be kept apart.

        Raises:
            RuntimeError: DeepSpeed has put none there.
        """
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        found = inspect.getclosurevars(ALL_ATTENTION_FUNCTIONS[kernel]).nonlocals.get("uattn")
        if found is None or found.world_size != shard.count:
            raise RuntimeError(f"DeepSpeed has not put its exchange around {kernel}")
        self._held, self.shard, self._is_packed = found, shard, is_packed
        if is_packed:
            found.attn = by_document(found.attn)

    def cut_always(self, yes: bool) -> None:
        """Take rows as cut in evaluation too; accelerate has DeepSpeed take them as whole there."""
        self._held.disable_in_eval = not yes

    def expect(self, rows: int) -> None:
        """Take batches of so many rows; DeepSpeed was told those of a micro-batch."""
        self._held.batch_size = rows
        for name in ("required_query_shape", "required_key_value_shape", "required_context_shape"):
            tokens, _, *rest = getattr(self._held, name)
            setattr(self._held, name, torch.Size([tokens, rows, *rest]))

    @torch.no_grad()
    def difference(self, engine: Any) -> float:
        """Return how far the logits of sharded rows are from those of whole ones, relative to their norm.

        A model that attends past the exchange, or by other rules than a causal mask, differs. Where rows are packed,
        they are of two documents, and the whole ones are the documents alone. Every process calls it.

        Args:
            engine: DeepSpeed's, around the model.
        """
        shard, vocab = self.shard, int(engine.module.config.get_text_config().vocab_size)
        random = torch.Generator().manual_seed(0)
        shape = (self._held.batch_size, PROBE_TOKENS * shard.count)
        ids = torch.randint(vocab, shape, generator=random).to(engine.device)
        cut_at = [ids.shape[1] // 3] if self._is_packed else []  # no shard ends there
        bounds = [0, *cut_at, ids.shape[1]]
        places = torch.cat([torch.arange(end - start) for start, end in pairwise(bounds)])
        places = places.to(engine.device).expand_as(ids)
        was_training = engine.module.training
        engine.eval()
        try:
            self.cut_always(False)
            alone = [
                engine(input_ids=ids[:, start:end], position_ids=places[:, start:end], use_cache=False).logits
                for start, end in pairwise(bounds)
            ]
            whole = shard.cut(torch.cat(alone, dim=1))
            self.cut_always(True)
            cut = engine(input_ids=shard.cut(ids), position_ids=shard.cut(places), use_cache=False).logits
        finally:
            engine.train(was_training)
        return Ranks.current().all_reduce_max(float((cut - whole).float().norm() / whole.float().norm()))
