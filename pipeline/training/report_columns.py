"""Columns of held-out pairs that a user names for the reward card, and what is wrong with them. Torch-free.

Owns the names, the values and the problems, for a check before anything runs and for the stage itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from pipeline.errors import PipelineError, Problem, agreeing, counted, listed, nearest
from pipeline.plain_data import Row

_LONGEST_VALUE = 60
"""Characters of a value in a message."""


@dataclass(frozen=True)
class ReportColumns:
    """Columns that the reward card reads.

    Attributes:
        group_by: column with the group of a pair, such as its task.
        property_column: column that names the one property in which the answers of a pair differ.
    """

    group_by: str | None = None
    property_column: str | None = None

    @classmethod
    def of(cls, config: object) -> Self:
        """Return the columns that a stage's configuration names in the fields of the same names."""
        return cls(getattr(config, "group_by", None), getattr(config, "property_column", None))

    @property
    def named(self) -> Mapping[str, str]:
        """The name of each column that is given, by the field that names it."""
        fields = {"group_by": self.group_by, "property_column": self.property_column}
        return {field: name for field, name in fields.items() if name is not None}

    def groups(self, rows: Sequence[Row]) -> list[str] | None:
        """Return the group of each pair, empty for one in no group; None if no column names groups."""
        return None if self.group_by is None else [_filled(row, self.group_by) for row in rows]

    def properties(self, rows: Sequence[Row]) -> list[str] | None:
        """Return the one property in which the answers of each pair differ, empty if they differ in several.

        None if no column names properties.
        """
        return None if self.property_column is None else [_filled(row, self.property_column) for row in rows]

    def check(self, rows: Sequence[Row]) -> None:
        """Check the columns of the pairs that will be reported on, before a stage trains for them.

        Args:
            rows: held-out pairs as read.

        Raises:
            PipelineError: a column is missing or empty in all pairs, or a property is not text.
        """
        facts = {name: column_facts(rows, name) for name in self.named.values()}
        problems = list(self.problems(facts))
        if problems:
            raise PipelineError(*problems)

    def problems(self, facts: Mapping[str, ColumnFacts]) -> Iterator[Problem]:
        """Yield what is wrong with the columns; the first word of each problem is the field that names the column.

        Args:
            facts: what each named column holds.
        """
        for field, name in self.named.items():
            problem = _problem(field, name, facts[name])
            if problem is not None:
                yield problem


class ColumnFacts(NamedTuple):
    """What a column of held-out pairs holds; plain data, which a cache keeps.

    Attributes:
        pairs: number of pairs.
        filled: number of them with a value that is neither null nor empty.
        not_text: number of them whose value is not text.
        example: the first value that is not text, as JSON; empty if there is none.
        others: the columns that hold text in some pair.
    """

    pairs: int
    filled: int
    not_text: int
    example: str
    others: Sequence[str]


def column_facts(rows: Sequence[Row], name: str) -> ColumnFacts:
    """Return what the column ``name`` of rows holds."""
    values = [row.get(name) for row in rows]
    filled = sum(value is not None and value != "" for value in values)
    wrong = [value for value in values if value is not None and not isinstance(value, str)]
    columns = dict.fromkeys(column for row in rows for column, value in row.items() if isinstance(value, str))
    return ColumnFacts(len(rows), filled, len(wrong), _short(wrong[0]) if wrong else "", list(columns))


def _problem(field: str, name: str, facts: ColumnFacts) -> Problem | None:
    """Return what is wrong with the column that a field names; None if nothing is."""
    statement = f"{field} is `{name}`"
    is_property = field == "property_column"
    if not facts.pairs:
        if not is_property:
            return None
        advice = "name them in `test`, or set `held_out` of the data source"
        return Problem(f"{statement}, and there are no held-out pairs", "pairs to report on", advice)
    if not facts.filled:
        what = "the one property in which the answers of a pair differ" if is_property else "the group of a pair"
        columns = [f"`{one}`" for one in facts.others if one != name]
        has = "no value in that column" if facts.pairs == 1 else "a value in that column"
        whose = "the only held-out pair has" if facts.pairs == 1 else f"none of {facts.pairs:,} held-out pairs has"
        known = f"; the columns with text are {listed(columns)}" if columns else ""
        return Problem(f"{statement}, and {whose} {has}", f"one that names {what}{known}", nearest(name, facts.others))
    if is_property and facts.not_text:
        have = agreeing(facts.not_text, "has", "have")
        wrong = f"{facts.not_text:,} of {counted(facts.pairs, 'held-out pair')} {have} a value there that is not text"
        advice = "write the property as text, and null or an empty text where the answers differ in several"
        return Problem(f"{statement}, and {wrong} ({facts.example})", "the name of a property", advice)
    return None


def _filled(row: Row, column: str) -> str:
    """Return a value as text; empty if it is null or missing."""
    value = row.get(column)
    return "" if value is None else str(value)


def _short(value: Any) -> str:
    """Return a value as JSON, cut if it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
