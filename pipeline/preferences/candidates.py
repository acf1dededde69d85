"""Pairs to compare, and groups to rank, from candidates: rows with a prompt and several answers, as of `sample`.

Owns which answers may be compared, and the rows of pairs and groups. The rule that chooses among them is in
`pair_choice.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple, NotRequired, TypedDict

from pipeline.errors import PipelineError, Problem
from pipeline.plain_data import JsonObject, Row
from pipeline.preferences.items import Item, groups_of, items_of
from pipeline.records.pair_choice import (
    BY_SCORE,
    LEAST_RANKED,
    MOST_RANKED,
    ChosenPair,
    PairChoice,
    PairRule,
    choose_group,
    choose_pairs,
    unusable,
)
from pipeline.records.shapes.plain import mark_of
from pipeline.records.shapes.turns import Turn
from pipeline.stage import Rows

SCORES = "reward_scores"
"""Column of a row of candidates: by reward model, the score of each candidate."""

OF_SAMPLING = frozenset({"row", "candidates", "pairs", SCORES})
"""Columns of a row of candidates that are not its prompt's own."""


ITEMS_VERSION = 2
"""Raised when the same rows make other items, so that cached items are not taken for these; 2 has groups to rank."""


class Pair(TypedDict):
    """A row of `pairs.jsonl`: two answers to compare; which is called chosen means nothing.

    Attributes:
        prompt: turns before the answers.
        chosen: the answer that stands first.
        rejected: the other answer.
        propensity: probability with which these two were chosen among the prompt's answers.
        tools: tools that the assistant may call, where there are any.
        plain_text: whether the turns are plain text, which continues the prompt; left out of a conversation.
    """

    prompt: list[Turn]
    chosen: list[Turn]
    rejected: list[Turn]
    propensity: float
    tools: NotRequired[list[JsonObject]]
    plain_text: NotRequired[bool]


class Ranked(TypedDict):
    """An answer that is ranked: nothing but its text, since the ranking is blind."""

    text: str


class Ranking(TypedDict):
    """A row of `groups.jsonl`: answers to rank, as candidates are read.

    Attributes:
        prompt: turns before the answers.
        row: place of the prompt in the data.
        candidates: the answers, in the order in which they stand.
        propensity: probability with which just these were chosen among the prompt's answers.
        tools: tools that the assistant may call, where there are any.
        plain_text: whether the turns are plain text, which continues the prompt; left out of a conversation.
    """

    prompt: list[Turn]
    row: int
    candidates: list[Ranked]
    propensity: float
    tools: NotRequired[list[JsonObject]]
    plain_text: NotRequired[bool]


def is_usable(candidate: Row) -> bool:
    """Return whether an answer may be compared: it is not empty, and does not say which model it comes from."""
    return unusable(candidate) is None


def chosen_pairs(row: Row, rule: PairRule, seed: int, place: int) -> list[ChosenPair]:
    """Return the pairs of a row's candidates that a rule chooses.

    Args:
        row: a row of candidates; with `reward_scores` unless the rule is random.
        rule: how pairs are chosen.
        seed: seed of the stage.
        place: place of the prompt in the data; each has random numbers of its own.
    """
    scores = list(row[SCORES].values()) if rule.by in BY_SCORE else []
    return choose_pairs(_usable(row), scores, rule, random.Random(f"{seed}/{place}"))


def ranked_row(row: Row, rule: PairRule, seed: int, place: int) -> Ranking | None:
    """Return the answers of a row that are ranked, those whose pairs `chosen_pairs` returns; None if there are too few.

    Args:
        row: a row of candidates.
        rule: how answers are chosen.
        seed: seed of the stage.
        place: place of the prompt in the data.
    """
    group = choose_group(_usable(row), rule, random.Random(f"{seed}/{place}"))
    if group is None:
        return None
    candidates = [Ranked(text=row["candidates"][one]["text"]) for one in group.places]
    chosen: Ranking = {"prompt": row["prompt"], "row": place, "candidates": candidates, "propensity": group.propensity}
    if row.get("tools"):
        chosen["tools"] = row["tools"]
    if mark_of(row):
        chosen["plain_text"] = True
    return chosen


def _usable(row: Row) -> list[int]:
    """Return the places of answers that may be compared, of several equal ones the first."""
    places: dict[str, int] = {}
    for i, candidate in enumerate(row["candidates"]):
        if is_usable(candidate):
            places.setdefault(" ".join(candidate["text"].split()), i)
    return list(places.values())


def pair_row(row: Row, pair: ChosenPair) -> Pair:
    """Return the row of a chosen pair."""
    first, second = (_turn(row["candidates"][place]["text"]) for place in (pair.first, pair.second))
    sides: Pair = {"prompt": row["prompt"], "chosen": [first], "rejected": [second], "propensity": pair.propensity}
    if row.get("tools"):
        sides["tools"] = row["tools"]
    if mark_of(row):
        sides["plain_text"] = True
    return sides


