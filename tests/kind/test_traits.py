"""The traits of a kind that names none are those of a plain training kind."""

from __future__ import annotations

from typing import Annotated

import pytest

from pipeline.kind.traits import PLAIN, ComputeSupport, Reading, RowCounts, Traits, Workload, fill_a_batch
from pipeline.rl.on_policy.fields import OnPolicyTrain
from pipeline.stage import Data, Kind, StageConfig
from pipeline.training.data.row_counts import (
    any_number,
    fill_a_batch_of_responses,
    fill_a_batch_of_sides,
    learn_and_hold_out,
)
from pipeline.training.fields import CommonTrain

TRAIN = CommonTrain(batch_size=8)


class Counting(StageConfig):
    data: Annotated[str, Data("text")]


class Training(Counting):
    train: CommonTrain = CommonTrain()


def _kind(config: type[StageConfig], traits: Traits = PLAIN) -> Kind:
    return Kind("new", 1, config, "nowhere:run", "model", "", traits)


def test_a_kind_with_a_train_block_is_forecast_and_one_without_is_not() -> None:
    assert _kind(Training).workload == Workload() and _kind(Training).trains
    assert _kind(Counting).workload is None and not _kind(Counting).trains
    asked = _kind(Counting, Traits(workload=Workload(over="answers")))
    assert asked.workload == Workload(over="answers") and not asked.trains


def test_a_field_is_read_by_its_shape_unless_a_kind_says_otherwise() -> None:
    traits = Traits(reads={"test": Reading({"preference": "scored_pairs"}, is_test=True)})
    assert traits.reading("data").encodings["preference"] == "pairs" and not traits.reading("data").is_test
    assert traits.reading("test").encodings == {"preference": "scored_pairs"}


def test_a_setting_of_train_takes_the_place_of_the_micro_batch() -> None:
    assert ComputeSupport().takes_micro_batch and not ComputeSupport(rows_per_pass="train.kl_batch").takes_micro_batch


@pytest.mark.parametrize(
    ("check", "train", "rows", "message"),
    [
        (fill_a_batch, TRAIN, RowCounts(8, 0, "messages"), ""),
        (fill_a_batch, TRAIN, RowCounts(7, 9, "messages"), "there are 7 rows to train on"),
        (fill_a_batch, TRAIN, RowCounts(7, 0, "preference"), "there are 7 pairs to train on"),
        (fill_a_batch, TRAIN, RowCounts(1, 0, "preference"), "there is 1 pair to train on"),
        (fill_a_batch, object(), RowCounts(0, 0, "text"), ""),  # no batch to fill
        (any_number, TRAIN, RowCounts(0, 0, "text"), ""),
        (fill_a_batch_of_sides, TRAIN, RowCounts(4, 0, "preference"), ""),  # 4 pairs are 8 rows
        (fill_a_batch_of_sides, TRAIN, RowCounts(3, 0, "preference"), "there are 6 rows (3 pairs) to train on"),
        (fill_a_batch_of_sides, TRAIN, RowCounts(1, 0, "preference"), "there are 2 rows (1 pair) to train on"),
        (fill_a_batch_of_sides, TRAIN, RowCounts(7, 0, "labelled"), "there are 7 rows to train on"),
        (fill_a_batch_of_sides, TRAIN, RowCounts(1, 0, "labelled"), "there is 1 row to train on"),
        # 8 responses a batch, 4 of each prompt: 2 prompts.
        (fill_a_batch_of_responses, OnPolicyTrain(batch_size=8, num_generations=4), RowCounts(2, 0, "prompt"), ""),
        (
            fill_a_batch_of_responses,
            OnPolicyTrain(batch_size=8, num_generations=4),
            RowCounts(1, 0, "prompt"),
            "there is 1 prompt to learn from",
        ),
        (learn_and_hold_out, object(), RowCounts(2, 0, "prompt"), ""),
        (learn_and_hold_out, object(), RowCounts(0, 5, "prompt"), "there are 0 prompts to learn from and 5 held out"),
    ],
)
def test_too_few_rows_are_said(check: object, train: object, rows: RowCounts, message: str) -> None:
    problem = check(train, rows)  # type: ignore[operator]
    assert (problem.found if problem is not None else "") == message


def test_rows_are_checked_only_where_a_stage_trains() -> None:
    too_few = RowCounts(1, 0, "text")
    assert _kind(Training).rows_problem(Training(data="d"), too_few) is not None
    assert _kind(Counting).rows_problem(Counting(data="d"), too_few) is None
