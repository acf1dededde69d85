"""Renames columns as `columns` of a data source asks, finds votes that this would hide, and suggests renamings.

A name may be a path into an object: ``{info.post: prompt}``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.errors import Problem, listed
from pipeline.plain_data import JsonObject, Row
from pipeline.records.columns.names import plain_name
from pipeline.records.columns.two_answers import (
    BOOLEANS,
    SIDE_WORDS,
    VOTE_WORDS,
    TwoAnswers,
    by_name_of,
    index_of,
    new_names,
    opened,
    points_of,
    readings,
    renamings,
)
from pipeline.records.columns.unused import Unused, written
from pipeline.records.faults import BadRowError
from pipeline.records.shapes.comparisons import ANSWER, is_comparison, sides_of, votes_problem
from pipeline.records.shapes.conversion import label_in, shaped
from pipeline.records.shapes.detection import detected_format
from pipeline.records.shapes.formats import FORMATS
from pipeline.records.shapes.votes import ANNOTATOR, NAMES, ONE_HOT, WEAK, as_number, vote_columns
from pipeline.stage import Shape

ROWS_TRIED = 20
IGNORED = re.compile(r"note(_\w+)?")
"""Matches names that no format reads; a column renamed to one is ignored, and a row may lack it."""
WORDS = frozenset({*SIDE_WORDS, "tie"})
LETTERS = frozenset({*WORDS, "[[a]]", "[[b]]"} - {"-1", "2", *BOOLEANS})
"""Values that name one of two sides, whatever the name of their column."""

TALKS = ("conversation", "conversations", "messages", "contents", "data", "dialogue", "dialog", "chat", "turns")
ASKED = (
    *("prompt", "question", "query", "problem", "instruction", "input", "ask", "request", "user"),
    *("user_prompt", "user_input", "user_message", "human"),
)
ANSWERS = (
    *("completion", "answer", "response", "output", "solution", "reply", "target", "assistant"),
    *("assistant_response", "model_response", "gpt", "bot"),
)
TEXTS = ("content", "contents", "document", "body", "raw_text", "article", "story")
PAIRS = (("preferred", "dispreferred"), ("good", "bad"), ("better", "worse"), ("positive", "negative"), ("win", "lose"))
SYSTEM = {"system_prompt": "system", "system_message": "system"}
KNOWN = frozenset({*NAMES, "margin", "label", "note"}.union(*(one.columns for one in FORMATS.values())))
"""Columns that a format reads."""


def renamed(row: Row, columns: Mapping[str, str]) -> JsonObject:
    """Rename the columns of a row.

    Raises:
        BadRowError: a column is missing, or another column already has the new name.
    """
    inner = {old: _inside(row, old) for old in columns if old not in row}
    missing = [old for old, value in inner.items() if value is _NOTHING and not IGNORED.fullmatch(columns[old])]
    if missing:
        raise BadRowError(f"has no column `{missing[0]}`, which `columns` names", f"it has {listed(row)}")
    opened = {old.partition(".")[0] for old in inner}
    occupied = [new for old, new in columns.items() if new in row and new not in {*columns, *opened} and new != old]
    if occupied:
        raise BadRowError(f"has a column `{occupied[0]}` already", "none, as `columns` gives another that name")
    renamed_row = {columns.get(name, name): value for name, value in row.items()}
    return _voting(
        {**renamed_row, **{columns[old]: value for old, value in inner.items() if value is not _NOTHING}}, columns
    )


def renamed_where_possible(row: Row, columns: Mapping[str, str]) -> JsonObject:
    """Rename the columns that a row has; ignore missing ones."""
    inner = {columns[old]: _inside(row, old) for old in columns if old not in row}
    renamed_row = {columns.get(name, name): value for name, value in row.items()}
    return _voting({**renamed_row, **{new: value for new, value in inner.items() if value is not _NOTHING}}, columns)


def _voting(row: JsonObject, columns: Mapping[str, str]) -> JsonObject:
    """Rename the answer that a row's vote names, too: a vote for column `gpt` becomes one for its new name."""
    answers = {old.casefold(): new for old, new in columns.items() if ANSWER.fullmatch(new)}
    if not answers:
        return row
    sides = sides_of(tuple(row))
    votes = vote_columns(tuple(row), sides) if sides is not None else ()
    if len(votes) != 1 or not isinstance(row[votes[0]], str):
        return row
    return {**row, votes[0]: answers.get(row[votes[0]].strip().casefold(), row[votes[0]])}


