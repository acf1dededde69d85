"""The prompts of an evaluation: their selection, their groups, and their reference answers.

Owns the choice of rows and of the column with the reference answer. Knows nothing of models or of how rows are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.errors import PipelineError, Problem, listed, nearest
from pipeline.evaluation.stats.sampling import stratified
from pipeline.plain_data import Row, ShapedRow

REFERENCES = ("answer", "reference", "solution", "target", "ground_truth", "completion", "output", "chosen")
"""Names of columns with the reference answer, in order of preference; else the last turn of `messages` is used."""

DEFAULT_GROUP = "task"
"""Default column of a prompt's group; the data may lack it."""


class Asked(NamedTuple):
    """The selected prompts.

    Attributes:
        rows: rows with a `prompt` as messages and any further columns.
        places: index of each row in the data, from 0.
        groups: group of each row; empty without one.
        references: reference answer of each row; None without one.
        available: number of prompts in the data.
    """

    rows: list[ShapedRow]
    places: list[int]
    groups: list[str]
    references: list[Any]
    available: int

    @property
    def is_grouped(self) -> bool:
        """Whether any prompt has a group."""
        return any(self.groups)


def ask(
    rows: Sequence[ShapedRow], *, group_by: str, reference: str | None = None, limit: int | None, seed: int
) -> Asked:
    """Select the prompts of an evaluation: all rows, or a sample stratified by group.

    Args:
        rows: rows of the data.
        group_by: column with the group of a prompt.
        reference: column with the reference answer; by default the first of `REFERENCES` that exists.
        limit: size of the sample; None selects all rows.
        seed: seed of the sample.

    Raises:
        PipelineError: there are no rows, or none has the column ``reference``, or ``group_by`` other than the default.
    """
    if not rows:
        raise PipelineError(Problem("no prompts", "at least one", "check the data source"))
    _check_group(rows, group_by)
    column = _reference_column(rows, reference)
    groups = ["" if row.get(group_by) is None else str(row[group_by]) for row in rows]
    indices = list(range(len(rows))) if limit is None else stratified(groups, limit, seed=seed)
    return Asked(
        rows=[rows[index] for index in indices],
        places=indices,
        groups=[groups[index] for index in indices],
        references=[_reference(rows[index], column) for index in indices],
        available=len(rows),
    )


def _check_group(rows: Sequence[Row], group_by: str) -> None:
    if group_by != DEFAULT_GROUP and not any(group_by in row for row in rows):
        raise PipelineError(Problem(f"group_by `{group_by}`", *_columns(rows, group_by)))


def _columns(rows: Sequence[Row], wanted: str) -> tuple[str, str]:
    """Return the expected columns as text, and a suggestion for the one wanted."""
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "prompt"]
    return f"a column of the prompts: {listed(names) or 'there is none'}", nearest(wanted, names)


def _reference_column(rows: Sequence[Row], wanted: str | None) -> str:
    columns = {name for row in rows for name in row}
    if wanted is not None and wanted not in columns:
        raise PipelineError(Problem(f"reference `{wanted}`", *_columns(rows, wanted)))
    return wanted or next((name for name in REFERENCES if name in columns), "messages")


def _reference(row: Row, column: str) -> Any:
    """Return the reference answer of a prompt: the column's value, or the last turn if it is a conversation."""
    value = row.get(column)
    if not (isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value)):
        return value
    return value[-1].get("content") if value[-1].get("role") == "assistant" else None
