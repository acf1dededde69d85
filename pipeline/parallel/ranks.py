"""The ranks of a run, and collectives over them that do nothing when there is only one.

Each rank holds its share of a rollout. Values that depend on the whole rollout (whitening, token counts, decisions to
stop) are reduced here, so the number of ranks does not change the result.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process's rank and the world size.

    Attributes:
        index: rank of this process.
        count: number of ranks (world size).
    """

    index: int = 0
    count: int = 1

    @staticmethod
    def current() -> Ranks:
        """Return the rank and world size of torch's default process group; rank 0 of 1 without one."""
        if dist.is_available() and dist.is_initialized():
            return Ranks(dist.get_rank(), dist.get_world_size())
        return Ranks()

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.index == 0

    def all_reduce_sum(self, *values: float) -> tuple[float, ...]:
        """All-reduce: return each value summed over all ranks, in float64."""
        if self.count == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=_control_group())
        return tuple(tensor.tolist())

    def barrier(self) -> None:
        """Barrier: wait until every rank has called this."""
        if self.count > 1:
            dist.barrier(group=_control_group())

    def all_reduce_max(self, value: float) -> float:
        """Return the largest of the ranks' values."""
        if self.count == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=_control_group())
        return float(tensor)

    def add_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """All-reduce gradients (sum) in one flat tensor; a rank that computed none in this step adds zeros."""
        if self.count == 1:
            return
        parameter_list = list(parameters)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameter_list]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        start = 0
        for parameter, gradient in zip(parameter_list, gradients, strict=True):
            parameter.grad = flat[start : start + gradient.numel()].view_as(parameter)
            start += gradient.numel()

    def all_gather(self, items: list[Any]) -> list[Any]:
        """All-gather lists: return the items of all ranks in rank order."""
        if self.count == 1:
            return items
        lists: list[Any] = [None] * self.count
        dist.all_gather_object(lists, items, group=_control_group())
        return [item for rank_items in lists for item in rank_items]

    def broadcast(self, item: Item) -> Item:
        """Broadcast: return the first rank's item on all ranks."""
        if self.count == 1:
            return item
        items = [item if self.is_first else None]
        dist.broadcast_object_list(items, src=0, group=_control_group())
        return cast(Item, items[0])

    def gather_to_first(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gather named tensors to the first rank's CPU, sent one by one; the other ranks return an empty dict.

        Every rank must call it. No two ranks may use the same name.
        """
        if self.count == 1:
            return {name: tensor.detach().cpu().clone() for name, tensor in own.items()}
        layouts_by_rank = self.all_gather([{name: (tensor.shape, tensor.dtype) for name, tensor in own.items()}])
        if not self.is_first:
            for tensor in own.values():
                dist.send(tensor.detach().cpu().contiguous(), 0, group=_control_group())
            return {}
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in own.items()}
        for source, layouts in enumerate(layouts_by_rank[1:], 1):
            for name, (shape, dtype) in layouts.items():
                tensors[name] = torch.empty(shape, dtype=dtype)
                dist.recv(tensors[name], source, group=_control_group())
        return tensors

    def shard(self, items: list[Any]) -> list[Any]:
        """Return this rank's share of a list: every ``count``-th item, from item ``index`` on."""
        return items[self.index :: self.count]


def any_reduce(flag: bool) -> bool:
    """Return whether ``flag`` is set on any rank. Every rank must call it, and all get the same answer."""
    return bool(Ranks.current().all_reduce_max(float(flag)))


@functools.cache
def _control_group() -> Any:
    """Return a gloo group for CPU tensors, next to the devices' backend; None if the default group is gloo."""
    if dist.get_backend() == "gloo":
        return None
    return dist.new_group(backend="gloo")