_NOTHING = object()


def _inside(row: Row, path: str) -> Any:
    """Return the value at a dotted path into a row; `_NOTHING` if there is none."""
    value: Any = row
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return _NOTHING
        value = value[key]
    return value


def hidden_vote_problem(rows: Sequence[Row], columns: Mapping[str, str], name: str) -> Problem | None:
    """Return a problem if `columns` always makes the same answer the better one although a column votes; else None.

    Args:
        rows: rows with the columns of the file.
        columns: the recipe's renaming.
        name: name of the source.
    """
    old_names = {new: old for old, new in columns.items()}
    if "ranked" in old_names:
        unrenamed = [{one: value for one, value in row.items() if one not in columns} for row in rows]
        lists = [row.get(old_names["ranked"]) for row in rows]
        beside = [{**row, "ranked": answers} for row, answers in zip(unrenamed, lists, strict=True)]
        return _hidden_index_problem(beside, old_names["ranked"], name)
    first, second = old_names.get("chosen", ""), old_names.get("rejected", "")
    if not (first and second) or {first, second} == {"chosen", "rejected"}:
        return None
    rows = [{column: value for column, value in opened(row).items() if column not in columns} for row in rows]
    sides = (first, second)
    values = {column: [row.get(column) for row in rows] for column in dict.fromkeys(one for row in rows for one in row)}
    points = _deciding_points(sides, rows)
    votes = [column for column in values if _is_vote(column, values[column]) or _tells(column, rows, sides)]
    votes = [column for column in votes if column not in points] or [*points]
    if not votes:
        return None
    statement = f"data {name}: `columns` makes `{first}` the better answer in every row, and `{votes[0]}` says which is"
    use = _reading(columns, sides, votes[0], values[votes[0]], points)
    remedy = f"{use}; or, if it is no vote, rename it too: `{votes[0]}: note`"
    return Problem(statement, "answers in the order of the vote", remedy)


def _hidden_index_problem(rows: Sequence[Row], column: str, name: str) -> Problem | None:
    """Return a problem if a list is renamed to `ranked` although a column selects one of its answers; else None."""
    beside = next(filter(None, map(index_of, rows)), None)
    if beside is None:
        return None
    vote = beside[1]
    statement = (
        f"data {name}: `columns` makes the first of `{column}` the best answer in every row, and `{vote}` says which is"
    )
    use = "write a column `ranks`, a list with 1 for the best answer"
    remedy = f"{use}; or, if it is no vote, rename it too: `{vote}: note`"
    return Problem(statement, "answers in the order of the vote", remedy)


def _reading(
    columns: Mapping[str, str], sides: tuple[str, str], vote: str, values: Sequence[object], points: tuple[str, ...]
) -> str:
    """Return the advice to read two answers by their vote instead of always preferring the first."""
    rest = {old: new for old, new in columns.items() if new not in ("chosen", "rejected")}
    empty_row = {sides[0]: "", sides[1]: "", **dict.fromkeys(points or (vote,), "")}
    if is_comparison(renamed_where_possible(empty_row, rest)):
        return f"{f'set `columns: {written(rest)}`' if rest else 'leave `columns` out'}, which reads the vote"
    texts = frozenset(str(value).casefold().removesuffix(".0") for value in values if value not in (None, ""))
    known = sides_of(sides)
    names = known.columns if known is not None and known.columns == sides else new_names(sides)
    if known is None and not {name.rpartition("_")[2] for name in names} & texts:
        names = ("response_a", "response_b")  # match `model_a` and `model_b`, which may name the answers' models
    two = TwoAnswers(sides, names, "" if vote in points else vote, texts, points=points)
    read = next(readings(two), None)
    if read is None and texts <= BOOLEANS:
        return by_name_of(two, rest)
    return f"set `columns: {written({**rest, **(read or {})})}`, which reads the vote"


