"""Which number format a stage will compute in, before it runs. No torch."""

from __future__ import annotations

from pipeline.estimate.devices import Device
from pipeline.models.bf16_speed import SMALLEST_WIDTH, possible_formats
from pipeline.recipe.schema import Compute


def formats_of(kind: str, compute: Compute, device: Device, width: int) -> tuple[str, ...]:
    """Return the format, or both that `precision: auto` may come to on a CPU where it was not measured yet.

    Args:
        kind: of the stage.
        compute: it runs with.
        device: it runs on.
        width: hidden size of its model.
    """
    if kind == "evaluate" and not device.is_gpu:  # on a CPU models that only answer and score stay in fp32
        return ("fp32",)
    if compute.precision != "auto":
        return (compute.precision,)
    if device.is_gpu:
        return ("bf16",)
    if compute.zero or width < SMALLEST_WIDTH:
        return ("fp32",)
    is_here = compute.launcher == "local" and compute.hardware is None
    return possible_formats(width) if is_here else ("fp32", "bf16")
