"""Length-bucketed, seeded batches: the same for every micro-batch size and after a resume.

Rows of one batch have similar lengths, so there is little padding. On a CPU, where packing costs more than it saves,
this is the fastest way to train on rows of different lengths (`docs/log.md` has the measurements).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch.utils.data import Sampler

WINDOW_BATCHES = 16
"""Rows are sorted by length inside windows of this many batches. Larger windows pad less, smaller ones mix more."""


@dataclass
class Batches(Sampler[list[int]]):
    """Batch sampler: yields the micro-batches of an epoch as row indices, a pure function of its fields.

    With n processes each takes every n-th micro-batch, so all together take the same optimizer steps as one process.

    Attributes:
        lengths: tokens of each row.
        batch_size: rows per optimizer step.
        micro_batch: rows per forward pass; divides `batch_size`.
        seed: seed of the order.
        shuffle: whether rows are shuffled each epoch; otherwise windows follow the file.
        epoch: set by the trainer before each epoch.
        order: sort key of each row inside its window; the lengths when omitted.
    """

    lengths: Sequence[int]
    batch_size: int
    micro_batch: int
    seed: int
    shuffle: bool = True
    epoch: int = field(default=0)
    order: Sequence[float] | None = None

    def __post_init__(self) -> None:
        """Check that a batch divides into micro-batches."""
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch of {self.batch_size} rows does not divide into micro-batches of {self.micro_batch}"
            )
        self.drop_last = True

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch whose order is yielded next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of micro-batches of an epoch."""
        return self.batches_per_epoch * (self.batch_size // self.micro_batch)

    @property
    def batches_per_epoch(self) -> int:
        """Optimizer steps per epoch; an incomplete last batch is dropped (with shuffling, other rows each epoch)."""
        return len(self.lengths) // self.batch_size

    def batches(self) -> Iterator[list[int]]:
        """Yield the row indices of each optimizer step of the epoch."""
        rng = random.Random(f"{self.seed}/{self.epoch}")
        rows = list(range(len(self.lengths)))
        if self.shuffle:
            rng.shuffle(rows)
        rows = rows[: self.batches_per_epoch * self.batch_size]
        order = self.lengths if self.order is None else self.order
        window = WINDOW_BATCHES * self.batch_size
        for start in range(0, len(rows), window):
            inside = sorted(rows[start : start + window], key=lambda row: (order[row], row))
            groups = [inside[i : i + self.batch_size] for i in range(0, len(inside), self.batch_size)]
            rng.shuffle(groups)
            yield from groups

    def __iter__(self) -> Iterator[list[int]]:
        """Yield micro-batches."""
        for group in self.batches():
            for start in range(0, self.batch_size, self.micro_batch):
                yield group[start : start + self.micro_batch]

    def tokens(self, steps: int) -> int:
        """Return the real tokens (no padding) of the first ``steps`` optimizer steps."""
        total, seen, epoch = 0, 0, self.epoch
        try:
            self.epoch = 0
            while seen < steps and self.batches_per_epoch:
                for group in self.batches():
                    if seen == steps:
                        break
                    total += sum(self.lengths[row] for row in group)
                    seen += 1
                self.epoch += 1
        finally:
            self.epoch = epoch
        return total
