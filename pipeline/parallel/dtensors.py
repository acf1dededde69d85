"""DTensors: all-gathers a sharded tensor into a full one, and shards a full tensor like another DTensor.

FSDP2 and tensor parallelism hold weights and optimizer state as DTensors. Every rank must call these functions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All-gather a tensor that may be sharded; return a full copy in CPU memory, on every rank."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().clone()


def full_state_dict(state: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """All-gather the tensors of a state dict one by one; return the full ones, or an empty dict without ``keep``."""
    full_state = {}
    for name, tensor in state.items():
        full = full_tensor(tensor)
        if keep:
            full_state[name] = full
    return full_state


def distribute_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a full tensor, which every rank holds, like a DTensor of its shape.

    Returns the tensor itself, on the device of ``like``, where ``like`` is no DTensor or has another shape.
    """
    tensor = tensor.to(like.device)
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def set_weight(parameter: nn.Parameter, tensor: Tensor) -> None:
    """Copy this rank's shard of a full weight into its parameter."""
    parameter.copy_(distribute_like(tensor.to(parameter.device, parameter.dtype), parameter))
