"""Trains on slices of rows: what `compute.sequence_parallel` changes in a trainer of transformers or trl.

The loss of a step is the sum over all slices divided by the tokens that count in the whole batch, so slices with few of
them, or none, weigh what they should. transformers' own loss for DeepSpeed's slices is a mean for each micro-batch.
Held-out rows are read whole, by every process its share.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import Trainer

from pipeline.errors import PipelineError, Problem
from pipeline.parallel.ranks import Ranks
from pipeline.parallel.slices import PROBE_ROUNDING, Slices, difference


def slices_of(trainer: Any) -> Slices:
    """Return which slice of every row a trainer's process holds; the whole of it without sequence parallelism."""
    config = trainer.accelerator.parallelism_config
    return Slices.of(Ranks.current(), int(config.sp_size) if config is not None and config.sp_enabled else 1)


def dealt(trainer: Any, loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader of micro-batches as this process gets them: all of a group the same ones."""
    accelerator, slices = trainer.accelerator, slices_of(trainer)
    if slices.count == 1:
        return accelerator.prepare(loader)  # type: ignore[no-any-return]
    return prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=slices.groups,
        process_index=slices.group,
        put_on_device=True,
        rng_types=accelerator.rng_types.copy(),
        even_batches=False,
        non_blocking=accelerator.non_blocking,
    )


def collator(trainer: Any) -> Callable[[list[Any]], Any]:
    """Return what makes a micro-batch to train on: of whole rows, or of this process's slices of them."""
    collate: Any = trainer.data_collator
    slices = slices_of(trainer)
    if slices.count == 1:
        return collate  # type: ignore[no-any-return]
    return lambda rows: slices.batch(collate(rows), collate.pad_id)


class SlicedRows(Trainer):  # type: ignore[misc]
    """transformers' Trainer on slices of rows; the same as ever where they are whole. It stands below trl's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if slices_of(self).count > 1:
            # Tokens that count are counted, as everywhere; transformers does not for slices.
            self.model_accepts_loss_kwargs = True

    def get_sp_size(self) -> int:
        """Return 1: batches come as they are trained on, and each token that counts is on one process only."""
        return 1

    def get_total_train_batch_size(self, args: Any) -> int:
        """Return the rows of a step."""
        return int(super().get_total_train_batch_size(args)) // slices_of(self).count

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return a slice's part of the loss, times what DeepSpeed divides the sum of gradients by."""
        slices = slices_of(self)
        if slices.count == 1 or not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        loss = outputs.loss * slices.groups
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return a loss whose mean over all processes is that of the batch."""
        return super().training_step(*args, **kwargs) * slices_of(self).count  # type: ignore[no-any-return]

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        model, loader = super()._prepare_for_training(*args, **kwargs)
        slices = slices_of(self)
        if slices.count == 1:
            return model, loader
        kernel = self.accelerator.parallelism_config.sp_handler.sp_attn_implementation
        found = difference(model, kernel, slices, self.args.per_device_train_batch_size)
        if found > PROBE_ROUNDING[next(model.module.parameters()).dtype]:
            raise PipelineError(
                Problem(
                    f"the model computes {found:.0e} other logits from {slices.count} slices of a row than from all of it",
                    "full causal attention in every layer",
                    "set compute.sequence_parallel: 1 for this stage",
                )
            )
        return model, loader.dl  # the loader deals slices already
