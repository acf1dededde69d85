"""Sets a trainer up for sharded weights: its accelerator under FSDP2 and tensor parallelism, its parameter groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from accelerate.utils import FullyShardedDataParallelPlugin, recursively_apply
from peft import PeftModel
from torch import Tensor, nn

from pipeline.parallel.fsdp import wrapping as fsdp
from pipeline.parallel.ranks import Ranks
from pipeline.parallel.tensor.sharding import TensorParallelism, TPReplicas, begin_adapter, size_of
from pipeline.parallel.zero.optimizer_state import ZeroState, share_fp32_storage
from pipeline.plain_data import KeywordArguments
from pipeline.training.checkpoint.consolidated import join_groups

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import Trainer


class ShardedSetup:
    """Part of a trainer: how it is set up for sharded weights; changes nothing on one process.

    Attributes:
        groups: parameters of each parameter group of the optimizer, as one process has them; no group is empty.
    """

    groups: list[list[nn.Parameter]]

    def begin_adapter(self, trainer: Trainer, drawn_from: Tensor) -> None:
        """Initialise a new adapter of a tensor-parallel model as on one process.

        Args:
            trainer: the trainer, whose constructor has added the adapter.
            drawn_from: torch's random state before that.
        """
        if size_of(trainer.model) > 1 and isinstance(trainer.model, PeftModel):
            begin_adapter(trainer.model, drawn_from)

    def accelerator_arguments(self, trainer: Trainer, built: KeywordArguments) -> KeywordArguments:
        """Return the arguments of the accelerator, with the mesh of a tensor-parallel model."""
        size = size_of(trainer.model)
        if size > 1:
            built["parallelism_config"] = TensorParallelism(tp_size=size, dp_shard_size=Ranks.current().count // size)
        return built

    def create_accelerator(self, trainer: Trainer, create: Callable[[], None]) -> None:
        """Enable FSDP2 if the arguments ask for it, also on a CPU, where accelerate would fall back silently.

        With tensor parallelism, replace accelerate's `gather_for_metrics` by `_gather_once_per_group`.
        """
        args = trainer.args
        plugin = args.fsdp_plugin_args
        if plugin is not None:
            precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
            plugin["mixed_precision_policy"] = fsdp.mixed_precision(precision)
        create()
        if plugin is not None:
            fsdp.engage(trainer.accelerator, FullyShardedDataParallelPlugin(**plugin))
            trainer.is_fsdp_enabled = True
        if size_of(trainer.model) > 1:

            def gather(values: Any, use_gather_object: bool = False) -> Any:
                return _gather_once_per_group(trainer, values)

            trainer.gather_function = trainer.accelerator.gather_for_metrics = gather

    def refine_optimizer(self, trainer: Trainer, optimizer: Optimizer) -> None:
        """Remove empty parameter groups, which DeepSpeed would drop, so all engines have the same groups."""
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        if size_of(trainer.model) > 1:
            join_groups(optimizer, trainer.model, set(trainer.get_decay_parameter_names(trainer.model)))
        self.groups = [list(group["params"]) for group in optimizer.param_groups]

    def average_replicas(self, trainer: Trainer) -> None:
        """Average the gradients over the replicas of a tensor-parallel model."""
        if size_of(trainer.model) > 1 and TPReplicas(trainer.model).count > 1:
            replicas, accelerator = TPReplicas(trainer.model), trainer.accelerator
            replicas.average_gradients(trainer.model, lambda: bool(accelerator.sync_gradients))

    def share_storage(self, trainer: Trainer) -> None:
        """With ZeRO-3, let the trained weights and the optimizer's copies share their memory."""
        if trainer.is_deepspeed_enabled and self.zero_of(trainer).stage == 3:
            share_fp32_storage(self.zero_of(trainer).held)

    def zero_of(self, trainer: Trainer) -> ZeroState:
        """Return access to the state that DeepSpeed shards."""
        optimizer = trainer.optimizer.optimizer  # DeepSpeed's, inside accelerate's
        stage = int(trainer.accelerator.state.deepspeed_plugin.zero_stage)
        return ZeroState(optimizer, stage, self.groups, Ranks.current())


def _gather_once_per_group(trainer: Trainer, values: Any) -> Any:
    """Gather evaluation values as accelerate's `gather_for_metrics`, but once per tensor-parallel group.

    The ranks of a group evaluate the same rows.
    """
    values = TPReplicas(trainer.model).all_gather(values)
    known = trainer.accelerator.gradient_state
    if not known.end_of_dataloader or known.remainder <= 0:
        return values
    return recursively_apply(lambda tensor: tensor[: known.remainder] if tensor.dim() else tensor, values)
