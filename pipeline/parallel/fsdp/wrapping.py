"""FSDP2 through accelerate, also on a CPU; consolidates its sharded state, and shards a consolidated one.

accelerate 1.15 enables FSDP on accelerators only; on a CPU it silently stays with plain data parallelism. All that
follows (`fully_shard` of each layer, clipping, accumulation) is torch's and works on a CPU with gloo. So `engage` sets
accelerate's state as accelerate itself sets it on a GPU.

A consolidated state can be resumed on another number of ranks, with ZeRO, or on one process. Every rank must call the
functions that gather or shard. Reads and writes no files.

Reference: Zhao et al. 2023, arXiv:2304.11277.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.optim.optimizer import StateDict

from pipeline.parallel.dtensors import distribute_like, full_tensor
from pipeline.parallel.ranks import Ranks

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.optim import Optimizer

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def mixed_precision(precision: str) -> Any | None:
    """Return FSDP2's mixed precision policy: weights in ``precision``, gradient reduction and outputs in fp32.

    None for fp32. accelerate's own policy reduces gradients in half precision, whose rounding error grows with the
    number of ranks.
    """
    if precision not in _DTYPES:
        return None
    return MixedPrecisionPolicy(_DTYPES[precision], reduce_dtype=torch.float32, output_dtype=torch.float32)


def engage(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin) -> None:
    """Switch accelerate's state from ``MULTI_CPU`` to FSDP, as accelerate does on a GPU; leave other states alone.

    Args:
        accelerator: accelerate's.
        plugin: accelerate's `FullyShardedDataParallelPlugin`.
    """
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def modules(model: nn.Module) -> list[Any]:
    """Return a model's FSDP2 modules, each of which all-gathers and reshards its weights as one; none without FSDP2."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def reshard(model: nn.Module) -> None:
    """Reshard all-gathered weights on every rank.

    The root module keeps its weights gathered after a pass without gradients. If one rank alone then reads the state
    dict, as the first rank does to save it, only that rank reshards: in the next pass it all-gathers and the others do
    not.
    """
    for module in modules(model):
        module.reshard()


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Keep all weights gathered on every rank inside the context: sampling makes one forward pass per token."""
    fsdp_modules = modules(model)
    for module in fsdp_modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in fsdp_modules:
            module.set_reshard_after_forward(True, recurse=False)
        reshard(model)


@torch.no_grad()
def consolidated_weights(model: nn.Module, *, trained_only: bool) -> dict[str, Tensor]:
    """All-gather the weights; return them by name on the first rank, and an empty dict on the others."""
    reshard(model)
    first = Ranks.current().is_first
    weights = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not trained_only:
            tensor = full_tensor(parameter)
            if first:
                weights[name] = tensor
    return weights


def consolidated_optimizer(optimizer: Optimizer) -> StateDict:
    """Return an optimizer's `state_dict` as it would be on one process, with full tensors, on the first rank.

    The other ranks take part in the all-gathers and return an empty state.
    """
    first, local = Ranks.current().is_first, optimizer.state_dict()
    state: dict[int, StateDict] = {}
    for index, moments in local["state"].items():
        full = {key: full_tensor(value) if isinstance(value, Tensor) else value for key, value in moments.items()}
        if first:
            state[index] = full
    return {"state": state, "param_groups": local["param_groups"]}


def shard_optimizer(optimizer: Optimizer, consolidated: StateDict) -> None:
    """Load the `state_dict` of a single-process optimizer into an optimizer of sharded weights.

    Raises:
        ValueError: it is another optimizer's, or it holds tensors that are not of their weight's shape.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {}
    for index, moments in consolidated["state"].items():
        if index >= len(parameters):
            raise ValueError(f"the checkpoint's optimizer knows more than {len(parameters)} weights")
        state[index] = {key: _shard_of(key, value, parameters[index]) for key, value in moments.items()}
    optimizer.load_state_dict({"state": state, "param_groups": consolidated["param_groups"]})


def _shard_of(key: str, value: object, parameter: nn.Parameter) -> Any:
    """Return this rank's shard of an optimizer state tensor; scalars and plain values as they are."""
    if not isinstance(value, Tensor) or not value.dim():
        return value
    if value.shape != parameter.shape:
        raise ValueError(f"the checkpoint's optimizer keeps {key} for a weight")
    return distribute_like(value, parameter)
