"""Collators: pad the rows of a micro-batch into tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pipeline.labels import IGNORE
from pipeline.plain_data import KeywordArguments

if TYPE_CHECKING:
    from pipeline.training.data.encoding import EncodedRow


@dataclass(frozen=True)
class CausalCollator:
    """Right-pads rows for next-token prediction.

    No attention mask is needed: under causal attention a real token never sees the padding to its right, and the labels
    of padding are ignored. Without a mask the attention kernel takes its causal fast path.

    Attributes:
        pad_id: padding token; may equal the end token, because labels say what counts.
        with_mask: also return a mask of ones, for trainers that require one.
        flat: concatenate packed rows into one row without padding, as FlashAttention expects.
    """

    pad_id: int
    with_mask: bool = False
    flat: bool = False

    def __call__(self, rows: Sequence[EncodedRow]) -> KeywordArguments:
        """Return `input_ids` and `labels`, each (batch, tokens); for packed rows also the sequence boundaries."""
        if "seq_lengths" in rows[0] and self.flat:
            joined: EncodedRow = {
                "input_ids": [token for row in rows for token in row["input_ids"]],
                "labels": [label for row in rows for label in row["labels"]],
                "seq_lengths": [length for row in rows for length in row["seq_lengths"]],
            }
            rows = [joined]
        longest = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), longest), self.pad_id, dtype=torch.long)
        labels = torch.full((len(rows), longest), IGNORE, dtype=torch.long)
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[i, :length] = torch.tensor(row["input_ids"])
            labels[i, :length] = torch.tensor(row.get("labels", row["input_ids"]))
        batch = {"input_ids": ids, "labels": labels}
        if "seq_lengths" in rows[0]:
            return {**batch, **self._positions(rows, longest)}
        if self.with_mask:
            batch["attention_mask"] = torch.ones_like(ids)
        return batch

    def _positions(self, rows: Sequence[EncodedRow], width: int) -> KeywordArguments:
        """Return `position_ids`, by which `transformers` separates packed sequences; with ``flat`` also the bounds."""
        positions = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            rest = width - sum(row["seq_lengths"])  # padding counts as a sequence of its own
            positions[i] = torch.cat([torch.arange(length) for length in [*row["seq_lengths"], rest]])
        if not self.flat:
            return {"position_ids": positions}
        lengths = rows[0]["seq_lengths"]
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        bounds = {
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
        }
        return {"position_ids": positions, **bounds}


@dataclass(frozen=True)
class PairCollator:
    """Right-pads chosen and rejected sequences; all chosen ones come first, as trl's RewardTrainer expects."""

    pad_id: int

    def __call__(self, rows: Sequence[EncodedRow]) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `attention_mask`, each (2·batch, tokens), and `margin` (batch,) if rows have one."""
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
