"""How weights and the optimizer's memory of them really lie on processes: looked at, not believed.

Engines fall back without a word where they cannot do what they were asked. What they leave shows in the parameters
(`DTensor` under FSDP2, `ds_tensor` under ZeRO-3) and in DeepSpeed's optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ShardingState:
    """What this process holds.

    Attributes:
        engine: ``plain``, ``ZeRO-1`` to ``ZeRO-3``, or ``FSDP2``; with the count of weights where only some are so.
        over: processes the state is spread over; 1 when it lies whole in each.
        weights: share of the weights that is in this process between two passes.
        optimizer: share of the trained weights that this process' optimizer steps.
    """

    engine: str
    over: int
    weights: float
    optimizer: float


def holding(model: nn.Module, optimizer: Any) -> ShardingState:
    """Look at a model and the optimizer that trains it, once both are prepared.

    Args:
        model: not wrapped, or with FSDP2 as it is.
        optimizer: torch's, accelerate's or DeepSpeed's.
    """
    parameters = list(model.parameters())
    engine, over = _engine_of(parameters, optimizer)
    held = sum(_local(parameter) for parameter in parameters)
    trained = sum(_whole(parameter) for parameter in parameters if parameter.requires_grad)
    stepped = sum(size for _, size in _stepped(optimizer))
    all_of_them = max(1, sum(map(_whole, parameters)))
    return ShardingState(engine, over, round(held / all_of_them, 4), round(stepped / max(1, trained), 4))


def bucket_of(optimizer: Any) -> int | None:
    """Return the elements of the buckets DeepSpeed's optimizer sums gradients in; None where it is another's."""
    zero = _zero_optimizer(optimizer)
    return None if zero is None else int(zero.reduce_bucket_size)


def _engine_of(parameters: list[nn.Parameter], optimizer: Any) -> tuple[str, int]:
    zero = _zero_optimizer(optimizer)
    if zero is not None:
        if type(zero).__name__.endswith("Stage3"):
            in_parts = [p for p in parameters if hasattr(p, "ds_tensor")]
            over = min((-(-p.ds_numel // p.ds_tensor.numel()) for p in in_parts if p.ds_numel > 64), default=1)  # type: ignore[attr-defined]
            return _counted("ZeRO-3", in_parts, parameters), int(over)
        return f"ZeRO-{2 if zero.partition_gradients else 1}", int(min(zero.partition_count, default=1))
    in_parts = [p for p in parameters if any(place.is_shard() for place in getattr(p, "placements", ()))]
    if not in_parts:
        return "plain", 1
    is_sharded = any("tp" in (p.device_mesh.mesh_dim_names or ()) for p in in_parts)  # type: ignore[attr-defined]
    engine = "tensor parallelism" if is_sharded else "FSDP2"
    return _counted(engine, in_parts, parameters), min(int(p.device_mesh.size()) for p in in_parts)  # type: ignore[attr-defined]


def _counted(engine: str, some: list[nn.Parameter], of: list[nn.Parameter]) -> str:
    return engine if len(some) == len(of) else f"{engine} for {len(some)} of {len(of)} weights"


def _zero_optimizer(optimizer: Any) -> Any | None:
    """Return DeepSpeed's optimizer inside accelerate's, or the one itself; None where it is another's."""
    for one in (optimizer, getattr(optimizer, "optimizer", None)):
        if type(one).__name__.startswith("DeepSpeedZeroOptimizer"):
            return one
    return None


def _stepped(optimizer: Any) -> Iterator[tuple[int, int]]:
    """Yield each tensor the optimizer steps in this process, as its id and its numbers."""
    zero = _zero_optimizer(optimizer)
    if zero is None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                yield id(parameter), _local(parameter)
        return
    stage_3 = type(zero).__name__.endswith("Stage3")
    for flat in zero.fp32_partitioned_groups_flat if stage_3 else zero.single_partition_of_fp32_groups:
        yield id(flat), int(flat.numel())


def foreign_parameters(model: nn.Module, optimizer: Any) -> int:
    """Return how many tensors an optimizer steps that are no weights of the model; 0 of DeepSpeed's, which copies."""
    if _zero_optimizer(optimizer) is not None:
        return 0
    own = {id(parameter) for parameter in model.parameters()}
    return sum(one not in own for one, _ in _stepped(optimizer))


def _whole(parameter: Any) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _local(parameter: Any) -> int:
    if hasattr(parameter, "ds_tensor"):
        return int(parameter.ds_tensor.numel())
    return int(parameter.to_local().numel() if hasattr(parameter, "to_local") else parameter.numel())
