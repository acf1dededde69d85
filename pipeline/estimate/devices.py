"""Peak throughput, memory and price of devices, from the makers' data sheets.

In fp32, half of the bf16 peak is assumed (TF32). Prices are rounded medians of what clouds asked per hour in May 2026
(mercatus-ai.com and aimultiple.com). A device without a price gets no cost. `compute.hardware: {usd_per_hour: …}`
overrides the price.
"""

from __future__ import annotations

from dataclasses import dataclass

MFU = 0.4
"""Share of the peak that training is assumed to reach; PaLM (arXiv:2204.02311) reports 0.46. A run that
reaches less takes longer in proportion."""


PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.4,
    "GH200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 70.0,
    "A10": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "MI300X": 1307.0,
}
"""Dense bf16 TFLOPS with fp32 accumulation, by card, from NVIDIA's and AMD's data sheets (half of "with sparsity")."""


@dataclass(frozen=True)
class Device:
    """One accelerator, or a machine's CPU and memory.

    Attributes:
        name: name of the device.
        memory_gib: memory of one device.
        tflops: dense bf16 peak; 0 when unknown, then no hours are estimated.
        usd_per_hour: price of one device; 0 when unknown.
        is_gpu: whether the device is a GPU.
        host_gib: host memory of the machine a GPU is in; 0 when unknown, then offloaded state is assumed to fit.
    """

    name: str
    memory_gib: float
    tflops: float = 0.0
    usd_per_hour: float = 0.0
    is_gpu: bool = True
    host_gib: float = 0.0


DEVICES = {
    device.name: device
    for device in (
        Device("a100-40gb", 40, PEAK_TFLOPS["A100"]),
        Device("a100-80gb", 80, PEAK_TFLOPS["A100"], 1.5),
        Device("h100-80gb", 80, PEAK_TFLOPS["H100"], 3.0),
        Device("h200-141gb", 141, PEAK_TFLOPS["H200"], 4.0),
        Device("l4-24gb", 24, PEAK_TFLOPS["L4"]),
        Device("a10g-24gb", 24, PEAK_TFLOPS["A10G"]),
        Device("rtx4090-24gb", 24, PEAK_TFLOPS["RTX 4090"]),
        Device("mi300x-192gb", 192, PEAK_TFLOPS["MI300X"]),
    )
}


def peak_tflops(card: str) -> float | None:
    """Return the bf16 peak of a card by the name CUDA reports; None if it is not in the table."""
    names = [name for name in PEAK_TFLOPS if all(word in card.split() or word in card for word in name.split())]
    return PEAK_TFLOPS[max(names, key=len)] if names else None
