"""Reads which of two answers is better from a name, a number, a sign, two scores, or several annotators.

Owns what a vote means. An ambiguous number (0 or 1 beside answers `a` and `b`) is rejected; the message names the
columns that are unambiguous.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import NamedTuple

from pipeline.errors import Problem, listed
from pipeline.plain_data import Row
from pipeline.records.columns.names import words_of
from pipeline.records.faults import BadRowError

FIRST, SECOND, TIE = "first", "second", "tie"
NAMES = [
    "winner",
    "winner_model",
    "better",
    "preferred",
    "preference",
    "choice",
    "vote",
    "verdict",
    "judgement",
    "judgment",
    "selected",
    "best",
    "better_index",
    "better_response",
    "better_response_id",
    "preferred_response",
    "preferred_answer",
    "preferred_output",
    "human_preference",
    "overall_preference",
    "preference_strength",
    "first_is_better",
]
"""Columns that are votes; the first that a row has is read."""

WEAK = ("label", "labels", "chosen", "safer_response_id")
"""Columns that are votes if there are no scores."""

SIGNED = ("overall_preference", "preference_strength")
"""Columns in which a negative number prefers the first answer and a positive one the second (HelpSteer2 and 3)."""

ONE_HOT = re.compile(r"winner_(model_|response_)?(?P<side>a|b|1|2|tie)$", re.IGNORECASE)
ANNOTATOR = re.compile(r"annotator_?\d+$", re.IGNORECASE)
SCORES = ("score", "rating", "reward", "overall_score", "rank")
"""Words of columns with one score per answer; a lower `rank` is better."""

TIES = frozenset(
    [
        *(
            "tie",
            "tied",
            "tie (bothbad)",
            "tie (both bad)",
            "both bad",
            "bothbad",
            "both_bad",
            "both good",
            "both_good",
        ),
        *("both", "neither", "equal", "same", "draw", "none", "c", "a=b"),
    ]
)
WORD = re.compile(r"(?:model|response|answer|output|option|assistant|conversation|completion|summary)?[ _-]?(\w+)$")


class Sides(NamedTuple):
    """Two answers of a row.

    Attributes:
        columns: the columns that hold them; the same column twice if it holds both.
        suffixes: the suffixes of their names, such as ``a`` and ``b``.
    """

    columns: tuple[str, str]
    suffixes: tuple[str, str]


@lru_cache(maxsize=256)
def vote_columns(names: tuple[str, ...], sides: Sides) -> tuple[str, ...]:
    """Return the columns that say which side is better; empty if there are none.

    Args:
        names: names of all columns of a row, in their order.
        sides: the answers.
    """
    by_name = {name.casefold(): name for name in names}
    for known in NAMES:
        if known in by_name:
            return (by_name[known],)
    hot = tuple(name for name in names if ONE_HOT.match(name))
    if hot:
        return hot
    for word in SCORES:
        scores = [_points_of(word, suffix, column, by_name) for suffix, column in zip(*sides[::-1], strict=True)]
        if all(scores):
            return tuple(filter(None, scores))
    people = tuple(name for name in names if ANNOTATOR.match(name))
    return people or next(((by_name[known],) for known in WEAK if known in by_name and known not in sides.columns), ())


def _points_of(word: str, suffix: str, column: str, by_name: Mapping[str, str]) -> str | None:
    """Return the column of an answer's score: `score_a`, `a_score`, `response_a_score` or `score_response_a`."""
    answer = column.casefold()
    spelt = (f"{word}_{suffix}", f"{word}{suffix}", f"{suffix}_{word}", f"{answer}_{word}", f"{word}_{answer}")
    return next((by_name[name] for name in spelt if name in by_name), None)


def better_side(row: Row, sides: Sides, votes: tuple[str, ...]) -> str:
    """Return the side a row prefers: ``first`` or ``second``.

    Raises:
        BadRowError: the vote is a tie, or cannot be read.
    """
    if ONE_HOT.match(votes[0]):
        side = _one_hot(row, votes)
    elif len(votes) == 2 and not ANNOTATOR.match(votes[0]):
        first, second = (_number(row[name], name) for name in votes)
        if "rank" in words_of(votes[0]):
            first, second = second, first
        side = FIRST if first > second else SECOND if second > first else TIE
    else:
        counted = Counter(_side(row, name, sides) for name in votes)
        side = max((FIRST, SECOND), key=lambda one: counted[one])
        side = TIE if counted[FIRST] == counted[SECOND] or counted[TIE] > len(votes) / 2 else side
    if side == TIE:
        shown = " and ".join(f"`{name}` {row[name]!r}"[:60] for name in votes[:3])
        raise BadRowError(f"is a tie ({shown})", "one answer that is better")
    return side


def _one_hot(row: Row, votes: tuple[str, ...]) -> str:
    flagged = [name for name in votes if _number(row[name], name) == 1]
    if len(flagged) != 1:
        raise BadRowError(f"{' and '.join(f'`{name}`' for name in votes)} name {len(flagged)} winners", "one")
    match = ONE_HOT.match(flagged[0])
    return {"a": FIRST, "1": FIRST, "b": SECOND, "2": SECOND}.get(match["side"].casefold() if match else "", TIE)


