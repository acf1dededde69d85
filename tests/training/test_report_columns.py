"""The columns that a reward card reads: their values, and what is wrong with them in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.training.report_columns import ReportColumns

TURNS = [{"role": "user", "content": "Hi"}]
ROWS: list[dict[str, Any]] = [
    {"prompt": TURNS, "task": "sum", "differs_in": "answer", "margin": 1.0, "blank": ""},
    {"prompt": TURNS, "task": None, "differs_in": None, "margin": None, "blank": None},
    {"prompt": TURNS, "task": 3, "differs_in": ""},
]


def test_a_pair_without_a_value_is_in_no_group_and_differs_in_no_single_property() -> None:
    columns = ReportColumns("task", "differs_in")
    assert columns.groups(ROWS) == ["sum", "", "3"]
    assert columns.properties(ROWS) == ["answer", "", ""]
    assert (ReportColumns().groups(ROWS), ReportColumns().properties(ROWS)) == (None, None)


def test_columns_that_name_something_in_some_pair_are_taken() -> None:
    given = [(("task", "differs_in"), ROWS), (("margin",), ROWS), ((), []), (("task",), [])]  # a group may be a number
    assert [ReportColumns(*names).check(rows) for names, rows in given] == [None] * 4  # no rows: there is no report


@pytest.mark.parametrize(
    ("columns", "rows", "said"),
    [
        (
            ReportColumns(property_column="differ_in"),
            ROWS,
            "property_column is `differ_in`, and none of 3 held-out pairs has a value in that column; expected one "
            "that names the one property in which the answers of a pair differ; the columns with text are `task`, "
            "`differs_in`, `blank`. Did you mean `differs_in`?",
        ),
        (
            ReportColumns(property_column="blank"),
            ROWS,
            "property_column is `blank`, and none of 3 held-out pairs has a",
        ),
        (
            ReportColumns("tusk"),
            ROWS,
            "group_by is `tusk`, and none of 3 held-out pairs has a value in that column; exp",
        ),
        (
            ReportColumns("tusk"),
            ROWS[:1],
            "group_by is `tusk`, and the only held-out pair has no value in that column;",
        ),
        (
            ReportColumns(property_column="margin"),
            ROWS,
            "property_column is `margin`, and 1 of 3 held-out pairs has a value there that is not text (1.0); expected "
            "the name of a property. Write the property as text, and null or an empty text where",
        ),
        (
            ReportColumns(property_column="prompt"),
            ROWS,
            "property_column is `prompt`, and 3 of 3 held-out pairs have a value there that is not text ([{",
        ),
        (
            ReportColumns(property_column="differs_in"),
            [],
            "property_column is `differs_in`, and there are no held-out pairs; expected pairs to report on. Name",
        ),
    ],
)
def test_what_is_wrong_with_a_column_is_said_in_one_sentence(
    columns: ReportColumns, rows: list[dict[str, Any]], said: str
) -> None:
    with pytest.raises(PipelineError) as error:
        columns.check(rows)
    (problem,) = error.value.problems
    assert str(problem).startswith(said)


def test_both_columns_are_told_of_at_once() -> None:
    with pytest.raises(PipelineError) as error:
        ReportColumns("tusk", "differ_in").check(ROWS)
    assert [str(one).split()[0] for one in error.value.problems] == ["group_by", "property_column"]
