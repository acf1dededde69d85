"""The processes of a run: sums and gathers over them, and nothing when there is one.

Every process holds its share of a rollout; what is computed from the whole (whitening, token counts, decisions to
stop) goes through here, so that the number of processes does not change the result.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among all.

    Attributes:
        index: of this process.
        count: of processes.
    """

    index: int = 0
    count: int = 1

    @staticmethod
    def current() -> Ranks:
        """Return the processes of torch's default group; one when there is none."""
        if dist.is_available() and dist.is_initialized():
            return Ranks(dist.get_rank(), dist.get_world_size())
        return Ranks()

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.index == 0

    def sums(self, *values: float) -> tuple[float, ...]:
        """Return each value summed over all processes, in float64."""
        if self.count == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=_control_group())
        return tuple(tensor.tolist())

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            dist.barrier(group=_control_group())

    def all_reduce_max(self, value: float) -> float:
        """Return the largest of one value of each process."""
        if self.count == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=_control_group())
        return float(tensor)

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum gradients over all processes, in one message; a process without a share of a step adds zeros."""
        if self.count == 1:
            return
        kept = list(parameters)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in kept]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        start = 0
        for parameter, gradient in zip(kept, gradients, strict=True):
            parameter.grad = flat[start : start + gradient.numel()].view_as(parameter)
            start += gradient.numel()

    def gathered(self, items: list[Any]) -> list[Any]:
        """Return the items of all processes, those of the first process first."""
        if self.count == 1:
            return items
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, items, group=_control_group())
        return [item for part in found for item in part]

    def gather_to_first(self, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of all processes on the first one's CPU, sent one by one; the others keep nothing.

        Every process calls it; a name is one process's.
        """
        if self.count == 1:
            return {name: tensor.detach().cpu().clone() for name, tensor in mine.items()}
        kinds = self.gathered([{name: (tensor.shape, tensor.dtype) for name, tensor in mine.items()}])
        if not self.is_first:
            for tensor in mine.values():
                dist.send(tensor.detach().cpu().contiguous(), 0, group=_control_group())
            return {}
        found = {name: tensor.detach().cpu().clone() for name, tensor in mine.items()}
        for source, theirs in enumerate(kinds[1:], 1):
            for name, (shape, dtype) in theirs.items():
                found[name] = torch.empty(shape, dtype=dtype)
                dist.recv(found[name], source, group=_control_group())
        return found

    def shard(self, items: list[Any]) -> list[Any]:
        """Return this process's share of a list: every ``count``-th item."""
        return items[self.index :: self.count]


def any_rank(flag: bool) -> bool:
    """Return whether any process says so; every process gets the same answer to the same call."""
    return bool(Ranks.current().all_reduce_max(float(flag)))


@functools.cache
def _control_group() -> Any:
    """Return a group that talks through the CPU, beside whatever the devices do; the default one when it does."""
    if dist.get_backend() == "gloo":
        return None
    return dist.new_group(backend="gloo")