def pairs_to_label(rows: Rows, config: PairChoice, seed: int) -> tuple[list[Row], int]:
    """Return rows of two answers, those of the data or pairs of its candidates, and how many prompts have no pair.

    Args:
        rows: rows of pairs or of candidates.
        config: how pairs of candidates are chosen.
        seed: seed of the stage.

    Raises:
        PipelineError: the data are pairs already and the configuration chooses pairs, or it chooses by scores that the
            candidates do not have.
    """
    everything = [*rows.train, *rows.held_out]
    if rows.shape != "candidates":
        changed = config.changed()
        if changed:
            statement = f"{changed[0]} is {getattr(config, changed[0])}, and the data are pairs already"
            raise PipelineError(Problem(statement, "candidates to choose from", f"leave {changed[0]} out"))
        return list(everything), 0
    if config.pair_choice in BY_SCORE:
        _check_scores(everything, config.pair_choice)
    pairs = [chosen_pairs(row, config.rule, seed, row.get("row", i)) for i, row in enumerate(everything)]
    labelled = [pair_row(row, pair) for row, own in zip(everything, pairs, strict=True) for pair in own]
    return [{**row} for row in labelled], sum(not own for own in pairs)


class ToLabel(NamedTuple):
    """The items of a batch.

    Attributes:
        items: pairs to compare, or groups to rank.
        left_out: number of rows left out: duplicates, and equal answers.
        alone: number of prompts with too few answers.
        is_ranked: whether the items are groups.
    """

    items: list[Item]
    left_out: int
    alone: int
    is_ranked: bool


def items_to_label(rows: Rows, config: PairChoice, seed: int) -> ToLabel:
    """Return the items that people label: groups to rank, or pairs.

    People rank candidates if `pair_choice` is `rank`, and the groups that a `sample` stage chose unless the
    configuration pairs them.

    Args:
        rows: rows of pairs, candidates or groups.
        config: how candidates are chosen.
        seed: seed of the stage.

    Raises:
        PipelineError: as `pairs_to_label` says, or `rank_size` is set and the groups are chosen already.
    """
    everything = [*rows.train, *rows.held_out]
    are_groups = rows.shape == "candidates" and bool(everything) and all(map(_is_group, everything))
    if rows.shape != "candidates" or not (config.pair_choice == "rank" or (are_groups and not config.changed())):
        pairs, alone = pairs_to_label(rows, config, seed)
        return ToLabel(*items_of(pairs), alone, is_ranked=False)
    if are_groups and "rank_size" in config.changed():
        statement = f"rank_size is {config.rank_size}, and the data are groups already"
        raise PipelineError(Problem(statement, "candidates to choose from", "leave rank_size out"))
    groups = [
        row if are_groups else ranked_row(row, config.rule, seed, row.get("row", i)) for i, row in enumerate(everything)
    ]
    chosen = [group for group in groups if group is not None]
    answers = ([[_turn(one["text"])] for one in group["candidates"]] for group in chosen)
    told = [{**group, "answers": own} for group, own in zip(chosen, answers, strict=True)]
    return ToLabel(*groups_of(told), len(groups) - len(chosen), is_ranked=True)


def _is_group(row: Row) -> bool:
    """Return whether a row of candidates is one of `groups.jsonl`: chosen to be ranked, and not paired."""
    return "propensity" in row and "pairs" not in row and LEAST_RANKED <= len(row["candidates"]) <= MOST_RANKED


def _check_scores(rows: Sequence[Row], by: str) -> None:
    """Check that all candidates have scores of the same reward models.

    Raises:
        PipelineError: a row lacks them.
    """
    for row in rows:
        if not _has_scores(row):
            asked = " ".join(row["prompt"][-1]["content"].split())[:60]
            statement = f"pair_choice is {by}, and the candidates of “{asked}” have no scores"
            raise PipelineError(
                Problem(statement, "scores of a reward model", "name one in `reward` of the sample stage")
            )


def _has_scores(row: Row) -> bool:
    """Return whether a row has a score of each of its candidates, by one reward model or more."""
    scores, count = row.get(SCORES), len(row["candidates"])
    return (
        isinstance(scores, dict)
        and bool(scores)
        and all(isinstance(own, list) and len(own) == count for own in scores.values())
        and all(_is_score(score) for own in scores.values() for score in own)
    )


def _is_score(value: object) -> bool:
    """Return whether a value is a finite number that a difference can be made of."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _turn(text: str) -> Turn:
    return {"role": "assistant", "content": text}
