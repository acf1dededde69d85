"""What this process may use of its machine: cores and memory, as Linux's control groups limit them.

A container or a batch job sees every core and byte of its machine; what it may use stands in files of its control
group. Owns the reading of those files (versions 1 and 2). Elsewhere there are none, and so no limit.

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
"""Bytes from which a limit of version 1 means that there is none."""


def usable_cpus(tree: Path = _TREE, own: Path = _OWN) -> int:
    """Return how many threads can compute at once: the cores the process may run on, or its share of time if less.

    Args:
        tree: where control groups are mounted.
        own: file that tells which groups the process is in.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(share) for share in _cpu_shares(tree, own))]))


def memory_limit(tree: Path = _TREE, own: Path = _OWN) -> int | None:
    """Return the bytes the process and those beside it may use together; None without a limit.

    Args:
        tree: where control groups are mounted.
        own: file that tells which groups the process is in.
    """
    files = _files("memory", "memory.max", "memory.limit_in_bytes", tree, own)
    limits = [_number(word) for folder, name in files for word in _words(folder / name)]
    return min((int(limit) for limit in limits if limit < _NO_LIMIT), default=None)


def _cpu_shares(tree: Path, own: Path) -> Iterator[float]:
    """Yield every limit on time, in cores: microseconds of computing in a period over the period."""
    for folder, name in _files("cpu", "cpu.max", "cpu.cfs_quota_us", tree, own):
        words = _words(folder / name)
        if name == "cpu.cfs_quota_us":
            words += _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and 0 < _number(words[0]) < math.inf:
            yield _number(words[0]) / _number(words[1])


def _files(controller: str, second: str, first: str, tree: Path, own: Path) -> Iterator[tuple[Path, str]]:
    """Yield the folders whose limits hold, the process's own group and those around it, with the file's name.

    Args:
        controller: `cpu` or `memory`.
        second: the file's name in version 2.
        first: the file's name in version 1.
        tree: where control groups are mounted.
        own: file that tells which groups the process is in.
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
        group = top / path.lstrip("/")  # absent inside a container that sees its own group as the top
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
