"""The device a stage is forecast for: a named one, or this machine.

This machine is its first GPU with that GPU's memory, else the CPU and the memory the container may use.

Imports no torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from pipeline.estimate.devices import DEVICES, Device, peak_tflops
from pipeline.machine.limits import memory_limit
from pipeline.recipe.hardware import Hardware
from pipeline.recipe.schema import Compute

DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of NVIDIA's and AMD's drivers, and of WSL's."""


def device_of(compute: Compute) -> Device:
    """Return the device a stage is forecast for: the one `compute.hardware` names, else this machine's."""
    asked = compute.hardware
    if asked is not None:
        return (Hardware(name=asked) if isinstance(asked, str) else asked).device
    return this_machine(gpu=compute.device in ("auto", "cuda"))


@cache
def this_machine(*, gpu: bool) -> Device:
    """Return the device on which stages run on this machine.

    Args:
        gpu: whether a GPU may be used if there is one.
    """
    return (_gpu() if gpu else None) or Device("cpu", _memory_bytes() / 2**30, is_gpu=False)


def has_no_gpu() -> bool:
    """Return whether this machine certainly has no GPU: no driver's device file exists and nvidia-smi names none."""
    return not any(Path(file).exists() for file in DRIVERS) and _gpu() is None


def _gpu() -> Device | None:
    """Ask nvidia-smi for the first GPU's name and memory; look up its peak and its price by that name."""
    if shutil.which("nvidia-smi") is None:
        return None
    line = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode or not done.stdout.strip():
        return None
    name, _, mib = done.stdout.splitlines()[0].rpartition(",")
    plain_name = name.lower().replace(" ", "").replace("-", "")
    gib = float(mib) / 1024
    known = [d for d in DEVICES.values() if d.name.partition("-")[0] in plain_name and abs(d.memory_gib - gib) < 10]
    price = known[0].usd_per_hour if known else 0.0
    return Device(name.strip(), gib, peak_tflops(name) or 0.0, price, host_gib=_memory_bytes() / 2**30)


def _memory_bytes() -> float:
    """Return the bytes of memory of this machine, or the limit of its control group if that is lower."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(total, memory_limit() or total)
