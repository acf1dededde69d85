"""Cache of how much faster bf16 computes than fp32 on this CPU, measured once per machine. No torch.

A processor without bf16 instructions is never measured: it emulates them at half the speed of fp32 (`docs/log.md`). On
a processor that has them, no CPU flag tells how fast they are.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.machine.disk import keep_if_possible
from pipeline.machine.environment import cpu_name, installed
from pipeline.plain_data import JsonObject

SMALLEST_WIDTH = 512
"""Narrower models stay in fp32: casting costs as much as the faster matrix products gain."""

WIDEST = 2048
"""Wider models are measured at this width: the gain hardly changes beyond, and a trial there takes seconds."""

WORTH = 1.2
"""Factor by which bf16 must be faster; a smaller gain is not worth its rounding."""

NO_INSTRUCTIONS = "this processor has no instructions for bf16"

_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
"""CPU flags for bf16 on x86-64 and arm64, as Linux names them."""
_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables that keep torch or oneDNN from using instructions; each setting is measured separately."""


@dataclass(frozen=True)
class Speed:
    """Milliseconds that one pass of a linear layer takes in each format, the fastest of several trials.

    Attributes:
        fp32_ms: in fp32.
        bf16_ms: in bf16, by autocast.
    """

    fp32_ms: float
    bf16_ms: float

    @property
    def ratio(self) -> float:
        """How many times faster bf16 is."""
        return self.fp32_ms / self.bf16_ms

    @property
    def faster(self) -> Literal["fp32", "bf16"]:
        """The format to compute in."""
        return "bf16" if self.ratio >= WORTH else "fp32"

    def words(self, width: int) -> str:
        """Return the measurement as a sentence."""
        times = f"{self.fp32_ms:.3g} ms in fp32, {self.bf16_ms:.3g} ms in bf16"
        return f"bf16 is {self.ratio:.2g} times as fast as fp32 on a layer of {width:,} units ({times})"


def has_bf16(info: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Return whether the processor has bf16 instructions; None where the system does not tell."""
    try:
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), None)
    return None if flags is None else not _FLAGS.isdisjoint(flags.partition(":")[2].split())


def recall(width: int, threads: int, cache: Path | None = None) -> Speed | None:
    """Return the cached measurement for a width and a number of threads; None if there is none."""
    return _speed(_read(cache or cache_file()).get(_key(width, threads)))


def remember(width: int, threads: int, speed: Speed, cache: Path | None = None) -> Speed:
    """Cache a measurement; return the one that counts, since another process may have cached its own first."""
    file = cache or cache_file()
    known = _read(file)
    first = _speed(known.get(_key(width, threads)))
    if first is not None:
        return first
    known[_key(width, threads)] = asdict(speed)
    keep_if_possible(file, json.dumps(known, indent=1, sort_keys=True))
    return speed


def possible_formats(width: int, cache: Path | None = None) -> tuple[Literal["fp32", "bf16"], ...]:
    """Return the formats that `auto` may choose on this CPU: one where it is known, both before it was measured.

    Measurements with any number of threads count, because stages may use different numbers.
    """
    if width < SMALLEST_WIDTH or has_bf16() is False:
        return ("fp32",)
    known = _read(cache or cache_file())
    around = _key(width, 0).split("0 threads")
    speeds = [_speed(value) for key, value in known.items() if key.startswith(around[0]) and key.endswith(around[1])]
    formats = {speed.faster for speed in speeds if speed is not None}
    return ("fp32", "bf16") if len(formats) != 1 else (formats.pop(),)


def cache_file() -> Path:
    """Return the cache file of this machine's measurements, in the user's cache folder."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # a user without a home, as a container may have
        folder = Path(tempfile.gettempdir())
    return folder / "trueup" / "precision.json"


def _key(width: int, threads: int) -> str:
    limits = "".join(f", {name}={os.environ[name]}" for name in _LIMITS if name in os.environ)
    return f"{cpu_name()}, torch {installed('torch')}{limits}, {threads} threads, width {min(width, WIDEST)}"


def _read(file: Path) -> JsonObject:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _speed(value: Any) -> Speed | None:
    """Return a cached measurement; None if the entry is not valid."""
    try:
        speed = Speed(float(value["fp32_ms"]), float(value["bf16_ms"]))
    except (TypeError, KeyError, ValueError):
        return None
    return speed if speed.fp32_ms > 0 and speed.bf16_ms > 0 else None
