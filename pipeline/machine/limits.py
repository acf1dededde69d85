"""Limits of this process on cores and memory, as set by Linux control groups (cgroups).

A container or a batch job sees all cores and memory of its machine; its limits are in the files of its cgroup. Owns the
reading of those files (cgroup versions 1 and 2). Other systems have no such files, and so no limit.

Reference: docs.kernel.org, admin-guide/cgroup-v2 (cpu.max, memory.max) and scheduler/sched-bwc, cgroup-v1/memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

_TREE = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_NO_LIMIT = 2**60
"""Bytes from which a limit of cgroup version 1 means no limit."""


def usable_cpus(tree: Path = _TREE, own: Path = _OWN) -> int:
    """Return the number of threads that can run at once: the process's CPU affinity, or its CPU quota if lower.

    Args:
        tree: mount point of the cgroups.
        own: file with the cgroups of the process.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(share) for share in _cpu_shares(tree, own))]))


def memory_limit(tree: Path = _TREE, own: Path = _OWN) -> int | None:
    """Return the memory limit in bytes, which all processes of the cgroup share; None without a limit.

    Args:
        tree: mount point of the cgroups.
        own: file with the cgroups of the process.
    """
    files = _files("memory", "memory.max", "memory.limit_in_bytes", tree, own)
    limits = [_number(word) for folder, name in files for word in _words(folder / name)]
    return min((int(limit) for limit in limits if limit < _NO_LIMIT), default=None)


def _cpu_shares(tree: Path, own: Path) -> Iterator[float]:
    """Yield every CPU quota in cores: the quota in microseconds per period, over the period."""
    for folder, name in _files("cpu", "cpu.max", "cpu.cfs_quota_us", tree, own):
        words = _words(folder / name)
        if name == "cpu.cfs_quota_us":
            words += _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and 0 < _number(words[0]) < math.inf:
            yield _number(words[0]) / _number(words[1])


def _files(controller: str, second: str, first: str, tree: Path, own: Path) -> Iterator[tuple[Path, str]]:
    """Yield the folders of the process's cgroup and its ancestors, each with the name of its limit file.

    Args:
        controller: `cpu` or `memory`.
        second: name of the file in cgroup version 2.
        first: name of the file in cgroup version 1.
        tree: mount point of the cgroups.
        own: file with the cgroups of the process.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = tree / controller if controllers else tree
        group = top / path.lstrip("/")  # absent in a container whose own cgroup is the root
        for folder in (group, *group.parents):
            yield folder, first if controllers else second
            if folder == top:
                break


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split()
    except OSError:
        return []


def _number(word: str) -> float:
    return math.inf if word == "max" else float(word)
