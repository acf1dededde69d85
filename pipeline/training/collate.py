"""Rows of a micro-batch to padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.training.encode import IGNORE


@dataclass(frozen=True)
class CausalCollator:
    """Right-pads rows for next-token prediction.

    No attention mask is needed: under a causal mask a real token never sees the padding to its right, and padded
    labels are ignored. Without one the attention kernel takes its causal fast path.

    Attributes:
        pad_id: token to pad with; may equal the end token, since labels say what counts.
        with_mask: also returns a mask of ones, for trainers that insist on one.
    """

    pad_id: int
    with_mask: bool = False

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `labels`, each (batch, tokens)."""
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad_id, dtype=torch.long)
        labels = torch.full((len(rows), longest), IGNORE, dtype=torch.long)
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[i, :length] = torch.tensor(row["input_ids"])
            labels[i, :length] = torch.tensor(row.get("labels", row["input_ids"]))
        batch = {"input_ids": ids, "labels": labels}
        if self.with_mask:
            batch["attention_mask"] = torch.ones_like(ids)
        return batch


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
