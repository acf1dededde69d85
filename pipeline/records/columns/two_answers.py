"""Guesses which columns hold two answers and a vote when no format knows their names, and how to rename them.

The guesses are used in messages only; no row is read by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, permutations
from typing import NamedTuple

from pipeline.errors import Problem, listed
from pipeline.plain_data import JsonObject, Row
from pipeline.records.columns.names import words_of
from pipeline.records.columns.unused import written
from pipeline.records.shapes.comparisons import LISTS, SIDE_PAIRS, sides_of
from pipeline.records.shapes.votes import NAMES, TIES, as_number, write_anew

ANSWER_WORDS = frozenset(
    (
        *("response", "answer", "output", "completion", "conversation", "generation", "summary", "reply"),
        *("candidate", "text", "option", "assistant"),
    )
)
OTHER_WORDS = frozenset(
    (
        *("model", "name", "id", "score", "rating", "reward", "rank", "source", "length", "tokens", "lang"),
        *("language", "winner"),
    )
)
"""Words in names of columns that describe an answer but are not the answer."""

VOTE_WORD = re.compile(r"(label|annotat|gold|human|judg|rank|target)", re.IGNORECASE)
"""Matches further names of columns, which are votes only if their values name a side or are digits."""

VOTE_WORDS = re.compile(
    r"(winner|winning|won|better|best|preferred|preference|pref|votes?|voted|verdict|judg[e]?ment|choice|chosen"
    r"|selected|strength)",
    re.IGNORECASE,
)
"""Matches a word of voting anywhere in a column's name: `human_vote`, `winner_model`."""

POINT_WORDS = re.compile(
    r"(score|rating|reward|vote|point|like|elo|rank|win|grade|quality|helpful(ness)?|correct(ness)?|overall)s?(?![a-z])",
    re.IGNORECASE,
)
"""Matches names of columns that score each answer separately."""

SIDE_WORDS = ["a", "b", "0", "1", "2", "-1", "true", "false", "first", "second", "left", "right", "model_a", "model_b"]
BOOLEANS = frozenset({"true", "false", "0", "1"})
SHOWN_VALUES = 3


class TwoAnswers(NamedTuple):
    """Two answer columns and the columns that may say which answer is better.

    Attributes:
        columns: the two columns that hold the answers.
        names: names under which a format reads them as answers.
        vote: the column that says which is better; empty if there is none, or if the points decide.
        values: distinct values of the vote column, as lower-case texts.
        is_sure: whether the vote column was recognised as a vote, not only taken for one by its values.
        points: the columns of each answer's points; empty if there are none.
    """

    columns: tuple[str, str]
    names: tuple[str, str]
    vote: str
    values: frozenset[str]
    is_sure: bool = True
    points: tuple[str, ...] = ()

    def columns_with(self, vote: str) -> dict[str, str]:
        """Return the `columns` renaming that reads both answers, with the vote column renamed to ``vote``."""
        new = dict(zip(self.columns, self.names, strict=True))
        if self.vote:
            new[self.vote] = vote
        for column, name in zip(self.points, self.names, strict=False):
            new[column] = f"{'rank' if 'rank' in column.casefold() else 'score'}_{words_of(name)[-1]}"
        return {old: ours for old, ours in new.items() if old != ours}


def two_answers(rows: Sequence[Row]) -> TwoAnswers | None:
    """Return the likely answer columns of rows and their vote; None if no two columns look like answers."""
    if not rows:
        return None
    rows = [opened(row) for row in rows]
    names = tuple(rows[0])
    votes = {name: _values(rows, name) for name in names}
    known = sides_of(names)
    columns = known.columns if known is not None else _by_name(rows[0]) or _named_by_vote(rows[0], votes)
    if columns is None:
        return None
    points = points_of(columns, rows)
    one_sided = {name for pair in combinations(names, 2) if _sides_told(*map(words_of, pair)) for name in pair}
    votes = {name: values for name, values in votes.items() if name not in (*columns, *one_sided)}
    recognised = [name for name in votes if votes[name] and _is_vote(name, votes[name], columns)]
    recognised.sort(key=lambda name: (name not in NAMES, VOTE_WORDS.search(name) is None))
    possible = [name for name in votes if len(votes[name]) > 1 and votes[name] <= _sides(columns)]
    vote = (recognised or ([] if points else possible) or [""])[0]
    new = known.columns if known else new_names(columns)
    values = votes.get(vote, frozenset())
    return TwoAnswers(columns, new, vote, values, is_sure=bool(recognised), points=() if recognised else points)


