"""Measures how weights and optimizer state are sharded over the ranks, instead of trusting the configuration.

An engine that cannot do what it was asked falls back silently. What it really did shows in the parameters (`DTensor`
under FSDP2, `ds_tensor` under ZeRO-3) and in DeepSpeed's optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from pipeline.errors import Problem, counted
from pipeline.parallel.dims import ParallelDims

if TYPE_CHECKING:
    from deepspeed.runtime.base_optimizer import ZeROOptimizer
    from torch.optim import Optimizer


@dataclass(frozen=True)
class ShardingState:
    """What this rank holds of the weights and of the optimizer state.

    Attributes:
        engine: ``plain``, ``ZeRO-1`` to ``ZeRO-3``, ``FSDP2`` or ``tensor parallelism``; followed by the number of
            weights where only some are sharded.
        over: ranks the state is sharded over; 1 when each rank holds all of it.
        weights: fraction of the weights that this rank holds between two passes.
        optimizer: fraction of the trained weights that this rank's optimizer updates.
    """

    engine: str
    over: int
    weights: float
    optimizer: float


def holding(model: nn.Module, optimizer: Optimizer | ZeROOptimizer) -> ShardingState:
    """Measure the sharding of a model and its optimizer after accelerate has prepared both.

    Args:
        model: the unwrapped module; with FSDP2, the module itself, which FSDP2 shards in place.
        optimizer: torch's, accelerate's or DeepSpeed's.
    """
    parameters = list(model.parameters())
    engine, over = _engine_of(parameters, optimizer)
    local = sum(_local_size(parameter) for parameter in parameters)
    trained = sum(_full_size(parameter) for parameter in parameters if parameter.requires_grad)
    stepped = sum(size for _, size in _updated_tensors(optimizer))
    total = max(1, sum(map(_full_size, parameters)))
    return ShardingState(engine, over, round(local / total, 4), round(stepped / max(1, trained), 4))


def sharding_problems(dims: ParallelDims, state: ShardingState, joined: int) -> Iterator[Problem]:
    """Yield a problem if the number of ranks, or the sharding over them, differs from the parallel dimensions.

    Args:
        dims: the parallel dimensions that the recipe asks for.
        state: what this rank measured after preparation.
        joined: ranks of the process group.
    """
    if joined != dims.world_size:
        statement = f"{counted(joined, 'process', 'processes')} joined"
        yield Problem(statement, f"{dims.world_size}, as compute says", "see the logs of the others")
    if dims.model_parallel_size > 1 and not dims.is_sharded:
        return  # tensor and pipeline parallelism have their own checks
    remedy = "set compute.fsdp: true" if dims.zero else "set compute.zero: 3" if dims.fsdp else "leave out what shards"
    if state.engine != dims.engine:
        statement = f"compute asks for {dims.engine}, and {state.engine} runs"
        yield Problem(statement, "what was asked for", remedy)
    elif dims.is_sharded and state.over != dims.world_size:
        statement = f"{dims.engine} has spread its state over {state.over} of {dims.world_size} processes"
        yield Problem(statement, "all of them", remedy)


def bucket_of(optimizer: Optimizer | ZeROOptimizer) -> int | None:
    """Return DeepSpeed's `reduce_bucket_size` in elements; None for an optimizer that is not DeepSpeed's."""
    zero = _zero_optimizer(optimizer)
    return None if zero is None else int(zero.reduce_bucket_size)


def _engine_of(parameters: list[nn.Parameter], optimizer: Optimizer | ZeROOptimizer) -> tuple[str, int]:
    zero = _zero_optimizer(optimizer)
    if zero is not None:
        if type(zero).__name__.endswith("Stage3"):
            sharded = [p for p in parameters if hasattr(p, "ds_tensor")]
            over = min((-(-p.ds_numel // p.ds_tensor.numel()) for p in sharded if p.ds_numel > 64), default=1)  # type: ignore[attr-defined]
            return _engine_label("ZeRO-3", sharded, parameters), int(over)
        return f"ZeRO-{2 if zero.partition_gradients else 1}", int(min(zero.partition_count, default=1))
    sharded = [p for p in parameters if any(placement.is_shard() for placement in getattr(p, "placements", ()))]
    if not sharded:
        return "plain", 1
    has_tp_mesh = any("tp" in (p.device_mesh.mesh_dim_names or ()) for p in sharded)  # type: ignore[attr-defined]
    engine = "tensor parallelism" if has_tp_mesh else "FSDP2"
    return _engine_label(engine, sharded, parameters), min(int(p.device_mesh.size()) for p in sharded)  # type: ignore[attr-defined]


def _engine_label(engine: str, some: list[nn.Parameter], of: list[nn.Parameter]) -> str:
    return engine if len(some) == len(of) else f"{engine} for {len(some)} of {len(of)} weights"


def _zero_optimizer(optimizer: Optimizer | ZeROOptimizer) -> ZeROOptimizer | None:
    """Return DeepSpeed's ZeRO optimizer, unwrapped from accelerate's; None if the optimizer is another."""
    for one in (optimizer, getattr(optimizer, "optimizer", None)):
        if type(one).__name__.startswith("DeepSpeedZeroOptimizer"):
            return one
    return None


def _updated_tensors(optimizer: Optimizer | ZeROOptimizer) -> Iterator[tuple[int, int]]:
    """Yield the id and the element count of each tensor that this rank's optimizer updates."""
    zero = _zero_optimizer(optimizer)
    if zero is None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield id(parameter), _local_size(parameter)
        return
    stage_3 = type(zero).__name__.endswith("Stage3")
    for flat in zero.fp32_partitioned_groups_flat if stage_3 else zero.single_partition_of_fp32_groups:
        yield id(flat), int(flat.numel())


def foreign_parameters(model: nn.Module, optimizer: Optimizer | ZeROOptimizer) -> int:
    """Return how many tensors an optimizer updates that are not parameters of the model.

    0 for DeepSpeed's optimizer, which updates copies.
    """
    if _zero_optimizer(optimizer) is not None:
        return 0
    own = {id(parameter) for parameter in model.parameters()}
    return sum(one not in own for one, _ in _updated_tensors(optimizer))


def _full_size(parameter: Tensor) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _local_size(parameter: Tensor) -> int:
    if hasattr(parameter, "ds_tensor"):
        return int(parameter.ds_tensor.numel())
    return int(parameter.to_local().numel() if hasattr(parameter, "to_local") else parameter.numel())
