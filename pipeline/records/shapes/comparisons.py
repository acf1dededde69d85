"""Reads comparisons: rows with several answers to one prompt and a vote, ratings or ranks.

Owns which columns hold the answers and the prompt; `votes` knows what a vote means. Of more than two answers the best
and the worst become the pair. The order of answers means nothing, except in a column `ranked`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from pipeline.errors import Problem, counted
from pipeline.plain_data import JsonObject, Row
from pipeline.records.columns.names import words_of
from pipeline.records.faults import BadRowError, kind_of_value
from pipeline.records.shapes.votes import FIRST, Sides, better_side, meaning_problem, naming_problem, vote_columns

ANSWER = re.compile(
    r"(?P<stem>response|answer|output|completion|conversation|generation|summary|reply|candidate|human_ref|text)"
    r"s?[ _-]?(?P<side>a|b|0|1|2|x|y|left|right|first|second|one|two)",
    re.IGNORECASE,
)
SIDE_PAIRS = (("a", "b"), ("0", "1"), ("1", "2"), ("x", "y"), ("left", "right"), ("first", "second"), ("one", "two"))
"""Suffixes that distinguish the names of two answers."""
FURTHER = re.compile(r"[a-h]|\d|third|fourth|three|four")
LISTS = ("responses", "completions", "generations", "outputs", "answers", "candidates", "ranked", "summaries")
RANKS = ("ranks", "rank", "ranking")
POINTS = ("scores", "score", "ratings", "rating", "rewards", "overall_score", "overall_scores")
TEXTS = ("response", "answer", "text", "content", "output", "completion", "generated_text", "generation")
LARGEST = 1e300
"""Bound of ranks and scores; a larger one, or one that is not a number, is rejected."""
ASKED = ("prompt", "instruction", "question", "query", "input", "history", "context")
"""Columns that may hold the prompt; the first one with a value does."""


class Compared(NamedTuple):
    """A comparison as read from a row.

    Attributes:
        better: the better answer.
        worse: the other answer, or the worst of all others.
        asked: the prompt's column and its value; None if the answers are full conversations.
        columns: all columns that were read.
    """

    better: object
    worse: object
    asked: tuple[str, object] | None
    columns: frozenset[str]


@lru_cache(maxsize=256)
def sides_of(names: tuple[str, ...]) -> Sides | None:
    """Return the two columns that hold answers, by their names; None if there are no two."""
    stems: dict[str, dict[str, str]] = {}
    for name in names:
        match = ANSWER.fullmatch(name)
        if match:
            stems.setdefault(match["stem"].casefold(), {})[match["side"].casefold()] = name
    for sides in stems.values():
        for pair in SIDE_PAIRS:
            if sides.keys() >= set(pair):
                return Sides((sides[pair[0]], sides[pair[1]]), pair)
    return None


def further_answers(row: Row) -> list[str]:
    """Return the columns of further answers beside two (`response_c`), which are not part of the pair."""
    sides = sides_of(tuple(row))
    if sides is None:
        return []
    *stem, _ = words_of(sides.columns[0])
    further = (name for name in row if name not in sides.columns and words_of(name)[:-1] == tuple(stem))
    return [name for name in further if FURTHER.fullmatch(words_of(name)[-1]) and row[name] not in (None, "", [])]


def flat(row: Row) -> Row:
    """Return the row of an Argilla export with its fields and annotations as columns; any other row unchanged."""
    if "fields" not in row:
        return row
    fields, answers = row["fields"], row.get("responses")
    if not isinstance(fields, Mapping) or not isinstance(answers, Mapping):
        return row
    votes: JsonObject = {}
    for annotation in answers.values():
        for number, one in enumerate(annotation if isinstance(annotation, list) else [annotation], start=1):
            value = one.get("value") if isinstance(one, Mapping) else one
            if isinstance(value, str) and len(votes) < 100:
                votes[f"annotator{number}"] = value
    return {**fields, **votes}


def is_comparison(row: Row) -> bool:
    """Return whether a row holds several answers and a vote, ratings or ranks."""
    row = flat(row)
    names = tuple(row)
    sides = sides_of(names)
    if sides is not None and all(row[column] is not None for column in sides.columns):
        return bool(vote_columns(names, sides))
    return _listed_answers(row) is not None


def read_by(row: Row) -> tuple[str, ...]:
    """Return the columns that make a row a comparison."""
    if flat(row) is not row:
        return ("fields", "responses")
    sides = sides_of(tuple(row))
    votes = vote_columns(tuple(row), sides) if sides is not None else ()
    return (*sides.columns, *votes) if sides is not None and votes else tuple(filter(None, _listed_answers(row) or ()))


def compared(row: Row, *, is_prompt: bool = False) -> Compared:
    """Read a comparison.

    Args:
        row: the row's columns.
        is_prompt: only the prompt is needed, so a tie is allowed.

    Raises:
        BadRowError: the row is not a comparison, is a tie, or holds something else than answers.
    """
    original, row = row, flat(row)
    names = tuple(row)
    sides = sides_of(names)
    votes = vote_columns(names, sides) if sides is not None else ()
    if sides is not None and votes:
        first, second = (_unpacked(row[column]) for column in sides.columns)
        is_first = is_prompt or better_side(row, sides, votes) == FIRST
        better, worse = (first, second) if is_first else (second, first)
        read = {*sides.columns, *votes}
    else:
        listed = _listed_answers(row)
        if listed is None:
            raise BadRowError("has no two answers with a vote", "such as `response_a`, `response_b` and `winner`")
        better, worse, read = _of_list(row, *listed, is_prompt=is_prompt)
    asked = _asked(row)
    if asked is not None:
        read |= {asked[0], "input"} if asked[0] == "instruction" else {asked[0]}
        better, worse, asked = _talks(better, worse, asked)
    return Compared(better, worse, asked, frozenset(read if row is original else {"fields", "responses"}))


def _asked(row: Row) -> tuple[str, object] | None:
    """Return the prompt's column and its value; None if the row has no prompt."""
    column = next((name for name in ASKED if row.get(name)), None)
    if column is None:
        info = row.get("info")
        post = (info.get("post") or info.get("article")) if isinstance(info, Mapping) else None
        return ("info", post) if post else None
    value = _unpacked(row[column])
    if isinstance(value, Mapping):
        value = value.get("full_text") or value.get("text") or value.get("content")
    return column, value