def opened(row: Row) -> JsonObject:
    """Return a row with the fields of its objects added as columns with dotted names, such as `meta.winner`."""
    inner = {
        f"{column}.{key}": one
        for column, value in row.items()
        if isinstance(value, Mapping)
        for key, one in value.items()
    }
    return {**row, **inner}


def points_of(columns: tuple[str, str], rows: Sequence[Row]) -> tuple[str, ...]:
    """Return two numeric columns that score each answer, named after the answer or its side; empty if absent."""
    for first, second in permutations(
        filter(POINT_WORDS.search, dict.fromkeys(name for row in rows for name in row)), 2
    ):
        owners = (columns, tuple(column.partition(".")[0] for column in columns))  # or the objects that contain them
        is_named = any(one in first and first.replace(one, other, 1) == second != first for one, other in owners)
        if {first, second} & set(columns) or not (is_named or _sides_told(words_of(first), words_of(second))):
            continue
        points = [row.get(name) for row in rows for name in (first, second)]
        points = [value for value in points if value is not None and value != ""]
        if points and all(as_number(value) is not None for value in points):
            return first, second
    return ()


def renamings(rows: Sequence[Row]) -> Iterator[dict[str, str]]:
    """Yield the renamings of rows that may read two answers and their vote, the likeliest first."""
    two = two_answers(rows)
    if two is not None and (two.points or (two.vote and two.is_sure)):
        yield from readings(two)


def readings(two: TwoAnswers) -> Iterator[dict[str, str]]:
    """Yield the renamings that may read two answers and their vote or points, the likeliest first."""
    if not two.vote:
        yield two.columns_with("")
    elif two.values <= BOOLEANS:
        side = _side_named(two)
        if side is None:
            return
        if side == 1:
            two = two._replace(columns=two.columns[::-1])
        yield two.columns_with("first_is_better")
    elif any(value.startswith("-") for value in two.values):
        yield two.columns_with("preference_strength")
    else:
        yield two.columns_with(two.vote if two.vote in NAMES else "winner")


def two_answers_problem(rows: Sequence[Row], name: str, where: str) -> Problem | None:
    """Return a problem if rows hold two answers whose vote cannot be read; None if they hold no two answers.

    Args:
        rows: rows with the columns of the file.
        name: name of the source.
        where: the file, for the message.
    """
    listed_so = _index_problem(rows, name, where)
    if listed_so is not None:
        return listed_so
    two = two_answers(rows)
    if two is None:
        return None
    answers = " and ".join(f"`{one}`" for one in two.columns)
    if not two.vote:
        statement = f"data {name}: {answers} are two answers, and no column says which is better"
        first, second = two.columns
        ordered = written({first: "chosen", second: "rejected"})
        remedy = f"add a column `winner` (a, b or tie); or, if `{first}` is always better, set `columns: {ordered}`"
        return Problem(statement, "answers and a vote", remedy, where)
    shown = listed(sorted(two.values), SHOWN_VALUES)
    statement = f"data {name}: `{two.vote}` is {shown} beside {answers}"
    if not two.is_sure and not two.values <= BOOLEANS:
        remedy = (
            f"if it says which is better, set `columns: {written(two.columns_with('winner'))}`; if not, add `winner`"
        )
        return Problem(statement, "a vote under a name that says so", remedy, where)
    if two.values <= BOOLEANS:
        remedy = by_name_of(two)
        remedy += "" if two.is_sure else "; if it is no vote, add a column `winner`"
        return Problem(statement, "a vote whose numbers say which answer they mean", remedy, where)
    return Problem(statement, "a vote that names one of the answers", write_anew(two.vote), where)


def by_name_of(two: TwoAnswers, rest: Mapping[str, str] | None = None) -> str:
    """Return the advice to rename a vote of 0 and 1 so that its name says what they mean.

    Args:
        two: the answers and the vote.
        rest: further columns to rename.
    """
    by_first, by_index = ({**(rest or {}), **two.columns_with(name)} for name in ("first_is_better", "better_index"))
    return (
        f"say it by its name: `columns: {written(by_first)}` if 1 means the first, "
        f"`columns: {written(by_index)}` if 0 means the first"
    )


def index_of(row: Row) -> tuple[str, str] | None:
    """Return the column that lists answers and the column that selects one of them by index or text; None if absent."""
    lists = [name for name in LISTS if isinstance(row.get(name), list) and len(row[name]) > 1]
    for column in lists[:1]:
        for name in (*NAMES, "chosen"):
            number = as_number(row.get(name))
            if (number is not None and 0 <= number <= len(row[column])) or row.get(name) in row[column]:
                return column, name
    return None


