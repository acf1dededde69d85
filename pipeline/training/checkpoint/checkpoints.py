"""What a trainer's checkpoints hold: the files of a single-process trainer, whatever the parallel layout.

transformers lets DeepSpeed write sharded checkpoints, which only the same ZeRO stage on the same number of processes
can read. Here weights and optimizer state are consolidated, written as a single-process trainer writes them
(`model.safetensors` or the adapter, `optimizer.pt`, `scheduler.pt`), and sharded again when they are loaded. So a run
can resume with another ZeRO stage, another number of processes, or without ZeRO.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from peft import PeftModel
from torch import Tensor
from torch.optim.optimizer import StateDict

from pipeline.parallel.dtensors import set_weight
from pipeline.parallel.fsdp import wrapping as fsdp
from pipeline.parallel.ranks import Ranks
from pipeline.parallel.tensor.sharding import size_of
from pipeline.training.checkpoint.best import best_checkpoint
from pipeline.training.checkpoint.completion import mark_complete
from pipeline.training.checkpoint.consolidated import (
    OPTIMIZER_FILE,
    SCHEDULER_FILE,
    consolidate_optimizer,
    consolidated_optimizer,
    gathered_weights,
    load_weights,
    shard_dtensor_optimizer,
    shard_optimizer,
    unfit_checkpoint,
)
from pipeline.training.checkpoint.running_metrics import save_metrics
from pipeline.training.sharded_setup import ShardedSetup

if TYPE_CHECKING:
    from transformers import Trainer


class SavedState(Protocol):
    """State of a trainer that goes into its checkpoints, beside weights, optimizer and running sums."""

    def save(self, trainer: Trainer, folder: Path) -> None:
        """Write the state into a checkpoint's folder; every process calls it."""
        ...

    def load(self, trainer: Trainer, folder: Path) -> None:
        """Load the state from a checkpoint's folder; every process calls it."""
        ...


@dataclass(frozen=True)
class Checkpoints:
    """Part of a trainer: writes and loads its checkpoints, in place of transformers' own way.

    Attributes:
        sharding: how the weights are sharded.
        also: further state that the checkpoints hold.
    """

    sharding: ShardedSetup
    also: Sequence[SavedState] = ()

    def save(self, trainer: Trainer, write: Callable[[], None]) -> None:
        """Write a checkpoint and mark it as complete.

        Args:
            trainer: the trainer.
            write: writes the library's files, which calls `weights` and `save_optimizer`.
        """
        folder = Path(trainer.args.output_dir) / f"checkpoint-{trainer.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        for state in self.also:
            state.save(trainer, folder)
        best = best_checkpoint(trainer)
        trainer.state.best_model_checkpoint = str(best) if best is not None else None
        save_metrics(trainer, folder)
        write()
        mark_complete(folder, keep=best)

    def weights(self, trainer: Trainer) -> dict[str, Tensor] | None:
        """Return the consolidated weights, in fp32 under DeepSpeed; None if the trainer itself can write them."""
        lower = trainer.is_deepspeed_enabled and any(p.dtype != torch.float32 for p in self.sharding.groups[0])
        if trainer.is_fsdp_enabled:
            return fsdp.consolidated_weights(trainer.model, trained_only=isinstance(trainer.model, PeftModel))
        return gathered_weights(trainer.model, self.sharding.zero_of(trainer)) if lower else None

    def save_optimizer(self, trainer: Trainer, folder: Path) -> bool:
        """Write the consolidated state of optimizer and schedule; return False if the trainer itself can."""
        state: StateDict
        if trainer.is_deepspeed_enabled:
            state = consolidated_optimizer(self.sharding.zero_of(trainer))
        elif trainer.is_fsdp_enabled:
            state = fsdp.consolidated_optimizer(trainer.optimizer)
        elif size_of(trainer.model) > 1:
            state = consolidate_optimizer(trainer.optimizer, keep=Ranks.current().is_first)
        else:
            return False
        if Ranks.current().is_first:
            torch.save(state, folder / OPTIMIZER_FILE)
            torch.save(trainer.lr_scheduler.state_dict(), folder / SCHEDULER_FILE)
        return True

    def load_weights(self, trainer: Trainer, folder: Path) -> None:
        """Load the weights of a checkpoint; every process must call it.

        Raises:
            PipelineError: the checkpoint lacks a weight of the model.
        """
        if trainer.is_deepspeed_enabled:
            load_weights(trainer.model, self.sharding.zero_of(trainer).set_weight, folder)
        elif trainer.args.fsdp_plugin_args is not None:
            load_weights(trainer.model, set_weight, folder)
        else:
            trainer._load_from_checkpoint(str(folder))

    def load_optimizer(self, trainer: Trainer, folder: Path) -> bool:
        """Load a consolidated optimizer state, each process its shard, and the schedule.

        Returns:
            False if the trainer itself still has to load the schedule, and on one process the optimizer.

        Raises:
            PipelineError: the checkpoint has no optimizer state, which transformers would ignore, or it does not fit.
        """
        file = folder / OPTIMIZER_FILE
        if not file.is_file():
            raise unfit_checkpoint("the checkpoint has no optimizer of one process")
        # Memory-mapped: the processes of a machine share the pages, and each uses only its shard.
        consolidated = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if trainer.is_deepspeed_enabled:
            shard_optimizer(self.sharding.zero_of(trainer), consolidated)
        if trainer.is_fsdp_enabled:
            try:
                fsdp.shard_optimizer(trainer.optimizer, consolidated)
            except ValueError as error:
                raise unfit_checkpoint(str(error)) from error
        if size_of(trainer.model) > 1:
            trainer.optimizer.load_state_dict(shard_dtensor_optimizer(consolidated, trainer.optimizer))
        if not (trainer.is_fsdp_enabled or size_of(trainer.model) > 1):
            return False
        schedule = torch.load(folder / SCHEDULER_FILE, map_location="cpu", weights_only=True)
        trainer.lr_scheduler.load_state_dict(schedule)
        return True
