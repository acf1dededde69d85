"""Runs a pipeline: each rank holds consecutive decoder layers, and micro-batches flow through them (1F1B).

`torch.distributed.pipelining` sends activations and gradients between stages. With more ranks than stages there are
several pipelines: data-parallel replicas that share the rows of a batch and sum their gradients.

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

from pipeline.labels import IGNORE
from pipeline.parallel.pipeline.stage_module import StageModule
from pipeline.parallel.ranks import Ranks

MOST_SHAPES = 4
"""Most batch shapes whose communication buffers are cached; each shape has two buffers per micro-batch."""


@dataclass(frozen=True)
class PipelineRank:
    """A rank's position in the grid of replicas and stages; the stages of a replica are consecutive ranks.

    Attributes:
        ranks: all ranks of the run.
        stages: stages per pipeline.
    """

    ranks: Ranks
    stages: int

    @property
    def stage(self) -> int:
        """Index of this rank's stage."""
        return self.ranks.index % self.stages

    @property
    def replica(self) -> int:
        """Index of this rank's pipeline."""
        return self.ranks.index // self.stages

    @property
    def replicas(self) -> int:
        """Number of pipelines."""
        return self.ranks.count // self.stages

    def pipelines(self) -> list[list[int]]:
        """Return the ranks of each pipeline."""
        return [[r * self.stages + s for s in range(self.stages)] for r in range(self.replicas)]

    def copies(self) -> list[list[int]]:
        """Return, for each stage, the ranks that hold a replica of it."""
        return [[r * self.stages + s for r in range(self.replicas)] for s in range(self.stages)]


class Pipeline:
    """A pipeline stage and its schedule; `backward` runs one optimizer step's batch.

    Attributes:
        part: the layers of this rank.
        place: this rank's position among stages and replicas.
    """

    def __init__(
        self,
        part: StageModule,
        place: PipelineRank,
        device: torch.device,
        on_first_pass: Callable[[], None] = lambda: None,
    ) -> None:
        """Create the process groups of the pipeline; every rank must call it.

        Args:
            part: the layers of this rank.
            place: this rank's position among stages and replicas.
            device: the rank's device.
            on_first_pass: called once, before the first training micro-batch.
        """
        self.part, self.place, self.device = part, place, device
        self._tokens, self._has_begun, self._on_first_pass = 1.0, False, on_first_pass
        self._schedules: dict[tuple[Any, ...], Any] = {}
        self._pp_group = _own_group(place.pipelines())
        self._dp_group = _own_group(place.copies()) if place.replicas > 1 else None
        self._tied_group = _own_group([[line[0], line[-1]] for line in place.pipelines()]) if part.tied else None

    def backward(self, ids: Tensor, labels: Tensor, passes: int, tokens: float, **places: Tensor) -> float:
        """Accumulate a batch's gradients in this rank's parameters; return the mean loss per token, on every rank.

        Args:
            ids: (rows, tokens), this replica's rows of the batch.
            labels: (rows, tokens), not shifted; -100 is ignored.
            passes: number of micro-batches.
            tokens: labels that count, over all replicas.
            places: further arguments of `StageModule.forward`, (rows, tokens) each.
        """
        self._tokens = tokens
        losses = self._run(self._schedule(ids.shape, passes, self._share_of_loss).step, ids, labels, places)
        shared = self.part.shared
        if shared is not None and self._tied_group is not None:
            dist.all_reduce(shared.grad, group=self._tied_group)
        if self._dp_group is not None:
            gradients = [p.grad for p in self.part.parameters() if p.grad is not None]
            for work in [dist.all_reduce(g, group=self._dp_group, async_op=True) for g in gradients]:
                work.wait()
        return self.place.ranks.all_reduce_sum(losses)[0]

    @torch.no_grad()
    def evaluate(self, ids: Tensor, labels: Tensor, passes: int, **places: Tensor) -> float:
        """Return the sum over micro-batches of mean loss × rows, on the last stage; 0 on the others.

        transformers' Trainer weighs evaluation batches the same way. Rows without a label that counts are left out.
        """
        return self._run(self._schedule(ids.shape, passes, _row_weighted_loss).eval, ids, labels, places)

    def _run(self, step: Callable[..., Any], ids: Tensor, labels: Tensor, places: Mapping[str, Tensor]) -> float:
        losses: list[Tensor] = []
        first_inputs = (ids,) if self.part.embedding is not None else ()
        last_inputs = {"target": labels, "losses": losses} if self.part.head is not None else {}
        step(*first_inputs, return_outputs=False, **last_inputs, **places)
        return float(sum(losses))

    def _schedule(self, shape: tuple[int, ...], passes: int, loss: Callable[..., Tensor]) -> Any:
        key = (*shape, passes, loss)
        if key not in self._schedules:  # torch fixes a stage's message shapes with its first batch
            if len(self._schedules) == MOST_SHAPES:
                self._schedules.clear()
            place = self.place
            stage = _Stage(self.part, place.stage, place.stages, self.device, group=self._pp_group)
            stage.begin = self._begin
            self._schedules[key] = Schedule1F1B(stage, passes, loss_fn=loss, scale_grads=False)
        return self._schedules[key]

    def _begin(self) -> None:
        if not self._has_begun and torch.is_grad_enabled():
            self._has_begun = True
            self._on_first_pass()

    def _share_of_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return a micro-batch's contribution to the batch's mean loss per token."""
        return _summed_loss(logits, labels) / self._tokens

    def clip(self, most: float) -> float:
        """Clip the gradient norm over all stages to ``most`` (0 does not clip); return the norm before clipping."""
        counted = self.part.counted().values() if self.place.replica == 0 else ()
        squares = sum((float(p.grad.double().square().sum()) for p in counted if p.grad is not None), 0.0)
        norm = float(self.place.ranks.all_reduce_sum(squares)[0] ** 0.5)
        if most and norm > most:
            for parameter in self.part.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(most / (norm + 1e-6))
        return norm

    def gather_to_first(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gather the stages' tensors to the first rank; an empty dict on the others. Every rank must call it."""
        return self.place.ranks.gather_to_first(own if self.place.replica == 0 else {})

    def consolidated_state(self) -> dict[str, Tensor]:
        """Consolidate the model's weights on the first rank; an empty dict on the others. Every rank must call it."""
        return self.gather_to_first(self.part.counted())


class _Stage(PipelineStage):
    """torch's `PipelineStage` with a callback before each micro-batch's forward pass.

    Before the first micro-batch of a shape torch runs the module forward and backward to infer the shapes it sends. On
    the first stage, whose input has no gradient, that pass recomputes no activations. It is no training pass, so
    `on_first_pass` of `Pipeline` is called only with the callback.
    """

    begin: Callable[[], None]

    def forward_maybe_with_nosync(self, *args: object, **kwargs: Any) -> Any:
        self.begin()
        return super().forward_maybe_with_nosync(*args, **kwargs)  # type: ignore[no-untyped-call]


def _own_group(members: list[list[int]]) -> Any:
    """Create process groups from lists of ranks and return this rank's; every rank must call it with all lists."""
    own, _ = dist.new_subgroups_by_enumeration(members)  # type: ignore[no-untyped-call]
    return own


def _summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of next-token prediction, summed over the labels that count."""
    flat, target = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()
    return nn.functional.cross_entropy(flat, target, ignore_index=IGNORE, reduction="sum")


def _row_weighted_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return a micro-batch's mean loss per token times its number of rows that have a label that counts."""
    counts = labels[:, 1:].ne(IGNORE).sum(1)
    return _summed_loss(logits, labels) / counts.sum().clamp(min=1) * counts.gt(0).sum()
