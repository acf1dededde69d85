"""What a device can do at its peak, from the makers' data sheets.

Throughput is that of dense bf16 matrix products: A100, H100 and H200 (SXM), L4 and A10G from NVIDIA's data sheets, RTX
4090 from NVIDIA's Ada paper (fp32 accumulation), MI300X from AMD's data sheet. In fp32 half of it is assumed (TF32).
Prices are the rounded middle of what clouds asked by the hour in May 2026 (medians and ranges of mercatus-ai.com and
aimultiple.com); a device without one gets no cost. They move: `compute.hardware: {usd_per_hour: …}` has the last word.
"""

from __future__ import annotations

from dataclasses import dataclass

MFU = 0.4
"""Share of the peak that training is assumed to reach; PaLM (arXiv:2204.02311) reports 0.46. A run that
reaches less takes longer in proportion."""


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
        Device("a100-40gb", 40, 312),
        Device("a100-80gb", 80, 312, 1.5),
        Device("h100-80gb", 80, 989, 3.0),
        Device("h200-141gb", 141, 989, 4.0),
        Device("l4-24gb", 24, 121),
        Device("a10g-24gb", 24, 70),
        Device("rtx4090-24gb", 24, 165),
        Device("mi300x-192gb", 192, 1307),
    )
}
