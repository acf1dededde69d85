"""Sequence parallelism: each rank of a group holds a shard of the tokens of the same rows.

Around attention, DeepSpeed's Ulysses exchanges shards of tokens for shards of heads (all-to-all); it sums gradients
over all ranks. Owns how rows are cut into shards, and the check that a model computes the same logits from shards as
from full rows.

Reference: Jacobs et al. 2023, arXiv:2309.14509; Bekman et al. 2025, arXiv:2506.13996 (for transformers). DeepSpeed's
`UlyssesSPDataLoaderAdapter` is not used: it distributes the micro-batches of one step over several steps, and knows
neither epochs nor where a resumed epoch begins.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from accelerate import ParallelismConfig
from accelerate.utils import DeepSpeedSequenceParallelConfig
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pipeline.labels import IGNORE
from pipeline.parallel.ranks import Ranks

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

PROBE_TOKENS, PROBE_ROUNDING = 16, {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Tokens per shard of the probe rows, and the relative difference of their logits that rounding may cause."""


@dataclass(frozen=True)
class SequenceShard:
    """This rank's shard of the tokens, and its sequence-parallel group.

    Attributes:
        index: index of the shard in its group.
        count: shards per row, which is the ranks of a group.
        group: index of the group; the groups share the rows of a batch.
        groups: number of groups.
    """

    index: int = 0
    count: int = 1
    group: int = 0
    groups: int = 1

    @staticmethod
    def of(ranks: Ranks, count: int) -> SequenceShard:
        """Return this rank's shard: consecutive ranks form a group, as in DeepSpeed (`parallel_state_sp.py`)."""
        return SequenceShard(ranks.index % count, count, ranks.index // count, ranks.count // count)

    def cut(self, tokens: Tensor) -> Tensor:
        """Return this rank's shard of (batch, tokens); ``count`` must divide the tokens."""
        width = tokens.shape[1] // self.count
        return tokens[:, self.index * width : (self.index + 1) * width].contiguous()

    def batch(self, batch: dict[str, Tensor], pad_id: int) -> dict[str, Tensor]:
        """Return this rank's shard of a padded batch, with position ids and shifted labels.

        Rows are padded to a multiple of ``count``. Labels are shifted before the rows are cut, because the last token
        of a shard predicts the first token of the next one.

        Args:
            batch: `input_ids`, `labels` and perhaps `attention_mask`, each (batch, tokens); packed rows also have
                `position_ids`, each token's position in its own document.
            pad_id: padding token.
        """
        ids, labels = batch["input_ids"], batch["labels"]
        padding = -ids.shape[1] % self.count
        ids = torch.nn.functional.pad(ids, (0, padding), value=pad_id)
        shifted_labels = torch.nn.functional.pad(labels, (0, padding + 1), value=IGNORE)[:, 1:]
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        if "position_ids" in batch:
            padding_positions = torch.arange(padding).expand(
                ids.shape[0], padding
            )  # padding counts as a document of its own
            positions = torch.cat([batch["position_ids"], padding_positions], dim=1)
        padded = {"input_ids": ids, "position_ids": positions, "labels": shifted_labels, "shift_labels": shifted_labels}
        if "attention_mask" in batch:
            padded["attention_mask"] = torch.ones_like(ids)  # padding is on the right: a causal mask hides it
        return {name: self.cut(tensor) for name, tensor in padded.items()}


def parallelism(shard: SequenceShard, kernel: str) -> Any:
    """Return accelerate's `ParallelismConfig` for sequence parallelism through DeepSpeed.

    Args:
        shard: this rank's shard.
        kernel: `transformers`' name of the attention implementation: `sdpa` or a FlashAttention.
    """
    handler = DeepSpeedSequenceParallelConfig(sp_seq_length_is_variable=True, sp_attn_implementation=kernel)
    return ParallelismConfig(
        sp_size=shard.count, sp_backend="deepspeed", sp_handler=handler, dp_replicate_size=shard.groups
    )


def documents_of(places: Tensor) -> list[list[int]]:
    """Return the document lengths of each packed row, in order; a document starts wherever the position is 0.

    Args:
        places: position of each token in its own document, (batch, tokens); the first of a row is 0.
    """
    tokens = places.shape[1]
    starts = [torch.nonzero(row == 0).flatten().tolist() for row in places]
    return [[end - start for start, end in pairwise([*row, tokens])] for row in starts]


def by_document(attention: Callable[..., tuple[Tensor, Any]]) -> Callable[..., tuple[Tensor, Any]]:
    """Wrap an attention function of `transformers` so that the documents of packed rows do not see one another.

    The wrapper calls attention once per document. That is exact for every kernel, needs no mask (whose size grows with
    the square of the tokens), and spends no work on pairs of tokens that do not see each other. DeepSpeed passes no
    mask to attention, and `transformers` separates documents by position ids only for FlashAttention and a single row.

    Args:
        attention: takes queries, keys and values as (batch, heads, tokens, size) and `position_ids` of the full rows
            as (batch, tokens); returns (batch, tokens, heads, size).
    """

    def attend(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: object, *args: object, **kwargs: Any
    ) -> tuple[Tensor, None]:
        positions, rows = kwargs.pop("position_ids"), []
        for i, lengths in enumerate(documents_of(positions)):
            documents = [torch.split(tensor[i : i + 1], lengths, dim=2) for tensor in (query, key, value)]
            document_positions = torch.split(positions[i : i + 1], lengths, dim=1)
            outputs = [
                attention(module, *document, None, *args, position_ids=own, **kwargs)[0]
                for *document, own in zip(*documents, document_positions, strict=True)
            ]
            rows.append(torch.cat(outputs, dim=1))
        return torch.cat(rows), None

    return attend


class UlyssesAttention:
    """DeepSpeed's `UlyssesSPAttentionHF`, which wraps the attention of a prepared model."""

    def __init__(self, kernel: str, shard: SequenceShard, *, is_packed: bool = False) -> None:
        """Look up the wrapper in transformers' attention registry.

        Args:
            kernel: name of the attention implementation that DeepSpeed wrapped.
            shard: this rank's shard.
            is_packed: whether rows hold several documents, which must not see one another.

        Raises:
            RuntimeError: DeepSpeed has not wrapped this implementation, or for another number of ranks.
        """
        ulysses = inspect.getclosurevars(ALL_ATTENTION_FUNCTIONS[kernel]).nonlocals.get("uattn")
        if ulysses is None or ulysses.world_size != shard.count:
            raise RuntimeError(f"DeepSpeed has not put its exchange around {kernel}")
        self._ulysses, self.shard, self._is_packed = ulysses, shard, is_packed
        if is_packed:
            ulysses.attn = by_document(ulysses.attn)

    def cut_always(self, yes: bool) -> None:
        """Set whether evaluation passes exchange shards too; accelerate configures DeepSpeed for full rows there."""
        self._ulysses.disable_in_eval = not yes

    def expect(self, rows: int) -> None:
        """Accept batches of ``rows`` rows; DeepSpeed was configured for those of a micro-batch."""
        self._ulysses.batch_size = rows
        for name in ("required_query_shape", "required_key_value_shape", "required_context_shape"):
            tokens, _, *rest = getattr(self._ulysses, name)
            setattr(self._ulysses, name, torch.Size([tokens, rows, *rest]))

    @torch.no_grad()
    def difference(self, engine: DeepSpeedEngine) -> float:
        """Return the distance between the logits of sharded and of full rows, relative to the norm of the latter.

        The logits differ if the model's attention bypasses the exchange or is not plain causal attention. With packing
        the sharded rows hold two documents, and the full rows are each document by itself. Every rank must call it.

        Args:
            engine: DeepSpeed's engine around the model.
        """
        shard, vocab = self.shard, int(engine.module.config.get_text_config().vocab_size)
        random = torch.Generator().manual_seed(0)
        shape = (self._ulysses.batch_size, PROBE_TOKENS * shard.count)
        ids = torch.randint(vocab, shape, generator=random).to(engine.device)
        cut_at = [ids.shape[1] // 3] if self._is_packed else []  # not at a shard boundary
        bounds = [0, *cut_at, ids.shape[1]]
        positions = torch.cat([torch.arange(end - start) for start, end in pairwise(bounds)])
        positions = positions.to(engine.device).expand_as(ids)
        was_training = engine.module.training
        engine.eval()
        try:
            self.cut_always(False)
            document_logits = [
                engine(input_ids=ids[:, start:end], position_ids=positions[:, start:end], use_cache=False).logits
                for start, end in pairwise(bounds)
            ]
            full_logits = shard.cut(torch.cat(document_logits, dim=1))
            self.cut_always(True)
            sharded_logits = engine(input_ids=shard.cut(ids), position_ids=shard.cut(positions), use_cache=False).logits
        finally:
            engine.train(was_training)
        return Ranks.current().all_reduce_max(
            float((sharded_logits - full_logits).float().norm() / full_logits.float().norm())
        )
