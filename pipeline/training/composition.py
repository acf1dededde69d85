"""Puts a trainer together: a trainer of transformers or trl, and parts that each own one concern.

`composed` returns a class whose hooks ask the parts. The hooks are all methods of the library's trainers that trueup
replaces; those for trainers that sample are in `pipeline/rl/on_policy/hooks.py`. A stage names the parts it uses:

    parts = TrainerParts.of(BatchLoader(schedule.batches, rows), reference=Reference(ctx, COLUMNS))
    trainer = composed(DPOTrainer)(parts=parts, model=model, args=arguments, ...)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.parallel.dtensors import set_weight
from pipeline.parallel.tensor.sharding import size_of
from pipeline.plain_data import KeywordArguments
from pipeline.training.checkpoint.best import is_new_best
from pipeline.training.checkpoint.checkpoints import Checkpoints, SavedState
from pipeline.training.checkpoint.consolidated import load_weights
from pipeline.training.data.batch_loader import BatchLoader, EncodedSample
from pipeline.training.reference import Reference
from pipeline.training.sharded_setup import ShardedSetup

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader


@dataclass(frozen=True)
class TrainerParts:
    """The parts of a trainer.

    Attributes:
        batches: chooses and loads the training batches.
        sharding: sets the trainer up for sharded weights.
        checkpoints: writes and loads the checkpoints.
        reference: computes the reference's log-probabilities; None for an objective without a reference.
    """

    batches: BatchLoader
    sharding: ShardedSetup
    checkpoints: Checkpoints
    reference: Reference | None = None

    @classmethod
    def of(
        cls, batches: BatchLoader, *, reference: Reference | None = None, saved: Sequence[SavedState] = ()
    ) -> TrainerParts:
        """Return the parts around a batch loader.

        Args:
            batches: chooses and loads the training batches.
            reference: computes the reference's log-probabilities.
            saved: further state that the checkpoints hold.
        """
        sharding = ShardedSetup()
        return cls(batches, sharding, Checkpoints(sharding, saved), reference)


class TrainerHooks:
    """The replaced methods of a transformers or trl trainer; each asks the part that owns the matter."""

    parts: TrainerParts
    args: Any
    model: Any
    optimizer: Any
    is_deepspeed_enabled: bool
    is_fsdp_enabled: bool

    def __init__(self, *args: Any, parts: TrainerParts, **kwargs: Any) -> None:
        """Build the library's trainer around ``parts``; its constructor already calls some of the hooks."""
        self.parts = parts
        before = torch.get_rng_state()
        super().__init__(*args, **kwargs)
        parts.sharding.begin_adapter(self, before)

    # batches

    @property
    def train_rows(self) -> Sequence[EncodedSample]:
        """The training rows."""
        return self.parts.batches.rows_of(self)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return a loader of the batches that `parts.batches` chooses."""
        return self.parts.batches.loader(self)

    # sharding

    def _build_accelerator_args(self, **given: Any) -> KeywordArguments:
        built: KeywordArguments = super()._build_accelerator_args(**given)  # type: ignore[misc]
        return self.parts.sharding.accelerator_arguments(self, built)

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator; a trainer with a reference hides FSDP from the library's constructor."""
        self.parts.sharding.create_accelerator(self, super().create_accelerator_and_postprocess)  # type: ignore[misc]
        if self.parts.reference is not None:
            self.is_fsdp_enabled = False

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Create the optimizer with the parameter groups of one process."""
        is_new = self.optimizer is None
        optimizer: Optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]
        if is_new:
            self.parts.sharding.refine_optimizer(self, optimizer)
        return optimizer

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: DataLoader[Any], resume_from_checkpoint: str | None
    ) -> Any:
        """Let DeepSpeed or FSDP2 prepare the model, then load the checkpoint into the sharded state."""
        self.is_fsdp_enabled = self.args.fsdp_plugin_args is not None
        self.parts.sharding.average_replicas(self)
        is_sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        resumed = None if is_sharded else resume_from_checkpoint
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resumed)  # type: ignore[misc]
        if is_sharded:
            self.parts.sharding.share_storage(self)
            if resume_from_checkpoint is not None:
                self.parts.checkpoints.load_weights(self, Path(resume_from_checkpoint))
                self._load_optimizer_and_scheduler(resume_from_checkpoint)
                if self.is_fsdp_enabled:
                    self._load_scaler(resume_from_checkpoint)  # type: ignore[attr-defined]
        return prepared

    # checkpoints

    def _determine_best_metric(self, metrics: dict[str, float], trial: object) -> bool:
        if self.args.load_best_model_at_end:
            return is_new_best(self, metrics)
        return bool(super()._determine_best_metric(metrics, trial))  # type: ignore[misc]

    def _load_best_model(self) -> None:
        """Do nothing: `load_best` loads the best weights after training."""

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        self.parts.checkpoints.save(self, functools.partial(super()._save_checkpoint, model, trial))  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the consolidated weights; with mixed precision under DeepSpeed, the fp32 master weights."""
        weights = self.parts.checkpoints.weights(self)
        if weights is None:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        else:
            self._save(output_dir, state_dict=weights)  # type: ignore[attr-defined]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.parts.checkpoints.save_optimizer(self, Path(output_dir)):
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if size_of(self.model) > 1:
            load_weights(self.model, set_weight, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load a consolidated optimizer state, each process its shard, the schedule, and what the parts saved."""
        is_loaded = checkpoint is not None and self.parts.checkpoints.load_optimizer(self, Path(checkpoint))
        if not is_loaded:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None:
            for state in self.parts.checkpoints.also:
                state.load(self, Path(checkpoint))

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """Write nothing, because the artifact has its own card."""

    # reference

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        """Return the rows of an objective with a reference as they are: they are encoded."""
        if self.parts.reference is not None:
            return dataset
        return super()._prepare_dataset(dataset, *args, **kwargs)  # type: ignore[misc]

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        """Add the columns of the reference's log-probabilities, computed in length buckets."""
        if self.parts.reference is None:
            return super()._precompute_ref_logps(dataset, name, batch_size)  # type: ignore[misc]
        return self.parts.reference.added(self.model, dataset, name)


def composed(
    trainer_class: type[Any], hooks: type[TrainerHooks] = TrainerHooks, beneath: type[Any] | None = None
) -> Any:
    """Return a trainer class that takes the argument ``parts``.

    Args:
        trainer_class: a trainer of transformers or trl.
        hooks: the methods that are replaced.
        beneath: a class of transformers' Trainer whose methods those of ``trainer_class`` call.
    """
    bases = (hooks, trainer_class) if beneath is None else (hooks, trainer_class, beneath)
    return type(trainer_class.__name__, bases, {"__doc__": f"{trainer_class.__name__} with trueup's parts."})
