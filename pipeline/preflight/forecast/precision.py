"""Predicts the precision (number format) a stage will compute in. Imports no torch."""

from __future__ import annotations

from pipeline.estimate.devices import Device
from pipeline.models.cpu.bf16_speed import SMALLEST_WIDTH, possible_formats
from pipeline.recipe.schema import Compute
from pipeline.stage import Kind


def precisions_of(kind: Kind, compute: Compute, device: Device, width: int) -> tuple[str, ...]:
    """Return the precision of a stage; both candidates if `precision: auto` is not measured yet on this CPU.

    Args:
        kind: kind of the stage.
        compute: compute settings of the stage.
        device: device the stage runs on.
        width: hidden size of its model.
    """
    if not kind.trains and not device.is_gpu:  # on a CPU, models that only generate and score stay in fp32
        return ("fp32",)
    if compute.precision != "auto":
        return (compute.precision,)
    if device.is_gpu:
        return ("bf16",)
    if compute.zero or width < SMALLEST_WIDTH:
        return ("fp32",)
    is_here = compute.launcher == "local" and compute.hardware is None
    return possible_formats(width) if is_here else ("fp32", "bf16")
