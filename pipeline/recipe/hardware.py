"""The `hardware:` of a recipe's compute: the device a run is planned for."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.estimate.devices import DEVICES, Device

Hardwares = Literal[
    "a100-40gb",
    "a100-80gb",
    "h100-80gb",
    "h200-141gb",
    "l4-24gb",
    "a10g-24gb",
    "rtx4090-24gb",
    "mi300x-192gb",
]
"""Names of the devices in `pipeline/estimate/devices.py`; a test requires both to be equal."""


class Hardware(BaseModel):
    """A device a run is planned for; what is left out is that of the named one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Hardwares | None = Field(None, description="A device with public peak figures.")
    memory_gib: float | None = Field(None, gt=0, description="Memory of one device.")
    tflops: float | None = Field(None, gt=0, description="Peak of dense bf16 products, in 10¹² operations a second.")
    usd_per_hour: float | None = Field(None, ge=0, description="Price of one device.")
    host_gib: float | None = Field(None, gt=0, description="Memory of the machine it is in, for what is offloaded.")

    @model_validator(mode="after")
    def _has_memory(self) -> Self:
        if self.name is None and self.memory_gib is None:
            raise ValueError("says no memory|`name` of a known device, or `memory_gib` of another")
        return self

    @property
    def device(self) -> Device:
        """The device these fields describe."""
        start = DEVICES[self.name] if self.name else Device("hardware", 0.0, is_gpu=self.tflops is not None)
        overrides = {key: value for key, value in self.model_dump(exclude={"name"}).items() if value is not None}
        return replace(start, **overrides)