def _tells(column: str, rows: Sequence[Row], sides: tuple[str, ...]) -> bool:
    """Return whether a column votes: its values name the answers or sides, and its name or values leave no doubt."""
    words: set[str] = set()
    for row in rows:
        value = row.get(column)
        if value is None or value == "":
            continue
        if not isinstance(value, str | int | float):
            return False
        words.add(str(value).casefold())
    answers = {side.casefold() for side in sides}
    if answers <= words <= {*answers, *WORDS} or (len(words) > 1 and words <= LETTERS):
        return True
    models = {str(row[name]).casefold() for row in rows for name in ("model_a", "model_b") if row.get(name)}
    is_told = len(words) > 1 and words <= {*answers, *WORDS, *models}
    numbers = [as_number(value) for value in words]
    is_signed = all(number is not None for number in numbers) and min(filter(None, numbers), default=0) < 0
    return (is_told or is_signed) and VOTE_WORDS.search(column) is not None


def _deciding_points(sides: tuple[str, str], rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the columns of the answers' points unless the first answer has more in every row; then return none."""
    points = points_of(sides, rows)
    for row in rows if points else ():
        first, second = (as_number(row.get(name)) for name in points)
        if "rank" in points[0].casefold():
            first, second = second, first
        if first is not None and second is not None and second >= first:  # a tie is no pair
            return points
    return ()


def _is_vote(column: str, values: Sequence[object]) -> bool:
    """Return whether a column's name is that of a vote, or a weaker name whose values name sides."""
    known = column.casefold()
    filled = [value for value in values if value is not None and value != ""]
    if not filled:
        return False
    if known in NAMES or ONE_HOT.match(column) or ANNOTATOR.match(column):
        return True
    if known not in WEAK and not known.startswith("is_"):
        return False
    words = {str(value).casefold().removesuffix(".0") for value in filled}
    return len(words) > 1 and words <= WORDS


def remedy_of(columns: Mapping[str, str]) -> str:
    """Return the advice to set `columns`."""
    sure = ", if the best answer stands first in it" if "ranked" in columns.values() else ""
    return f"set `columns: {written(columns)}`{sure}"


def suggested(rows: Sequence[Row], shapes: Iterable[Shape]) -> dict[str, str]:
    """Return a `columns` with which most of the first rows become a shape; empty if no candidate does.

    Args:
        rows: rows with the columns of the file.
        shapes: shapes the stage takes.
    """
    tried = rows[:ROWS_TRIED]
    if not tried:
        return {}
    spelt = _spelt(tried[0])
    plain = [renamed_where_possible(row, spelt) for row in tried]
    label_columns = ({name: "label"} for name in plain[0] if _is_label([row.get(name) for row in plain]))
    labels: list[dict[str, str]] = [{}, *label_columns]
    for shape in shapes:
        for columns in _candidates(plain, shape):
            for label in labels if shape == "labelled" else labels[:1]:
                columns_with_label = _over(spelt, {**columns, **label})
                if _works(tried, columns_with_label, shape):
                    return columns_with_label
    return {}


def _spelt(row: Row) -> dict[str, str]:
    """Return the renaming of a row's columns to snake case, except where two columns would get the same name."""
    plain = Counter(map(plain_name, row))
    return {name: plain_name(name) for name in row if plain_name(name) != name and plain[plain_name(name)] == 1}


def _over(spelt: Mapping[str, str], columns: Mapping[str, str]) -> dict[str, str]:
    """Compose two renamings: ``spelt``, as far as a format reads the names, and then ``columns``."""
    old = {new: old for old, new in spelt.items()}
    renaming = {name: new for name, new in spelt.items() if new in KNOWN and new not in columns}
    for name, new in columns.items():
        column, dot, inner = name.partition(".")
        renaming[f"{old.get(column, column)}{dot}{inner}"] = new
    return {name: new for name, new in renaming.items() if name != new}


def _candidates(rows: Sequence[Row], shape: Shape) -> Iterator[dict[str, str]]:
    """Yield the renamings that may give rows a shape."""
    row = rows[0]
    system = {old: new for old, new in SYSTEM.items() if old in row and new not in row}
    asked = [name for name in ASKED if name in row]
    nested = [f"{column}.{key}" for column, value in row.items() if isinstance(value, Mapping) for key in value]
    inner = [path for path in nested if path.rpartition(".")[2] in (*ASKED, "text", "full_text", "post")]
    yield {}  # only the spelling differs
    if shape == "text":
        yield from ({name: "text"} for name in TEXTS if name in row)
        return
    if shape in ("messages", "labelled", "prompt"):
        yield from ({**system, name: "conversations"} for name in TALKS if name in row)
        yield from ({**system, path: "messages"} for path in nested if path.endswith(".messages"))
    if shape in ("messages", "labelled"):
        for answer in (name for name in ANSWERS if name in row):
            if "instruction" in row:
                context = {"context": "input"} if "context" in row else {}
                yield {**system, **context, **({} if answer == "output" else {answer: "output"})}
            yield from (
                {**system, **_unless(name, "prompt"), **_unless(answer, "completion")}
                for name in (*asked, *inner)
                if name != answer
            )
    if shape == "preference":
        yield from _pair_candidates(rows, system, [*asked, *inner])
    if shape == "prompt":
        if "instruction" in row and "context" in row:
            yield {**system, "context": "input"}
        yield from ({**system, **_unless(name, "prompt")} for name in (*asked, *inner))


def _is_label(values: Sequence[object]) -> bool:
    """Return whether a column labels some rows good and others bad."""
    return {label_in(value) for value in values} == {True, False}


def _pair_candidates(rows: Sequence[Row], system: Mapping[str, str], asked: Sequence[str]) -> Iterator[dict[str, str]]:
    """Yield the renamings that may read preference pairs."""
    row = rows[0]
    yield from ({name: "ranked"} for name in ("output", "outputs", "responses") if isinstance(row.get(name), list))
    for voted in renamings(rows):
        yield {**system, **voted}
        yield from ({**system, **_unless(name, "prompt"), **voted} for name in asked if name not in voted)
    pairs = [{}, *({a: "chosen", b: "rejected"} for a, b in PAIRS if a in row and b in row)]
    yield from ({**system, **_unless(name, "prompt"), **pair} for pair in pairs for name in asked)


def _unless(name: str, ours: str) -> dict[str, str]:
    return {} if name == ours else {name: ours}


def _works(rows: Sequence[Row], columns: Mapping[str, str], shape: Shape) -> bool:
    """Return whether a renaming gives more than half of the rows the shape and loses no part of a prompt."""
    if not columns:
        return False
    tried = [renamed_where_possible(row, columns) for row in rows]
    detected = detected_format(tried, (shape,))
    if detected is None or shape not in FORMATS[detected.format].shapes:
        return False
    if detected.format == "comparison" and votes_problem(tried, "") is not None:
        return False
    unused, count = Unused(shape), 0
    for row, plain in zip(rows, tried, strict=True):
        try:
            renamed(row, columns)
            unused.look(plain, detected.format, shaped(plain, detected.format, shape))
            count += 1
        except BadRowError:
            continue
    return (
        count * 2 > len(rows) and unused.problem("", columns) is None and hidden_vote_problem(rows, columns, "") is None
    )
