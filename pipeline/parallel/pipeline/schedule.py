"""Pipeline parallelism: each process holds consecutive decoder layers, micro-batches flow through them (1F1B).

torch's `torch.distributed.pipelining` moves activations and gradients. With more processes than parts there are several
pipelines, replicas that share the rows of a batch and sum their gradients.

Reference: Narayanan et al. 2021, arXiv:2104.04473 (the 1F1B schedule); Huang et al. 2019, arXiv:1811.06965 (GPipe).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from pipeline.models.forward_probe import ForwardProbe
from pipeline.models.labels import IGNORE
from pipeline.parallel.pipeline.stage_module import StageModule
from pipeline.parallel.ranks import Ranks

MOST_SHAPES = 4
"""Shapes of a batch whose buffers are kept: each has two for every micro-batch."""


@dataclass(frozen=True)
class PipelineRank:
    """A process among stages and replicas; the stages of a replica are processes next to one another.

    Attributes:
        ranks: all processes.
        stages: of each pipeline.
    """

    ranks: Ranks
    stages: int

    @property
    def stage(self) -> int:
        """Number of this process's part."""
        return self.ranks.index % self.stages

    @property
    def replica(self) -> int:
        """Number of this process's pipeline."""
        return self.ranks.index // self.stages

    @property
    def replicas(self) -> int:
        """Pipelines."""
        return self.ranks.count // self.stages

    def pipelines(self) -> list[list[int]]:
        """Return the processes of each pipeline."""
        return [[r * self.stages + s for s in range(self.stages)] for r in range(self.replicas)]

    def copies(self) -> list[list[int]]:
        """Return the processes that hold the same part, for each part."""
        return [[r * self.stages + s for r in range(self.replicas)] for s in range(self.stages)]


class Pipeline:
    """A part with its schedule: one call per optimizer step.

    Attributes:
        part: of this process.
        place: of this process.
        first: watches the first batch from its first micro-batch on; None before.
    """

    def __init__(self, part: StageModule, place: PipelineRank, device: torch.device) -> None:
        self.part, self.place, self.device = part, place, device
        self._tokens = 1.0
        self.first: ForwardProbe | None = None
        self._schedules: dict[tuple[Any, ...], Any] = {}
        self._line = _own_group(place.pipelines())
        self._copies = _own_group(place.copies()) if place.replicas > 1 else None
        self._ends = _own_group([[line[0], line[-1]] for line in place.pipelines()]) if part.tied else None

    def backward(self, ids: Tensor, labels: Tensor, passes: int, tokens: float, **places: Tensor) -> float:
        """Leave the gradients of a batch in the part; return the mean loss of its tokens, in every process.

        Args:
            ids: (rows, tokens), this replica's rows of the batch.
            labels: (rows, tokens), not shifted; -100 counts for nothing.
            passes: micro-batches the rows are cut into.
            tokens: that count, of the whole batch.
            places: (rows, tokens) each, what `StageModule.forward` takes beside.
        """
        self._tokens = tokens
        losses = self._run(self._schedule(ids.shape, passes, self._share_of_loss).step, ids, labels, places)
        shared = self.part.shared
        if shared is not None and self._ends is not None:
            dist.all_reduce(shared.grad, group=self._ends)
        if self._copies is not None:
            gradients = [p.grad for p in self.part.parameters() if p.grad is not None]
            for work in [dist.all_reduce(g, group=self._copies, async_op=True) for g in gradients]:
                work.wait()
        return self.place.ranks.sums(losses)[0]

    @torch.no_grad()
    def evaluate(self, ids: Tensor, labels: Tensor, passes: int, **places: Tensor) -> float:
        """Return the sum over micro-batches of their mean loss times their rows, in the last part; elsewhere 0.

        That is how transformers' Trainer weighs batches of held-out rows. Rows without a token that counts are none.
        """
        return self._run(self._schedule(ids.shape, passes, _rows_times_mean).eval, ids, labels, places)

    def _run(self, step: Callable[..., Any], ids: Tensor, labels: Tensor, places: Mapping[str, Tensor]) -> float:
        losses: list[Tensor] = []
        given = (ids,) if self.part.embedding is not None else ()
        last = {"target": labels, "losses": losses} if self.part.head is not None else {}
        step(*given, return_outputs=False, **last, **places)
        return float(sum(losses))

    def _schedule(self, shape: tuple[int, ...], passes: int, loss: Callable[..., Tensor]) -> Any:
        key = (*shape, passes, loss)
        if key not in self._schedules:  # a stage learns the shapes it sends from its first batch
            if len(self._schedules) == MOST_SHAPES:
                self._schedules.clear()
            place = self.place
            stage = _Stage(self.part, place.stage, place.stages, self.device, group=self._line)
            stage.begin = self._watch
            self._schedules[key] = Schedule1F1B(stage, passes, loss_fn=loss, scale_grads=False)
        return self._schedules[key]

    def _watch(self) -> None:
        if self.first is None and torch.is_grad_enabled():
            self.first = ForwardProbe(self.part)

    def _share_of_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return a micro-batch's share of the batch's mean loss per token."""
        return _summed(logits, labels) / self._tokens

    def clip(self, most: float) -> float:
        """Scale gradients to a norm of at most ``most`` over all parts; return the norm before."""
        mine = self.part.counted().values() if self.place.replica == 0 else ()
        squares = sum((float(p.grad.double().square().sum()) for p in mine if p.grad is not None), 0.0)
        norm = float(self.place.ranks.sums(squares)[0] ** 0.5)
        if most and norm > most:
            for parameter in self.part.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(most / (norm + 1e-6))
        return norm

    def gather_to_first(self, mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of all parts, on the first process; empty on the others. Every process calls it."""
        return self.place.ranks.gather_to_first(mine if self.place.replica == 0 else {})

    def whole_state(self) -> dict[str, Tensor]:
        """Return the whole model's weights, on the first process; empty on the others. Every process calls it."""
        return self.gather_to_first(self.part.counted())


class _Stage(PipelineStage):
    """torch's stage, which says when a micro-batch comes.

    Before the first one of a shape torch runs the part forward and backward to learn what it sends. Of the first part
    that has no gradient of its input to give, so nothing is computed again: a pass that is no part of learning.
    """

    begin: Callable[[], None]

    def forward_maybe_with_nosync(self, *args: Any, **kwargs: Any) -> Any:
        self.begin()
        return super().forward_maybe_with_nosync(*args, **kwargs)  # type: ignore[no-untyped-call]


def _own_group(members: list[list[int]]) -> Any:
    """Return the group of these this process is in; every process calls it with all of them."""
    own, _ = dist.new_subgroups_by_enumeration(members)  # type: ignore[no-untyped-call]
    return own


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    flat, target = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    return nn.functional.cross_entropy(flat, target, ignore_index=IGNORE, reduction="sum")


def _rows_times_mean(logits: Tensor, labels: Tensor) -> Tensor:
    counts = labels[:, 1:].ne(IGNORE).sum(1)
    return _summed(logits, labels) / counts.sum().clamp(min=1) * counts.gt(0).sum()
