"""A batch stays the same however many processes share it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.parallel.batch_split import TOKEN_BUDGET, BatchSplit, divide
from pipeline.parallel.dims import ParallelDims


@pytest.mark.parametrize(
    ("batch_size", "asked", "longest", "expected"),
    [
        (16, 4, 10, 4),
        (16, 100, 10, 16),  # more than there are: all of them
        (12, 6, 10, 6),
        (7, 1, 10, 1),
        (16, "auto", 1024, 16),  # 16 × 1,024 = 16,384: exactly the budget
        (16, "auto", 1025, 8),
        (16, "auto", 20_000, 1),  # one row is more than the budget: there is no less than one
        (12, "auto", 4000, 4),  # 4 × 4,000 = 16,000; 6 would be 24,000
    ],
)
def test_micro_batch_divides_the_batch_within_what_is_allowed(
    batch_size: int, asked: int | str, longest: int, expected: int
) -> None:
    assert divide(batch_size, asked, longest).micro_batch == expected


@pytest.mark.parametrize(
    ("batch_size", "asked", "processes", "words"),
    [
        (16, 5, 1, r"micro_batch 5 does not divide the 16 rows of train.batch_size.*one of 1, 2, 4, 8, 16.*Use 4 or 8"),
        (7, 3, 1, "Use 1 or 7"),
        (48, 8, 4, "does not divide the 12 rows of train.batch_size that each of 4 processes has.*Use 6 or 12"),
    ],
)
def test_a_micro_batch_that_does_not_divide_names_the_nearest_that_do(
    batch_size: int, asked: int, processes: int, words: str
) -> None:
    with pytest.raises(PipelineError, match=words):
        divide(batch_size, asked, 10, processes)


@pytest.mark.parametrize(("asked", "expected"), [("auto", 2), (8, 2), (4, 2), (2, 2), (1, 1)])
def test_a_pipeline_has_a_pass_for_each_of_its_parts(asked: int | str, expected: int) -> None:
    assert (
        divide(16, asked, 10, 2, dims=ParallelDims(6, pipeline_parallel=3)).micro_batch == expected
    )  # 8 rows each, in 3 passes at least: 2 rows


@given(
    share=st.integers(1, 64),
    processes=st.integers(1, 16),
    asked=st.one_of(st.just("auto"), st.integers(1, 100)),
    longest=st.integers(1, 30_000),
)
def test_rows_times_passes_times_processes_is_the_batch(
    share: int, processes: int, asked: int | str, longest: int
) -> None:
    if isinstance(asked, int) and asked < share and share % asked:
        with pytest.raises(PipelineError) as caught:
            divide(share * processes, asked, longest, processes)
        below, above = map(int, str(caught.value.problems[0].remedy).removeprefix("use ").split(" or "))
        assert below < asked < above and share % below == share % above == 0
        return
    division = divide(share * processes, asked, longest, processes)
    assert division.micro_batch * division.accumulation * division.processes == share * processes
    if isinstance(asked, int):
        assert division.micro_batch <= asked
    else:
        assert division.micro_batch == 1 or division.micro_batch * longest <= TOKEN_BUDGET


@pytest.mark.parametrize(
    ("batch_size", "processes", "near"),
    [(16, 3, "15 or 18"), (2, 4, "Use 4"), (100, 8, "96 or 104")],
)
def test_a_batch_that_does_not_divide_names_the_nearest_that_does(batch_size: int, processes: int, near: str) -> None:
    with pytest.raises(PipelineError, match=f"does not divide over {processes} processes.*{near}"):
        divide(batch_size, "auto", 10, processes)


def test_groups_of_processes_that_work_on_the_same_rows_are_named() -> None:
    with pytest.raises(PipelineError, match=r"9 does not divide over 2 groups of 4 processes.*Use 8 or 10"):
        divide(9, "auto", 10, 2, dims=ParallelDims(8, tensor_parallel=4))


def test_rows_of_a_group_stay_together() -> None:
    assert divide(32, "auto", 10, 4, rows_per_unit=8).micro_batch == 8
    with pytest.raises(PipelineError, match=r"over 8 processes, 8 of a prompt together.*a multiple of 64"):
        divide(32, "auto", 10, 8, rows_per_unit=8)


def test_the_sentence_is_the_arithmetic() -> None:
    assert BatchSplit(16, 2, 4).sentence("pairs", 160) == (
        "2 pairs × 2 accumulated × 4 processes = 16 pairs per optimizer step of at most 160 tokens"
    )
    assert BatchSplit(8, 8).sentence() == "8 rows × 1 process = 8 rows per optimizer step"
