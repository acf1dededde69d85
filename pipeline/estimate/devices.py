"""What a device can do at its peak, from the makers' data sheets; prices are examples of what clouds ask by the hour.

Sources, dense tensor throughput in bf16 (for fp32 the TF32 figure is not used: half of bf16 is assumed):
A100 and H100, H200, L4, A10G (as A10): NVIDIA data sheets; RTX 4090: NVIDIA Ada architecture paper (bf16 with fp32
accumulation); MI300X: AMD Instinct data sheet. Prices move: `compute.hardware.usd_per_hour` has the last word.
"""

from __future__ import annotations

from dataclasses import dataclass

MFU = 0.4
"""Share of the peak that training is assumed to reach; PaLM (arXiv:2204.02311) reports 0.46, good small runs 0.35-0.5."""


@dataclass(frozen=True)
class Device:
    """One accelerator, or the memory of a machine.

    Attributes:
        name: of the device.
        memory_gib: of one device.
        tflops: dense bf16 peak; 0 when unknown: then no hours are estimated.
        usd_per_hour: of one device; 0 when unknown.
        is_gpu: whether it is one.
    """

    name: str
    memory_gib: float
    tflops: float = 0.0
    usd_per_hour: float = 0.0
    is_gpu: bool = True


DEVICES = {
    device.name: device
    for device in (
        Device("a100-40gb", 40, 312, 1.3),
        Device("a100-80gb", 80, 312, 1.8),
        Device("h100-80gb", 80, 989, 3.0),
        Device("h200-141gb", 141, 989, 3.8),
        Device("l4-24gb", 24, 121, 0.8),
        Device("a10g-24gb", 24, 70, 1.0),
        Device("rtx4090-24gb", 24, 165, 0.5),
        Device("mi300x-192gb", 192, 1307, 3.0),
    )
}