def _talks(
    better: object, worse: object, asked: tuple[str, object]
) -> tuple[object, object, tuple[str, object] | None]:
    """Join prompts and answers that are lists of texts, one per exchange, into conversations."""
    if not (_are_texts(asked[1]) and _are_texts(better) and _are_texts(worse)):
        return better, worse, asked
    return _talk(asked[1], better), _talk(asked[1], worse), None


def _talk(asked: Any, answers: Any) -> list[dict[str, str]]:
    if len(asked) != len(answers):
        raise BadRowError(
            f"has {counted(len(asked), 'question')} and {counted(len(answers), 'answer')}", "as many of each"
        )
    roles = ("user", "assistant")
    pairs = zip(asked, answers, strict=True)
    return [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def _unpacked(value: object) -> object:
    """Return the list of texts that a JSON text holds; any other value unchanged."""
    if isinstance(value, str) and value.startswith('["') and value.endswith("]"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _listed_answers(row: Row) -> tuple[str, str] | None:
    """Return the column that lists the answers and the column or key that ranks them; empty for a column `ranked`."""
    for column in LISTS:
        if column not in row:
            continue
        answers = row[column]
        if not isinstance(answers, list) or len(answers) < 2:
            continue
        if column == "ranked":
            return column, ""
        if column == "summaries" and "choice" in row:
            return column, "choice"
        keys = answers[0] if isinstance(answers[0], Mapping) else row
        ranked = next((key for key in (*RANKS, *POINTS) if keys.get(key) is not None), None)
        if ranked is not None and (keys is not row or isinstance(row[ranked], list)):
            return column, ranked
    return None


def _of_list(row: Row, column: str, by: str, *, is_prompt: bool) -> tuple[object, object, set[str]]:
    """Return the best and the worst answer of a list, and the columns read."""
    answers = [_text(one, f"`{column}` {number}") for number, one in enumerate(row[column], start=1)]
    if not by or is_prompt:
        return answers[0], answers[-1], {column, *filter(None, [by if by in row else ""])}
    if by == "choice":
        at = row[by]
        if at not in (0, 1) or len(answers) != 2:
            raise BadRowError(f"`choice` is {at!r} of {len(answers)} `{column}`"[:80], "0 or 1 of two")
        return answers[int(at)], answers[1 - int(at)], {column, by}
    inside = isinstance(row[column][0], Mapping) and by not in row
    values = [one.get(by) if isinstance(one, Mapping) else None for one in row[column]] if inside else row.get(by)
    if not isinstance(values, list) or len(values) != len(answers):
        raise BadRowError(
            f"`{by}` is {kind_of_value(values)}", f"{counted(len(answers), 'number')}, one for each answer"
        )
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < LARGEST for one in values):
        raise BadRowError(f"`{by}` holds something else than numbers", "one number for each answer")
    order = sorted(range(len(answers)), key=lambda at: values[at], reverse=by in POINTS)
    best, worst = order[0], order[-1]
    if values[best] == values[worst]:
        raise BadRowError(f"is a tie (`{by}` is {values[best]} for all)", "one answer that is better")
    return answers[best], answers[worst], {column} if inside else {column, by}


def _text(value: object, here: str) -> object:
    """Return an answer, taken out of its object if it is one."""
    if not isinstance(value, Mapping):
        return value
    key = next((name for name in TEXTS if value.get(name)), None)
    if key is None:
        raise BadRowError(f"{here} is {kind_of_value(value)}", f"an answer under {', '.join(TEXTS[:4])}")
    return value[key]


def votes_problem(rows: Iterable[Row], name: str) -> Problem | None:
    """Return a problem if the votes of rows are ambiguous or name no answer; None if they can be read."""
    seen: dict[tuple[str, Sides], list[Row]] = {}
    for row in map(flat, rows):
        sides = sides_of(tuple(row))
        votes = vote_columns(tuple(row), sides) if sides is not None else ()
        if sides is not None and len(votes) == 1 and not isinstance(row[votes[0]], list):
            seen.setdefault((votes[0], sides), []).append(row)
    for (column, sides), voting in seen.items():
        problem = meaning_problem([row[column] for row in voting], column, sides, name)
        problem = problem or naming_problem(voting, column, sides, name)
        if problem is not None:
            return problem
    return None
