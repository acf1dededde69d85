"""Finds columns and keys of turns that nothing reads, and those among them that belong in the prompt.

A column that holds a part of the prompt (`input` beside `prompt`) is a problem, unless the prompt contains its text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipeline.errors import Problem, listed
from pipeline.plain_data import Row
from pipeline.records.columns.names import plain_name
from pipeline.records.faults import BadRowError
from pipeline.records.shapes.comparisons import further_answers
from pipeline.records.shapes.conversion import LABELS
from pipeline.records.shapes.formats import MESSAGES_AS_TEXT, of_openai, read_columns
from pipeline.records.shapes.turns import MEDIA_KEYS, listed_messages, unused_keys
from pipeline.stage import Shape

ASKED = (
    "input",
    "instruction",
    "context",
    "history",
    "tools",
    "functions",
    "system",
    "system_prompt",
    "system_message",
)
"""Columns that data sets use for parts of the prompt, in snake case."""

OF_CHOICE = frozenset({"propensity"})
"""Columns that say how a pair was chosen: they are no part of it, and nobody misses them in training."""


class Unused:
    """Collects, over the good rows of a source, the columns and keys of turns that are not read."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._columns: dict[str, None] = {}
        self._keys: dict[str, None] = {}
        self._seen: set[str] = set()  # all columns of rows in which a part of the prompt is lost
        self._further = False  # whether a lost column is a third answer
        self._lost: dict[str, str] = {}  # lost column to the format of its row

    def look(self, row: Row, row_format: str, shaped_row: Row) -> None:
        """Record what is not read of a row.

        Args:
            row: columns, renamed as the recipe asks.
            row_format: format the row was read in.
            shaped_row: the row in the stage's shape.
        """
        read = read_columns(row_format, row)
        for column in row.keys() - read - OF_CHOICE if not row.keys() <= read else ():
            value = row[column]
            if value is None or value == "" or value == [] or (self.shape == "labelled" and column == _label_of(row)):
                continue
            if column not in self._lost and self._is_lost(column, row, row_format, shaped_row):
                self._lost[column] = row_format
                self._further |= row_format == "comparison" and column in further_answers(row)
                self._seen |= row.keys()
            self._columns[column] = None
        self._look_at_system(row, read, shaped_row)
        for column in row.keys() & read:
            self._look_at_turns(column, row[column])
        openai = row.get("input")
        if of_openai(row) is not row and isinstance(openai, Mapping):
            self._look_at_turns("input.messages", openai.get("messages"))
            unread = openai.keys() - {"messages", "tools"}
            self._keys |= {f"input.{key}": None for key in unread if openai[key] not in (None, "", [], {})}

    def _look_at_turns(self, name: str, value: object) -> None:
        """Record the unread keys of turns in a column, which holds them as a list or as text."""
        if isinstance(value, str) and MESSAGES_AS_TEXT.match(value):
            try:
                value = listed_messages(value, name)
            except BadRowError:  # plain text
                return
        for message in value if isinstance(value, list) else ():
            self._keys |= {f"{name}[].{key}": None for key in unused_keys(message)}

    def _look_at_system(self, row: Row, read: frozenset[str], shaped_row: Row) -> None:
        """Record a `system` column whose conversation has another system turn."""
        system, turns = row.get("system"), shaped_row.get("messages" if self.shape == "messages" else "prompt")
        is_read = "system" in read and isinstance(system, str) and bool(system.strip()) and self.shape != "text"
        if is_read and turns and turns[0]["content"].strip() != str(system).strip():
            self._columns["system"] = None

    def _is_lost(self, column: str, row: Row, row_format: str, shaped_row: Row) -> bool:
        """Return whether a column holds a part of the prompt that the shaped row lacks."""
        if self.shape == "text":
            return False
        known = plain_name(column)
        if known in MEDIA_KEYS or (row_format == "comparison" and column in further_answers(row)):
            return True
        holds_all = row_format in ("messages", "sharegpt", "hh")  # a conversation needs no further columns
        if known not in ASKED or (holds_all and not known.startswith("system")):
            return False
        value, asked = row[column], shaped_row.get("prompt") or shaped_row.get("messages") or []
        return not (isinstance(value, str) and any(value in turn["content"] for turn in asked))

    def names(self) -> tuple[str, ...]:
        """Return the columns and the keys of turns that are not read, sorted."""
        named = self._columns.keys() & {"system"} if self.shape in ("prompt", "candidates") else self._columns
        columns = sorted(named)
        return (*columns, *sorted(self._keys))

    def problem(self, name: str, columns: Mapping[str, str]) -> Problem | None:
        """Return the problem of columns missing in the prompt, with a way to use them; None if none is missing.

        Args:
            name: name of the source.
            columns: the recipe's renaming of columns.
        """
        if not self._lost:
            return None
        lost = sorted(self._lost)
        first = "input" if "input" in lost else lost[0]
        known = plain_name(first)
        named = listed(f"`{column}`" for column in lost)
        statement = f"data {name}: column{'s' if len(lost) > 1 else ''} {named} would not reach the model"
        if known in MEDIA_KEYS:
            return Problem(statement, "text only: models here read no pictures, sound or film", "use rows without them")
        has_input = "input" in self._seen or "input" in columns.values()
        keep = f"if it is no part of the prompt, set `columns: {written({**columns, first: 'note'})}`"
        if self._further:
            noted = written({**columns, **{column: f"note_{at}" for at, column in enumerate(lost, start=1)}})
            remedy = "write the answers of a row as a list `responses` with their `ranks`"
            return Problem(statement, "two answers", f"{remedy}; or, to leave them out, set `columns: {noted}`")
        if known == "input" or (known == "context" and not has_input):
            joined = {"prompt": "instruction", "completion": "output"}
            unchanged = {one: one for one in joined if one in self._seen and one not in columns.values()}
            new = {old: joined.get(ours, ours) for old, ours in {**unchanged, **columns, first: "input"}.items()}
            new = {old: ours for old, ours in new.items() if old != ours}
            use = f"set `columns: {written(new)}`" if new else "leave `columns` out"
            remedy = f"{use}, which joins the two"
        elif known.startswith("system") and "system" not in self._seen:
            remedy = f"set `columns: {written({**columns, first: 'system'})}`"
        else:
            remedy = "put it into the messages of a conversation"
        return Problem(statement, "", f"{remedy}; or, {keep}")


def _label_of(row: Row) -> str | None:
    """Return the column that is read as the label; None if there is none."""
    return next((name for name in LABELS if row.get(name) not in (None, "")), None)


def written(columns: Mapping[str, str]) -> str:
    """Return the YAML of a `columns` mapping."""
    return "{" + ", ".join(f"{_quoted(old)}: {new}" for old, new in columns.items()) + "}"


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_][\w.-]*", name) else f'"{name}"'
