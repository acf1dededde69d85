"""Limits of control groups: files as the kernel writes them, and a real group where one may be made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.machine.limits import memory_limit, usable_cpus

GIB = 2**30
CORES = len(os.sched_getaffinity(0))


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write files below a made-up tree and return the tree and the file that names the process's groups."""

    def make(own: str, files: dict[str, str]) -> tuple[Path, Path]:
        for name, text in files.items():
            file = tmp_path / "tree" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        (tmp_path / "own").write_text(own)
        return tmp_path / "tree", tmp_path / "own"

    return make


def test_version_2_in_a_container_has_its_limits_at_the_top(write: Any) -> None:
    # 50 ms of every 100 ms: half a core, which one thread can use.
    where = write("0::/\n", {"cpu.max": "50000 100000\n", "memory.max": f"{4 * GIB}\n"})
    assert usable_cpus(*where) == 1
    assert memory_limit(*where) == 4 * GIB


def test_version_2_on_a_host_takes_the_tightest_of_the_groups_around_it(write: Any) -> None:
    where = write(
        "0::/jobs/7/step\n",
        {
            "jobs/cpu.max": "max 100000\n",
            "jobs/memory.max": "max\n",
            "jobs/7/cpu.max": "100000 100000\n",
            "jobs/7/memory.max": f"{2 * GIB}\n",
            "jobs/7/step/memory.max": f"{3 * GIB}\n",
            "other/memory.max": "1\n",
        },
    )
    assert usable_cpus(*where) == 1
    assert memory_limit(*where) == 2 * GIB


def test_version_1_has_a_tree_per_controller(write: Any) -> None:
    where = write(
        "5:memory:/box\n3:cpu,cpuacct:/box\n2:cpuset:/\n",
        {
            "cpu/cpu.cfs_quota_us": "-1\n",  # none here,
            "cpu/cpu.cfs_period_us": "100000\n",
            "cpu/box/cpu.cfs_quota_us": "20000\n",  # a fifth of a core here
            "cpu/box/cpu.cfs_period_us": "100000\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",  # what version 1 says for none
            "memory/box/memory.limit_in_bytes": f"{GIB}\n",
        },
    )
    assert usable_cpus(*where) == 1
    assert memory_limit(*where) == GIB


def test_a_container_that_sees_its_group_as_the_top_but_is_told_its_name_outside(write: Any) -> None:
    where = write("4:memory:/docker/0f3a\n", {"memory/memory.limit_in_bytes": f"{GIB}\n"})
    assert memory_limit(*where) == GIB


@pytest.mark.parametrize("own", ["0::/\n", "3:cpu,cpuacct:/\n5:memory:/\n", ""])
def test_without_limits_there_is_none(own: str, write: Any, tmp_path: Path) -> None:
    version_2 = {"cpu.max": "max 100000\n", "memory.max": "max\n"}
    version_1 = {"cpu/cpu.cfs_quota_us": "-1\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"}
    where = write(own, version_2 | version_1)
    assert usable_cpus(*where) == CORES
    assert memory_limit(*where) is None
    assert memory_limit(tmp_path / "nowhere", tmp_path / "nowhere") is None


def test_a_share_above_the_cores_gives_no_more_than_the_cores(write: Any) -> None:
    where = write("0::/\n", {"cpu.max": f"{(CORES + 3) * 100000} 100000\n"})
    assert usable_cpus(*where) == CORES


def test_torch_takes_no_more_threads_than_a_real_group_allows() -> None:
    """The kernel's own files: half a core, and a stage computes with one thread."""
    group = Path(f"/sys/fs/cgroup/cpu/trueup-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group of version 1 can be made here: {error.strerror}")
    code = (
        "import os, sys, pathlib; pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()));"
        "from pipeline.machine.limits import usable_cpus; from pipeline.training.arguments import prepare_torch;"
        "from types import SimpleNamespace; from pipeline.kind.compute import ComputeSettings;"
        "from pipeline.parallel.dims import ParallelDims; compute = ComputeSettings(device='cpu');"
        "prepare_torch(SimpleNamespace(compute=compute, dims=ParallelDims(), ranks=1));"
        "import torch; print(usable_cpus(), torch.get_num_threads())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    try:
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text("50000")
        line = [sys.executable, "-c", code, str(group)]
        ended = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=800)
    finally:
        group.rmdir()
    assert ended.stdout.split() == ["1", "1"], ended.stderr
