"""The context of a stage: what it reports about its run, and what it knows of the run's processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.kind.compute import ComputeSettings
from pipeline.launch.job import Job, context_of
from pipeline.parallel.dims import ParallelDims
from pipeline.recipe import Compute
from pipeline.stage import StageContext


def _context(tmp_path: Path, compute: dict[str, Any]) -> StageContext:
    files = {"out": tmp_path, "work": tmp_path, "log": tmp_path / "log"}
    job = Job("one", "sft", {}, 1, **files, inputs={}, data={}, compute=Compute.model_validate(compute), rank=1)
    return context_of(job, lambda event: None, lambda: False)[0]


def test_a_job_becomes_a_context_with_the_dimensions_and_settings_of_its_recipe(tmp_path: Path) -> None:
    compute = Compute(processes=2, nodes=2, tensor_parallel=2, precision="bf16", micro_batch=4, threads=1)
    ctx = _context(tmp_path, compute.model_dump())
    assert ctx.dims == ParallelDims(4, tensor_parallel=2)
    assert (ctx.ranks, ctx.replicas, ctx.is_first) == (4, 2, False)
    assert ctx.compute == ComputeSettings(precision="bf16", micro_batch=4, threads=1)


def test_activations_are_recomputed_only_when_asked(tmp_path: Path) -> None:
    asked = [_context(tmp_path, {"activation_checkpointing": value}).compute for value in (True, False, "auto")]
    assert [one.recomputes for one in asked] == [True, False, False]


def test_what_is_reported_in_steps_stands_together(tmp_path: Path) -> None:
    ctx = _context(tmp_path, {})
    ctx.report(seen={"engine": "plain"}, liger=True)
    ctx.report(seen={"dtype": "float32"}, liger=False)
    assert ctx.runtime_report == {"seen": {"engine": "plain", "dtype": "float32"}, "liger": False}
