"""A batch stays the same however many processes share it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.parallel.division import TOKEN_BUDGET, Division, divide


@pytest.mark.parametrize(
    ("batch_size", "asked", "longest", "expected"),
    [
        (16, 4, 10, 4),
        (16, 5, 10, 4),  # the largest divisor of 16 that is at most 5
        (16, 100, 10, 16),
        (12, 8, 10, 6),
        (7, 3, 10, 1),
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


@given(
    share=st.integers(1, 64),
    processes=st.integers(1, 16),
    asked=st.one_of(st.just("auto"), st.integers(1, 100)),
    longest=st.integers(1, 30_000),
)
def test_rows_times_passes_times_processes_is_the_batch(
    share: int, processes: int, asked: int | str, longest: int
) -> None:
    division = divide(share * processes, asked, longest, processes)
    assert division.micro_batch * division.accumulation * division.processes == share * processes
    if isinstance(asked, int):
        assert division.micro_batch <= asked
    else:
        assert division.micro_batch == 1 or division.micro_batch * longest <= TOKEN_BUDGET


@pytest.mark.parametrize(
    ("batch_size", "processes", "near"),
    [(16, 3, "15 or 18"), (2, 4, "use 4"), (100, 8, "96 or 104")],
)
def test_a_batch_that_does_not_divide_names_the_nearest_that_does(batch_size: int, processes: int, near: str) -> None:
    with pytest.raises(PipelineError, match=f"does not divide over {processes} processes.*{near}"):
        divide(batch_size, "auto", 10, processes)


def test_rows_of_a_group_stay_together() -> None:
    assert divide(32, "auto", 10, 4, group=8).micro_batch == 8
    with pytest.raises(PipelineError, match=r"over 8 processes, 8 of a prompt together.*a multiple of 64"):
        divide(32, "auto", 10, 8, group=8)


def test_the_sentence_is_the_arithmetic() -> None:
    assert Division(16, 2, 4).sentence("pairs", 160) == (
        "2 pairs × 2 accumulated × 4 processes = 16 pairs per optimizer step of at most 160 tokens"
    )
    assert Division(8, 8).sentence() == "8 rows × 1 process = 8 rows per optimizer step"