def _index_problem(rows: Sequence[Row], name: str, where: str) -> Problem | None:
    """Return a problem if a vote selects one of a list of answers, since its index may start at 0 or 1; else None."""
    columns = next(filter(None, map(index_of, rows)), None)
    if columns is None or columns[1] == "choice":
        return None
    shown = listed(sorted(_values(rows, columns[1])), SHOWN_VALUES)
    remedy = "write a column `ranks` beside them, a list with 1 for the best answer and 2 for the others"
    statement = f"data {name}: `{columns[1]}` is {shown} beside the list `{columns[0]}`"
    return Problem(statement, "ranks or scores, one number for each answer", remedy, where)


def _values(rows: Sequence[Row], name: str) -> frozenset[str]:
    """Return the distinct values of a column as lower-case texts; empty if it holds anything but texts and numbers."""
    values = {row.get(name) for row in rows if isinstance(row.get(name), str | int | float)}
    if any(row.get(name) is not None and not isinstance(row.get(name), str | int | float) for row in rows):
        return frozenset()
    return frozenset(str(value).casefold().strip().strip("[]").removesuffix(".0") for value in values) - {""}


def _by_name(row: Row) -> tuple[str, str] | None:
    """Return two columns of the same type whose names differ by a word for a side, or by an added 2; None if absent."""
    texts = {name: value for name, value in row.items() if isinstance(value, str | list) and value}
    pairs = []
    for first, second in combinations(texts, 2):
        for one, other in ((first, second), (second, first)):
            if type(row[one]) is type(row[other]) and _sides_told(words_of(one), words_of(other)) is not None:
                pairs.append((one, other))
    named = [pair for pair in pairs if ANSWER_WORDS & set(words_of(pair[0])) and not set(words_of(pair[0])) & {"id"}]
    others = [pair for pair in pairs if not OTHER_WORDS & set(words_of(pair[0]))]
    return next(iter(named or others), None)


def _sides_told(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, str] | None:
    """Return the words in which two names differ if these name two sides, such as ``a`` and ``b``; else None."""
    if second == (*first, "2"):
        return ("1", "2")
    if len(first) != len(second):
        return None
    differ = [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]]
    return differ[0] if len(differ) == 1 and differ[0] in SIDE_PAIRS else None


def _named_by_vote(row: Row, votes: Mapping[str, frozenset[str]]) -> tuple[str, str] | None:
    """Return the two columns of text whose names are the values of another column; None if there are none."""
    by_name = {name.casefold(): name for name, value in row.items() if isinstance(value, str | list)}
    for name, values in votes.items():
        named = [by_name[value] for value in by_name if value in values]
        if name not in named and len(named) == 2 and values - TIES <= set(by_name):
            return named[0], named[1]
    return None


def new_names(columns: tuple[str, str]) -> tuple[str, str]:
    """Return the names under which a format reads two answers, such as `response_a` and `response_b`."""
    suffixes = _sides_told(*map(words_of, columns)) or ("a", "b")
    return f"response_{suffixes[0]}", f"response_{suffixes[1]}"


def _is_vote(name: str, values: frozenset[str], columns: tuple[str, str]) -> bool:
    """Return whether a column may say which of two answers is better."""
    if name.casefold() in NAMES:
        return True
    sides = _sides(columns)
    is_number = all(re.fullmatch(r"-?\d", value) for value in values)
    if VOTE_WORDS.search(name):
        return values <= sides or is_number or not {" "} & set("".join(values))
    return (VOTE_WORD.search(name) is not None and (values <= sides or is_number)) or _names_both(values, columns)


def _sides(columns: tuple[str, str]) -> frozenset[str]:
    """Return the words with which a vote may name one of two answers, or a tie."""
    suffixes = _sides_told(*map(words_of, columns)) or ()
    return frozenset({*SIDE_WORDS, *TIES, *suffixes, *(column.casefold() for column in columns)})


def _names_both(values: frozenset[str], columns: tuple[str, str]) -> bool:
    return {column.casefold() for column in columns} <= values


def _side_named(two: TwoAnswers) -> int | None:
    """Return the index of the answer that a boolean vote's name mentions (`is_a_better`); None if not exactly one."""
    suffixes = _sides_told(*map(words_of, two.columns)) or two.columns
    named = set(words_of(two.vote))
    sides = [{suffixes[0], "first"}, {suffixes[1], "second"}]
    hits = [at for at, words in enumerate(sides) if words & named]
    return hits[0] if len(hits) == 1 else None
