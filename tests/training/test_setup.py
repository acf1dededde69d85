"""The set-up that training stages share: how rows become optimizer steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.errors import PipelineError
from pipeline.stage import StageContext
from pipeline.training.fields import CommonTrain, nothing_fits
from pipeline.training.setup import schedule

LENGTHS = [3, 5, 4, 6, 2, 7, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("train", "steps"),
    # Ten rows make two whole batches of four: 2 steps per epoch, and an epoch and a half makes 3.
    [({"epochs": 1.0}, 2), ({"epochs": 1.5}, 3), ({"epochs": 3.0, "max_steps": 5}, 5)],
)
def test_rows_become_steps(train: dict[str, float], steps: int, make_context: Callable[..., StageContext]) -> None:
    plan = schedule(make_context(micro_batch=2), CommonTrain(batch_size=4, **train), LENGTHS, "rows")
    assert (plan.steps, plan.micro_batch, plan.batches.batches_per_epoch) == (steps, 2, 2)
    assert plan.batches.seed == 3  # of the context


def test_rows_follow_the_file_where_they_are_not_shuffled(make_context: Callable[..., StageContext]) -> None:
    train = CommonTrain(batch_size=4)
    plan = schedule(make_context(micro_batch=4), train, LENGTHS, "rows", shuffle=False)
    assert sorted(row for batch in plan.batches for row in batch) == [*range(8)]  # the incomplete batch is the last


def test_fewer_rows_than_a_batch_are_refused(make_context: Callable[..., StageContext]) -> None:
    with pytest.raises(PipelineError, match="10 rows to train on; expected at least one batch of 16"):
        schedule(make_context(micro_batch=16), CommonTrain(batch_size=16), LENGTHS, "rows")


def test_no_row_that_fits_is_one_line() -> None:
    assert str(nothing_fits("pair", 9)) == "no pair fits; expected pairs of at most 9 tokens. Raise train.max_length"
