"""The parallel dimensions of a run: how many processes train, and along which dimensions they divide the work.

Owns the arithmetic of the dimensions and its one condition: model-parallel groups divide the world size. Knows nothing
of recipes, stages or models. No torch: `trueup plan` imports this module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.errors import PipelineError, Problem
from pipeline.kind.traits import MODEL_PARALLEL

Offload = Literal["none", "optimizer", "all"]
"""What ZeRO keeps in CPU memory."""


class ParallelSettings(Protocol):
    """What settings say of parallelism, valid or not: a recipe's `compute` block, or `ParallelDims`."""

    @property
    def pipeline_parallel(self) -> int:
        """Processes that hold consecutive decoder layers each."""
        ...

    @property
    def tensor_parallel(self) -> int:
        """Processes that share the numbers of every large matrix."""
        ...

    @property
    def sequence_parallel(self) -> int:
        """Processes that share the tokens of every row."""
        ...

    @property
    def zero(self) -> int:
        """ZeRO stage, 0 to 3."""
        ...

    @property
    def fsdp(self) -> bool:
        """Whether FSDP2 shards weights, gradients and optimizer."""
        ...

    @property
    def offload(self) -> Offload:
        """What ZeRO keeps in CPU memory."""
        ...


def model_parallel_size(settings: ParallelSettings) -> int:
    """Return the size of a model-parallel group: the ranks that work on the same rows."""
    return math.prod(int(getattr(settings, dim)) for dim in MODEL_PARALLEL)


@dataclass(frozen=True)
class ParallelDims:
    """The parallel dimensions of a run, valid from construction; the defaults are one process that holds everything.

    torchtitan's `ParallelDims` is the model. Deviations: the data-parallel size follows from the others, and the fields
    have the words of a recipe's `compute` block.

    Attributes:
        world_size: processes on all nodes.
        pipeline_parallel: pipeline stages, each with consecutive decoder layers.
        tensor_parallel: ranks that share the numbers of every large matrix.
        sequence_parallel: ranks that share the tokens of every row.
        zero: ZeRO stage: 1 shards optimizer states, 2 gradients too, 3 weights too; 0 is no ZeRO.
        fsdp: whether FSDP2 shards weights, gradients and optimizer.
        offload: what ZeRO keeps in CPU memory.

    Raises:
        PipelineError: the world size is no multiple of the model-parallel size.
    """

    world_size: int = 1
    pipeline_parallel: int = 1
    tensor_parallel: int = 1
    sequence_parallel: int = 1
    zero: int = 0
    fsdp: bool = False
    offload: Offload = "none"

    def __post_init__(self) -> None:
        size = self.model_parallel_size
        if self.world_size % size:
            sizes = {f"compute.{dim}": getattr(self, dim) for dim in MODEL_PARALLEL}
            asked = " and ".join(f"{dim} is {ranks}" for dim, ranks in sizes.items() if ranks > 1)
            statement = f"{asked} on {self.world_size} processes"
            remedy = f"set compute.processes: {size}, or a multiple"
            raise PipelineError(Problem(statement, f"a multiple of {size} processes", remedy))

    @property
    def model_parallel_size(self) -> int:
        """Size of a model-parallel group: the ranks that work on the same rows."""
        return model_parallel_size(self)

    @property
    def replicas(self) -> int:
        """Data-parallel size: the model-parallel groups between which the rows of a batch are divided."""
        return self.world_size // self.model_parallel_size

    @property
    def is_sharded(self) -> bool:
        """Whether ZeRO or FSDP2 shards the training state over the ranks."""
        return bool(self.zero) or self.fsdp

    @property
    def engine(self) -> str:
        """What shards the training state over the ranks: ``ZeRO-1`` to ``ZeRO-3``, ``FSDP2``, or ``plain`` for none."""
        return f"ZeRO-{self.zero}" if self.zero else "FSDP2" if self.fsdp else "plain"
