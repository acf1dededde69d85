"""FSDP2 through accelerate, on a CPU too; consolidates its sharded state, and shards a consolidated one.

accelerate 1.15 takes FSDP for GPUs only: its state becomes one of FSDP where it counted GPUs or the like, and on a CPU
stays plain data parallelism without a word. All that follows (`fully_shard` of each layer, clipping, accumulation) is
torch's and does as well on a CPU with gloo, so the state is set here as accelerate sets it on a GPU.

A state that is kept whole goes on with another number of processes, with ZeRO, or on one process. Every process calls
what gathers and what shares out. Knows nothing of files.

Reference: Zhao et al. 2023, arXiv:2304.11277.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.parallel.dtensors import distribute_like, full_tensor
from pipeline.parallel.ranks import Ranks

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def mixed_precision(precision: str) -> Any | None:
    """Return what FSDP computes in: weights gathered in ``precision``, gradients summed and outputs returned in fp32.

    None for fp32. accelerate would sum gradients in half precision, which rounds them anew with every process more.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if precision not in _DTYPES:
        return None
    return MixedPrecisionPolicy(_DTYPES[precision], reduce_dtype=torch.float32, output_dtype=torch.float32)


def engage(accelerator: Any, plugin: Any) -> None:
    """Put accelerate's state where it stands on a GPU when FSDP is asked for; does nothing where it stands there."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def modules(model: nn.Module) -> list[Any]:
    """Return the parts of a model that gather and let go of weights together; none without FSDP2."""
    from torch.distributed.fsdp import FSDPModule

    return [part for part in model.modules() if isinstance(part, FSDPModule)]


def let_go(model: nn.Module) -> None:
    """Let go of gathered weights, in every process alike.

    The outermost part keeps its own after a pass without gradients. A process that then asks for the model's state, as
    the first one does to write it, lets go of them alone, and in the next pass gathers while the others do not.
    """
    for part in modules(model):
        part.reshard()


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Keep all weights in every process inside the context: to sample, where each token is a pass."""
    parts = modules(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
        let_go(model)


@torch.no_grad()
def gathered_weights(model: nn.Module, *, trained_only: bool) -> dict[str, Tensor]:
    """Return the weights by name, on the first process; the others help to gather them and keep nothing."""
    let_go(model)
    first = Ranks.current().is_first
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not trained_only:
            tensor = full_tensor(parameter)
            if first:
                found[name] = tensor
    return found


def consolidated_optimizer(optimizer: Any) -> dict[str, Any]:
    """Return the state of an optimizer as torch has it on one process (`Optimizer.state_dict`), on the first process.

    The others help to gather it and keep nothing.
    """
    first, kept = Ranks.current().is_first, optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for place, remembered in kept["state"].items():
        gathered = {
            key: full_tensor(value) if isinstance(value, Tensor) else value for key, value in remembered.items()
        }
        if first:
            state[place] = gathered
    return {"state": state, "param_groups": kept["param_groups"]}


def shard_optimizer(optimizer: Any, kept: Mapping[str, Any]) -> None:
    """Give an optimizer of sharded weights the state of one of one process.

    Raises:
        ValueError: it is another optimizer's, or one that remembers more than numbers for each weight.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {}
    for place, remembered in kept["state"].items():
        if place >= len(parameters):
            raise ValueError(f"the checkpoint's optimizer knows more than {len(parameters)} weights")
        state[place] = {key: _part(key, value, parameters[place]) for key, value in remembered.items()}
    optimizer.load_state_dict({"state": state, "param_groups": kept["param_groups"]})


def _part(key: str, value: Any, parameter: nn.Parameter) -> Any:
    if not isinstance(value, Tensor) or not value.dim():
        return value
    if value.shape != parameter.shape:
        raise ValueError(f"the checkpoint's optimizer keeps {key} for a weight")
    return distribute_like(value, parameter)
