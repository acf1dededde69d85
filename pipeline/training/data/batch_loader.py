"""Gives a trainer its training batches: rows in the order of a batch sampler, sharded over the processes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Sampler

from pipeline.parallel.sequence.trainer import collator, sharded_loader

if TYPE_CHECKING:
    from transformers import Trainer

EncodedSample = Mapping[str, Any]
"""An encoded row, as a collator takes it."""


@dataclass
class BatchLoader:
    """Part of a trainer: loads the rows that a batch sampler chooses, in place of the trainer's own sampler.

    Attributes:
        batches: batch sampler; yields the indices of units.
        rows: training rows; None for those of the trainer's training dataset.
        rows_per_unit: consecutive rows that stay in one batch.
    """

    batches: Sampler[list[int]]
    rows: Sequence[EncodedSample] | None = None
    rows_per_unit: int = 1

    def rows_of(self, trainer: Trainer) -> Sequence[EncodedSample]:
        """Return the training rows; those of a dataset become a list once."""
        if self.rows is None:
            self.rows = trainer.train_dataset.to_list()
        return self.rows

    def loader(self, trainer: Trainer) -> DataLoader[Any]:
        """Return the loader of this process's batches."""
        args, collate = trainer.args, collator(trainer)
        loader = DataLoader(
            _Units(self.rows_of(trainer), self.rows_per_unit),
            batch_sampler=_ShardableBatches(self.batches),
            collate_fn=functools.partial(_collate_units, collate),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )
        prepared = sharded_loader(trainer, loader)
        sampler: Any = prepared.batch_sampler
        if not hasattr(sampler, "sampler"):  # several processes
            # accelerate sets the epoch on the sampler inside one wrapper; a resumed epoch is wrapped twice.
            sampler.sampler = self.batches
        return prepared


def _collate_units(collate: Callable[[list[EncodedSample]], Any], units: list[Sequence[EncodedSample]]) -> Any:
    """Return a batch of the rows of several units."""
    return collate([row for unit in units for row in unit])


class _ShardableBatches(Sampler[list[int]]):
    """Batch sampler with the attributes from which accelerate reads batch size and epoch to shard over processes."""

    drop_last = True

    def __init__(self, batches: Any) -> None:
        self.sampler = batches
        self.batch_size: int = batches.micro_batch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.sampler)


class _Units(torch.utils.data.Dataset[Sequence[EncodedSample]]):
    """Rows in units of several consecutive ones."""

    def __init__(self, rows: Sequence[EncodedSample], size: int) -> None:
        self.rows, self.size = rows, size

    def __len__(self) -> int:
        return len(self.rows) // self.size

    def __getitem__(self, index: int) -> Sequence[EncodedSample]:
        return self.rows[index * self.size : (index + 1) * self.size]
