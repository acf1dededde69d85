"""Finds votes and scores beside `chosen` and `rejected` that prefer the rejected answer.

A vote that certainly does (`winner: rejected`, the text of the rejected answer, a tie) makes a bad row. Scores may come
from another judge than the pair, so contradictions are counted and are a problem only in most of the rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

from pipeline.errors import Problem, counted
from pipeline.plain_data import Row
from pipeline.records.columns.names import words_of
from pipeline.records.columns.unused import written
from pipeline.records.faults import BadRowError
from pipeline.records.shapes.comparisons import sides_of
from pipeline.records.shapes.conversion import label_in
from pipeline.records.shapes.formats import FORMATS
from pipeline.records.shapes.votes import FIRST, NAMES, TIES, WEAK, as_number, better_side, vote_columns

POINTS = frozenset(
    {"score", "scores", "rating", "ratings", "reward", "rewards", "points", "votes", "upvotes", "likes", "elo"}
)
RANKS = frozenset({"rank", "ranks", "ranking"})
"""Words of columns whose lower value is the better one."""
SIDES = ("chosen", "rejected")
SURE_TIES = TIES - {"c", "none", "same", "both", "neither"}
PAIR_FORMATS = ("preference", "hh")


class _Watched(NamedTuple):
    """Columns of a pair that say which answer is better.

    Attributes:
        votes: groups of columns that form one vote, most of a single column.
        points: columns of points of the chosen and of the rejected answer; the second is empty for a margin.
        models: columns that name the models the two answers come from.
    """

    votes: tuple[tuple[str, ...], ...]
    points: tuple[tuple[str, str], ...]
    models: tuple[tuple[str, str], ...]


class Contradictions:
    """Collects, over the good pairs of a source, the votes and scores that contradict `chosen` and `rejected`.

    Args:
        columns: the recipe's renaming of columns.
    """

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._columns = columns
        self._theirs = {new: old for old, new in columns.items()}
        self._against: dict[tuple[str, str], list[int]] = {}  # columns to (contradicting rows, rows with both columns)
        self._unclear: dict[str, None] = {}

    def look(self, row: Row, row_format: str) -> None:
        """Record whether a row's votes and scores contradict its order.

        Args:
            row: columns, renamed as the recipe asks.
            row_format: format the row was read in.

        Raises:
            BadRowError: a vote prefers the rejected answer, or is a tie.
        """
        if row_format not in PAIR_FORMATS:
            return
        watched = _watched(tuple(row))
        for vote in watched.votes:
            self._look_at_vote(row, vote, watched)
        for columns in watched.points:
            numbers = [as_number(row[name]) if name else 0.0 for name in columns]
            if None not in numbers:
                counted = self._against.setdefault(columns, [0, 0])
                counted[0] += numbers[0] < numbers[1]  # type: ignore[operator]
                counted[1] += 1

    def _look_at_vote(self, row: Row, votes: tuple[str, ...], watched: _Watched) -> None:
        if any(row[vote] is None or row[vote] == "" for vote in votes):
            return
        preferred = _side_told(row, votes, watched)
        if preferred == "chosen":
            return
        if preferred is None:
            if votes[0].casefold() in NAMES:
                self._unclear[votes[0]] = None
            return
        shown = " and ".join(f"`{vote}` {row[vote]!r}"[:60] for vote in votes[:3])
        remedy = f"if it is no vote on the two, set `columns: {self._noted(votes[0])}`"
        raise BadRowError(
            f"{shown} {'says tie' if preferred == 'tie' else 'is for `rejected`'}", "one for `chosen`", remedy
        )

    def _noted(self, column: str) -> str:
        """Return the `columns` renaming that makes a column a note, which no format reads."""
        return written({**self._columns, self._theirs.get(column, column): "note"})

    def problem(self, name: str) -> Problem | None:
        """Return a problem if the points of most rows prefer the rejected answer; else None.

        Args:
            name: name of the source.
        """
        for (better, worse), (against, count) in self._against.items():
            if against * 2 <= count:
                continue
            statement = f"data {name}: {_above(better, worse)} in {against:,} of {counted(count, 'row')}"
            if not worse:
                return Problem(statement, "0 or more", f"set `columns: {self._noted(better)}` to leave it out")
            old = [self._theirs.get(one, one) for one in (*SIDES, better, worse)]
            turned = {**self._columns, **dict(zip(old, ("rejected", "chosen", worse, better), strict=True))}
            remedy = (
                f"set `columns: {written(turned)}` if the two are the wrong way round; or, if the points do not "
                f"judge the answers, `columns: {self._noted(better)}`"
            )
            return Problem(statement, "`chosen` to be the better answer", remedy)
        return None

    def notes(self) -> Iterator[str]:
        """Yield notes on points that contradict some pairs, and on votes that are not read."""
        for columns, (against, count) in self._against.items():
            if against:
                above = f"{_above(*columns)} in {against:,} of {counted(count, 'row')}"
                yield f"{above}; `chosen` is taken as the better answer"
        for vote in self._unclear:
            yield f"the vote `{vote}` is not read; `chosen` is taken as the better answer"


def _above(better: str, worse: str) -> str:
    return f"`{worse}` is above `{better}`" if worse else f"`{better}` is below 0"


@lru_cache(maxsize=256)
def _watched(names: tuple[str, ...]) -> _Watched:
    """Return the columns among ``names`` that say which answer of a pair is better."""
    others = [name for name in names if name not in SIDES]
    by_words = {words_of(name): name for name in others}
    paired = []
    for words, name in by_words.items():
        other = by_words.get(tuple("rejected" if word == "chosen" else word for word in words))
        if "chosen" in words and other is not None:
            paired.append((name, other))
    judged = [pair for pair in paired if "gold" not in words_of(pair[0])]
    points = [pair for pair in judged if POINTS & set(words_of(pair[0]))]
    points += [pair[::-1] for pair in judged if RANKS & set(words_of(pair[0]))]
    sides = sides_of(tuple(others))
    joined = vote_columns(tuple(others), sides) if sides is not None else ()
    read = {*joined, *FORMATS["preference"].columns}
    alone = [
        (name,) for name in others if (name.casefold() in (*NAMES, *WEAK) or _judged_side(name)) and name not in read
    ]
    return _Watched(
        tuple(filter(None, (joined, *alone))),
        (*points, *((name, "") for name in others if name == "margin")),
        tuple(pair for pair in paired if {"model", "source"} & set(words_of(pair[0]))),
    )


def _side_told(row: Row, votes: tuple[str, ...], watched: _Watched) -> str | None:
    """Return the side a vote is for (``chosen``, ``rejected``, ``tie``); None if that is not certain."""
    answers = [_text(row.get(side)) for side in SIDES]
    others = tuple(name for name in row if name not in SIDES)
    sides = sides_of(others)
    if sides is not None and votes == vote_columns(others, sides):
        texts = [_text(row[column]) for column in sides.columns]
        try:
            voted = texts[0 if better_side(row, sides, votes) == FIRST else 1]
        except BadRowError:
            return None
        return _one_of(answers, voted) if sorted(texts) == sorted(answers) else None
    judged = _judged_side(votes[0])
    if judged is not None and (label := label_in(row[votes[0]])) is not None:
        return judged if label else SIDES[1 - SIDES.index(judged)]
    if not isinstance(row[votes[0]], str):
        return None
    word = row[votes[0]].strip()
    if word.casefold() in SURE_TIES:
        return "tie"
    named = re.sub(r"[_ -](response|answer|output)$", "", word.casefold())
    if named in SIDES:
        return named
    side_named = _one_of(answers, word)
    for pair in watched.models:
        side_named = side_named or _one_of([str(row[name]).casefold() for name in pair], word.casefold())
    return side_named


def _judged_side(name: str) -> str | None:
    """Return the side that a boolean column calls better by its name (`is_chosen_better`); None if it names no side."""
    words = words_of(name)
    named = [side for side in SIDES if side in words]
    return named[0] if len(named) == 1 and {"better", "best", "preferred", "won", "wins"} & set(words) else None


def _one_of(both: list[str], value: str) -> str | None:
    """Return the side whose value equals ``said``; None if neither or both do."""
    if both[0] == both[1] or value not in both:
        return None
    return SIDES[both.index(value)]


def _text(value: object) -> str:
    """Return an answer as text; of a conversation, the text of its last turn."""
    last = value[-1] if isinstance(value, list) and value else value
    said = last.get("content", last.get("value")) if isinstance(last, Mapping) else last
    return said.strip() if isinstance(said, str) else ""
