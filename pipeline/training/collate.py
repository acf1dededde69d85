"""Rows of a micro-batch to padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.models.labels import IGNORE


@dataclass(frozen=True)
class CausalCollator:
    """Right-pads rows for next-token prediction.

    No attention mask is needed: under a causal mask a real token never sees the padding to its right, and padded
    labels are ignored. Without one the attention kernel takes its causal fast path.

    Attributes:
        pad_id: token to pad with; may equal the end token, since labels say what counts.
        with_mask: also returns a mask of ones, for trainers that insist on one.
        flat: put packed rows into one, without padding, as FlashAttention reads them.
    """

    pad_id: int
    with_mask: bool = False
    flat: bool = False

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return `input_ids` and `labels`, each (batch, tokens); of packed rows, where each sequence starts as well."""
        if "seq_lengths" in rows[0] and self.flat:
            rows = [
                {key: [item for row in rows for item in row[key]] for key in ("input_ids", "labels", "seq_lengths")}
            ]
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad_id, dtype=torch.long)
        labels = torch.full((len(rows), longest), IGNORE, dtype=torch.long)
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[i, :length] = torch.tensor(row["input_ids"])
            labels[i, :length] = torch.tensor(row.get("labels", row["input_ids"]))
        batch = {"input_ids": ids, "labels": labels}
        if "seq_lengths" in rows[0]:
            return {**batch, **self._places(rows, longest)}
        if self.with_mask:
            batch["attention_mask"] = torch.ones_like(ids)
        return batch

    def _places(self, rows: Sequence[dict[str, Any]], width: int) -> dict[str, Any]:
        """Return each token's position in its own sequence: `transformers` keeps sequences apart by it."""
        places = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            rest = width - sum(row["seq_lengths"])  # padding, a sequence of its own
            places[i] = torch.cat([torch.arange(length) for length in [*row["seq_lengths"], rest]])
        if not self.flat:
            return {"position_ids": places}
        lengths = rows[0]["seq_lengths"]
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        bounds = {
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        }
        return {"position_ids": places, **bounds}


@dataclass(frozen=True)
class PairCollator:
    """Right-pads chosen and rejected sequences, all chosen first, as trl's RewardTrainer reads them."""

    pad_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask`, each (2·batch, tokens), and `margin` (batch,) where rows have one."""
        sequences = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
        longest = max(map(len, sequences))
        ids = torch.full((len(sequences), longest), self.pad_id, dtype=torch.long)
        mask = torch.zeros((len(sequences), longest), dtype=torch.long)
        for i, sequence in enumerate(sequences):
            ids[i, : len(sequence)] = torch.tensor(sequence)
            mask[i, : len(sequence)] = 1
        batch = {"input_ids": ids, "attention_mask": mask}
        if rows[0].get("margin") is not None:
            batch["margin"] = torch.tensor([row["margin"] for row in rows], dtype=torch.float)
        return batch
