"""Tensors that are sharded over the processes (torch's DTensor): consolidated, and distributed like another tensor.

FSDP2 and tensor parallelism hold weights so, and the optimizer's memory of them. Every process calls what is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a copy, in CPU memory, of a tensor that may be sharded; every process gets it."""
    found = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found.detach().cpu().clone()


def whole_weights(state: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Return weights put together, one after another; empty without ``keep``."""
    found = {}
    for name, tensor in state.items():
        gathered = full_tensor(tensor)
        if keep:
            found[name] = gathered
    return found


def distribute_like(tensor: Tensor, like: Any) -> Tensor:
    """Return a tensor, which every process has whole, as another of its shape lies; itself where that one is whole."""
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def set_weight(parameter: nn.Parameter, tensor: Tensor) -> None:
    """Put this process's part of a whole weight into its parameter."""
    parameter.copy_(distribute_like(tensor.to(parameter.device, parameter.dtype), parameter))
