"""The parallel dimensions of a run: sizes that follow from others, and the condition they must meet."""

from __future__ import annotations

import dataclasses
import re

import pytest

from pipeline.errors import PipelineError
from pipeline.kind.traits import MODEL_PARALLEL
from pipeline.parallel.dims import ParallelDims
from pipeline.recipe.schema import Compute
from pipeline.stage import KINDS


def test_one_process_holds_everything_by_default() -> None:
    dims = ParallelDims()
    assert (dims.replicas, dims.model_parallel_size, dims.is_sharded, dims.engine) == (1, 1, False, "plain")


@pytest.mark.parametrize(
    ("dims", "replicas", "group"),
    [
        (ParallelDims(8), 8, 1),
        (ParallelDims(8, tensor_parallel=4), 2, 4),
        (ParallelDims(8, pipeline_parallel=2, tensor_parallel=2), 2, 4),  # 8 = 2 stages × 2 shards × 2 replicas
        (ParallelDims(6, sequence_parallel=3, zero=1), 2, 3),
    ],
)
def test_model_parallel_groups_share_the_batch(dims: ParallelDims, replicas: int, group: int) -> None:
    assert (dims.replicas, dims.model_parallel_size) == (replicas, group)


@pytest.mark.parametrize(
    ("dims", "is_sharded", "engine"),
    [(ParallelDims(2, zero=3), True, "ZeRO-3"), (ParallelDims(2, fsdp=True), True, "FSDP2")],
)
def test_what_shards_the_training_state_has_a_name(dims: ParallelDims, is_sharded: bool, engine: str) -> None:
    assert (dims.is_sharded, dims.engine) == (is_sharded, engine)


def test_groups_that_do_not_divide_the_processes_are_no_dimensions() -> None:
    said = "compute.tensor_parallel is 4 on 6 processes; expected a multiple of 4 processes"
    with pytest.raises(PipelineError, match=re.escape(said)):
        ParallelDims(6, tensor_parallel=4)
    with pytest.raises(PipelineError):
        dataclasses.replace(ParallelDims(6, tensor_parallel=3), world_size=4)


def test_a_recipe_and_a_run_count_alike() -> None:
    compute = Compute(processes=4, nodes=3, tensor_parallel=2, zero=0)
    assert compute.dims == ParallelDims(12, tensor_parallel=2)
    assert (compute.dims.replicas, compute.dims.model_parallel_size) == (compute.replicas, compute.group) == (6, 2)
    sharded = Compute(processes=2, zero=3, offload="all").dims
    assert sharded == ParallelDims(2, zero=3, offload="all")


@pytest.mark.parametrize("dim", MODEL_PARALLEL)
def test_every_model_parallel_dimension_is_a_field_that_some_kind_supports(dim: str) -> None:
    assert dim in {field.name for field in dataclasses.fields(ParallelDims)}
    assert [name for name, kind in KINDS.items() if dim in kind.traits.compute.model_parallel]