def _side(row: Row, column: str, sides: Sides) -> str:
    value, known = row[column], column.casefold()
    number = as_number(value)
    if known == "first_is_better":
        side = _IS_FIRST.get(number) if number is not None else _BOOLEANS.get(str(value).casefold())
    elif known in SIGNED and number is not None:
        side = FIRST if number < 0 else SECOND if number > 0 else TIE
    elif number is not None:
        numbers = _FROM_ZERO if is_from_zero(known, sides) else _FROM_ONE
        side = numbers.get(number)
    else:
        side = _side_of_word(value, row, sides)
    if side is None:
        shown = "missing" if value is None or value == "" else repr(value)[:40]
        expected = f"{' or '.join(sides.suffixes)}, the name of an answer, or tie"
        raise BadRowError(f"`{column}` is {shown}", expected)
    return side


_FROM_ZERO = {0.0: FIRST, 1.0: SECOND, -1.0: TIE}
_FROM_ONE = {1.0: FIRST, 2.0: SECOND, 0.0: TIE}
_IS_FIRST = {1.0: FIRST, 0.0: SECOND}
_BOOLEANS = {"true": FIRST, "false": SECOND}


def is_from_zero(column: str, sides: Sides) -> bool:
    """Return whether a vote's number is a 0-based index of the answers."""
    return column.casefold() == "better_index" or sides.suffixes == ("0", "1")


def _side_of_word(value: object, row: Row, sides: Sides) -> str | None:
    if not isinstance(value, str) or not value.strip():
        return None
    word = value.strip().strip("[]").casefold()
    if word in TIES and not (word == "c" and _is_third(row, sides)):
        return TIE
    plain = re.sub(r"(.)>+(.)$", r"\1", word)  # A>B, A>>B
    for at, side in enumerate((FIRST, SECOND)):
        names = {sides.columns[at].casefold() if sides.columns[0] != sides.columns[1] else "", sides.suffixes[at]}
        names |= {side, ("left", "right")[at]}
        match = WORD.match(plain)
        if plain in names - {""} or (match and match[1] == sides.suffixes[at]):
            return side
    for at, side in enumerate((FIRST, SECOND)):
        if word == str(row.get(sides.columns[at])).strip().casefold():  # the vote repeats the better answer
            return side
    return _side_of_owner(word, row, sides)


def _is_third(row: Row, sides: Sides) -> bool:
    """Return whether a row has a third answer, `response_c`; without one, a judge's `C` is a tie."""
    stem = words_of(sides.columns[0])[:-1]
    return any(words_of(name) == (*stem, "c") for name in row)


def _side_of_owner(word: str, row: Row, sides: Sides) -> str | None:
    """Return the side whose column (`model_a`, `response_b_model`) holds a word; None if both or neither do."""
    owned = [
        any(
            suffix in words_of(column) and isinstance(value, str) and value.strip().casefold() == word
            for column, value in row.items()
            if column not in sides.columns
        )
        for suffix in sides.suffixes
    ]
    return None if owned[0] == owned[1] else FIRST if owned[0] else SECOND


def as_number(value: object) -> float | None:
    """Return a value as a finite number, parsed if it is text; None if it is not a finite number."""
    if not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _number(value: object, column: str) -> float:
    number = as_number(value)
    if number is None:
        raise BadRowError(f"`{column}` is {'missing' if value is None else repr(value)[:40]}", "a number")
    return number


def naming_problem(rows: Collection[Row], column: str, sides: Sides, name: str) -> Problem | None:
    """Return a problem if the words of a vote column name no answer in any row; None if one does.

    Args:
        rows: rows that have the column.
        column: the vote column.
        sides: the answers.
        name: name of the source.
    """
    words: dict[str, None] = {}
    for row in rows:
        if row[column] is None or row[column] == "":
            continue
        if not isinstance(row[column], str) or as_number(row[column]) is not None:
            return None
        if column.casefold() == "first_is_better" or _side_of_word(row[column], row, sides) is not None:
            return None
        words[row[column]] = None
    if not words:
        return None
    answers = " and ".join(f"`{one}`" for one in sides.columns)
    statement = f"data {name}: `{column}` is {listed((word[:40] for word in words), 3)} beside {answers}"
    return Problem(statement, "a vote that names one of the answers", write_anew(column))


def write_anew(vote: str) -> str:
    """Return the advice for a vote whose words name no answer."""
    return f"add columns `model_a` and `model_b` that say whose answer each is, or write `{vote}` as a, b or tie"


def meaning_problem(values: Collection[object], column: str, sides: Sides, name: str) -> Problem | None:
    """Return a problem if the numbers of a vote column are ambiguous; None if they are not.

    Args:
        values: all values of the column.
        column: the vote column.
        sides: the answers.
        name: name of the source.
    """
    known = column.casefold()
    numbers = {number for number in map(as_number, values) if number is not None}
    if not numbers or known in ("first_is_better", "better_index", *SIGNED):
        return None
    is_word = any(isinstance(value, bool) for value in values)
    if not is_word and is_from_zero(known, sides):
        return None
    if not is_word and 2 in numbers and numbers <= {0, 1, 2}:
        return None
    if not is_word and numbers == {1} and sides.suffixes == ("1", "2"):
        return None
    shown = ", ".join(f"{number:g}" for number in sorted(numbers)[:5])
    answers = " and ".join(f"`{one}`" for one in sides.columns)
    remedy = (
        f"say it by its name: `columns: {{{column}: first_is_better}}` if 1 means the first, "
        f"`columns: {{{column}: better_index}}` if 0 means the first"
    )
    if any(number < 0 for number in numbers):
        remedy = f"set `columns: {{{column}: preference_strength}}` if below 0 means the first"
    statement = f"data {name}: `{column}` is {shown} beside {answers}"
    return Problem(statement, "a vote whose numbers say which answer they mean", remedy)
