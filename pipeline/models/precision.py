"""Which number format computes fastest on this CPU: measured once, remembered for the machine.

bfloat16 is twice as slow as fp32 on a CPU without instructions for it and up to twice as fast on one with them
(`docs/log.md`), and no flag tells by how much. So a layer of the model's width is timed, forward and backward, in both.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.environment import cpu_name

SMALLEST_WIDTH = 512
"""Narrower models stay in fp32: casting costs them what the products gain."""

WORTH = 1.2
"""Times bf16 must be faster; a smaller gain is not worth its rounding."""

_TOKENS, _ROUNDS = 512, 5


HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats that fp32 weights compute in under autocast."""


def computing_in(precision: str, device: torch.device | str) -> AbstractContextManager[Any]:
    """Compute in a number format whatever that of the weights; nothing changes with ``fp32``."""
    dtype = HALF.get(precision)
    return nullcontext() if dtype is None else torch.autocast(torch.device(device).type, dtype)


def fastest_precision(width: int, cache: Path | None = None) -> Literal["fp32", "bf16"]:
    """Return the faster format for a model of ``width`` hidden units on this CPU.

    Args:
        width: hidden size of the model; below `SMALLEST_WIDTH` nothing is measured.
        cache: file of remembered answers; the user's cache folder by default.
    """
    if width < SMALLEST_WIDTH:
        return "fp32"
    file = cache or _cache_file()
    key = f"{cpu_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads, width {width}"
    known = _read(file)
    if key not in known:
        known[key] = round(speedup(width), 3)
        _write(file, known)
    return "bf16" if known[key] >= WORTH else "fp32"


def speedup(width: int) -> float:
    """Return how many times faster bf16 autocast is than fp32, for a linear layer of ``width`` by 3 ``width``."""
    inputs = torch.randn(_TOKENS, width, requires_grad=True)
    weight = torch.randn(3 * width, width, requires_grad=True)
    fp32, bf16 = (statistics.median(_timed(inputs, weight, lower)) for lower in (False, True))
    return fp32 / bf16


def _timed(inputs: torch.Tensor, weight: torch.Tensor, lower: bool) -> list[float]:
    seconds = []
    for _ in range(_ROUNDS + 1):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            out = torch.nn.functional.linear(inputs, weight)
        torch.autograd.backward(out.float().sum())
        seconds.append(time.perf_counter() - started)
    return seconds[1:]  # the first one prepares


def _cache_file() -> Path:
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # a user without a home, as a container may have
        folder = Path(tempfile.gettempdir())
    return folder / "trueup" / "precision.json"


def _read(file: Path) -> dict[str, float]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _write(file: Path, known: dict[str, float]) -> None:
    with contextlib.suppress(OSError):  # a home that cannot be written is measured again
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(known, indent=1, sort_keys=True), encoding="utf-8")
        part.replace(file)
