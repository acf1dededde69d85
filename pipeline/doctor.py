"""Looks at the machine: what trueup needs, what would help, and whether the store can be written.

Owns the list of checks. Imports torch, since only torch can say what devices it sees; imports nothing else heavy.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from pipeline import __version__
from pipeline.environment import environment, installed

Status = Literal["ok", "optional", "missing"]

LEAST_FREE_GIB = 2
OPTIONAL = {
    "s3fs": ("push and pull to s3:// URLs", "pip install 'trueup[s3]'"),
    "gcsfs": ("push and pull to gs:// URLs", "pip install gcsfs"),
    "deepspeed": ("ZeRO on several GPUs", "pip install 'trueup[deepspeed]'"),
    "bitsandbytes": ("quantize: 4bit and 8bit adapters on a GPU", "pip install bitsandbytes"),
    "vllm": ("rollouts of ppo on a GPU several times faster", "pip install 'trueup[vllm]'"),
    "liger-kernel": ("fused kernels on a GPU: less memory, more tokens per second", "pip install 'trueup[liger]'"),
    "flash-attn": ("FlashAttention on a GPU: packed rows without masks", "pip install 'trueup[flash]'"),
    "pyarrow": ("Parquet data files", "pip install pyarrow"),
}
"""Package → what it brings, how to get it."""


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what.
        status: ``missing`` when trueup cannot work without it.
        found: what is there.
        remedy: what to do; empty when nothing.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""


def examine(store: Path) -> list[Check]:
    """Return every check, needed things first."""
    return [
        _python(),
        Check("trueup", "ok", f"{__version__} in {Path(__file__).parent}"),
        *_packages(),
        _torch(),
        _processor(),
        _memory(),
        _store(store),
        _disk(store),
        *_optional(),
    ]


def _python() -> Check:
    is_new = sys.version_info >= (3, 11)
    found = f"{platform.python_version()} ({sys.executable})"
    return Check("python", "ok" if is_new else "missing", found, "" if is_new else "install Python 3.11 or later")


def _packages() -> Iterator[Check]:
    """Compare installed packages with what trueup asks for."""
    for name, wanted in _requirements().items():
        version = installed(name)
        if name == "torch":
            continue
        if not version:
            yield Check(name, "missing", "not installed", f"pip install '{name}{wanted}'")
        elif not _fits(version, wanted):
            yield Check(name, "missing", f"{version}, needs {wanted}", f"pip install '{name}{wanted}'")
        else:
            yield Check(name, "ok", version)


def _requirements() -> dict[str, str]:
    """Return the packages trueup needs and their bounds; from the installed metadata, else those a stage records."""
    from pipeline.environment import PACKAGES

    try:
        lines = metadata.requires("trueup") or []
    except metadata.PackageNotFoundError:
        return dict.fromkeys(PACKAGES, "")
    needed = [line.partition(";")[0].strip() for line in lines if "extra ==" not in line]
    matches = (re.match(r"([A-Za-z0-9_.-]+)\s*(.*)", line) for line in needed)
    return {match[1]: match[2].strip("() ") for match in matches if match}


def _fits(version: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(wanted).contains(version, prereleases=True) if wanted else True


def _torch() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("torch", "missing", f"cannot be imported: {error}", "pip install torch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        devices = f"{len(names)} × {names[0]}, {memory:.0f} GiB each"
    elif torch.backends.mps.is_available():
        devices = "Apple GPU (mps)"
    else:
        devices = "CPU only"
    return Check("torch", "ok", f"{torch.__version__}, {devices}, {torch.get_num_threads()} threads")


def _processor() -> Check:
    facts = environment()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    note = f", OMP_NUM_THREADS={threads}" if threads else ""
    return Check("processor", "ok", f"{facts['cpu'] or 'unknown'}, {usable} of {facts['cpus']} cores usable{note}")


def _memory() -> Check:
    pages = {"total": "SC_PHYS_PAGES", "free": "SC_AVPHYS_PAGES"}
    try:
        amounts = {key: os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") / 2**30 for key, name in pages.items()}
    except (ValueError, OSError, AttributeError):
        return Check("memory", "ok", "unknown on this system")
    return Check("memory", "ok", f"{amounts['total']:.1f} GiB, {amounts['free']:.1f} GiB free")


def _store(store: Path) -> Check:
    """Write a file into the store, or where it would be made, and remove it."""
    where = _existing(store)
    try:
        with tempfile.NamedTemporaryFile(dir=where, prefix=".trueup-doctor-"):
            pass
    except OSError as error:
        remedy = "name another folder with --store or TRUEUP_STORE"
        return Check("store", "missing", f"{store} cannot be written: {error.strerror}", remedy)
    return Check("store", "ok", str(store) if store.exists() else f"{store}, made when first written")


def _disk(store: Path) -> Check:
    free = shutil.disk_usage(_existing(store)).free / 2**30
    remedy = "" if free >= LEAST_FREE_GIB else "free some space, or run `trueup gc`"
    return Check("disk", "ok" if free >= LEAST_FREE_GIB else "missing", f"{free:.1f} GiB free for the store", remedy)


def _existing(folder: Path) -> Path:
    """Return the folder, or the closest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _optional() -> Iterator[Check]:
    for name, (purpose, remedy) in OPTIONAL.items():
        version = installed(name)
        if version:
            yield Check(name, "ok", f"{version}: {purpose}")
        else:
            yield Check(name, "optional", f"not installed: {purpose}", remedy)
