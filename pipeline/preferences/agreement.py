"""The labels of a batch as a table of numbers, and the aggregation of a pair's labels into one preference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.plain_data import JsonObject
from pipeline.preferences.edits import chosen_edit, edited, edited_items
from pipeline.preferences.events import Verdict
from pipeline.preferences.items import Item, text_of
from pipeline.preferences.labels import VERDICTS, Answer, FinalVerdict, State
from pipeline.preferences.probes import is_probe
from pipeline.preferences.stored_items import ids_of, items_at
from pipeline.records.shapes.turns import Turn

SIGN: Mapping[str, int] = {"first": 1, "second": -1}


class LabelledPair(TypedDict):
    """A row of preferences that people gave.

    Attributes:
        prompt: turns before the responses.
        chosen: turns of the preferred response.
        rejected: turns of the other response.
        margin: mean strength of the preference times the lead of those who share it; 0 for a tie.
        tools: tools that the assistant may call, where there are any.
    """

    prompt: list[Turn]
    chosen: list[Turn]
    rejected: list[Turn]
    margin: float
    tools: NotRequired[list[JsonObject]]


class LabelTable(NamedTuple):
    """The labels of a batch as numbers; N items, A annotators.

    Attributes:
        annotators: names of the columns.
        verdict_NA: place of each verdict in `VERDICTS`; -1 where an annotator did not label the item.
        strength_NA: signed strength, -3 to 3, positive for the first response, 0 for verdicts that prefer neither; -9
            where an annotator did not label the item.
        left_NA: 1 where the response on the left of the screen was preferred, 0 where that on the right was, else -1.
        seconds_NA: time that the label took; NaN where there is none.
    """

    annotators: list[str]
    verdict_NA: NDArray[np.int8]
    strength_NA: NDArray[np.int8]
    left_NA: NDArray[np.int8]
    seconds_NA: NDArray[np.float64]


def label_table(items: Sequence[Item], state: State, *, only_shared: bool = False) -> LabelTable:
    """Return the labels of items in a table.

    Args:
        items: items of the batch.
        state: their labels.
        only_shared: whether to leave out the items with less than two labels, which say nothing of agreement.
    """
    ids = ids_of(items)
    if only_shared:
        ids = [item for item in ids if len(state.given.get(item, ())) > 1 and len(state.labels(item)) > 1]
    names = [name for name, answers in state.answers.items() if any(map(_is_label, answers, answers.values()))]
    column = {name: place for place, name in enumerate(names)}
    rows: list[int] = []
    columns: list[int] = []
    labels: list[Answer] = []
    for row, item in enumerate(ids):
        for name, answer in state.given.get(item, {}).items():
            if answer.kind == "label":
                rows.append(row)
                columns.append(column[name])
                labels.append(answer)
    shape = (len(ids), len(names))
    verdict_NA, strength_NA, left_NA = (np.full(shape, missing, np.int8) for missing in (-1, -9, -1))
    seconds_NA = np.full(shape, np.nan)
    cells = np.array(rows, int), np.array(columns, int)
    verdict_NA[cells] = [_PLACES[one.verdict] for one in labels]
    strength_NA[cells] = [_SIGNS[one.verdict] * one.strength for one in labels]
    left_NA[cells] = [_left(one) for one in labels]
    seconds_NA[cells] = [np.nan if one.seconds is None else one.seconds for one in labels]
    return LabelTable(names, verdict_NA, strength_NA, left_NA, seconds_NA)


_PLACES: Mapping[Verdict | None, int] = {verdict: place for place, verdict in enumerate(VERDICTS)}
_SIGNS: Mapping[Verdict | None, int] = {verdict: SIGN.get(verdict, 0) for verdict in VERDICTS}


def _left(label: Answer) -> int:
    """Return 1 for a preference for the left of the screen, 0 for the right; -1 for neither, or an unknown side."""
    if label.swapped is None or label.verdict not in SIGN:
        return -1
    return int((label.verdict == "first") != label.swapped)


def _is_label(item: str, answer: Answer) -> bool:
    return answer.kind == "label" and not is_probe(item)


class Decision(NamedTuple):
    """What the labels of an item say together.

    Attributes:
        verdict: a verdict, or ``split`` when the labels agree on none.
        margin: positive when the first response is preferred, negative when the second is, 0 for any other verdict.
    """

    verdict: str
    margin: float


Decide = Callable[[str, Sequence[Answer]], Decision]
"""Aggregates the labels of an item, of which there is at least one, into a decision."""


def majority(item: str, labels: Sequence[Answer | FinalVerdict]) -> Decision:
    """Return the decision of the majority (`margin_of`)."""
    margin = margin_of(labels)
    if margin:
        return Decision("first" if margin > 0 else "second", margin)
    verdicts = {label.verdict for label in labels}
    return Decision(str(verdicts.pop()) if len(verdicts) == 1 else "split", 0.0)


def decided(items: Sequence[Item], state: State, decide: Decide) -> tuple[list[tuple[int, Decision]], Counter[str]]:
    """Return the place and the decision of each item with labels; and the number of other items by reason.

    Where a lead adjudicated, the lead's verdict decides alone. Other flagged items, and dropped ones, have no decision.
    """
    decisions: list[tuple[int, Decision]] = []
    without = Counter[str]()
    for place, name in enumerate(ids_of(items)):
        final = state.adjudicated.get(name)
        if name in state.dropped:
            without["dropped"] += 1
        elif final is not None:
            decisions.append((place, majority(name, [final])))
        elif state.is_flagged(name):
            without["flagged"] += 1
        elif labels := [one for one in state.given.get(name, {}).values() if one.kind == "label"]:
            decisions.append((place, decide(name, labels)))
        else:
            without["unlabelled"] += 1
    return decisions, without


def exported(
    items: Sequence[Item], state: State, decide: Decide = majority, *, ties: bool = False
) -> tuple[list[LabelledPair], Counter[str]]:
    """Return the labels as preference rows, in the order of items, and the number of items without a row by reason.

    The rows are conversational, as trl takes them. The chosen response is as the people who preferred it edited it
    (`chosen_edit`), the rejected one as it was. Ties, pairs with both responses good or both bad, split votes, and
    flagged or dropped pairs give no row.

    Args:
        items: items of the batch.
        state: labels.
        decide: aggregates the labels of an item.
        ties: whether items without a preference make rows of margin 0, the first response as the chosen one.
    """
    rows: list[LabelledPair] = []
    decisions, without = decided(items, state, decide)
    are_edited = edited_items(state)
    without.update(one.verdict for _, one in decisions if not one.margin and not ties)
    preferences = [(place, one.margin) for place, one in decisions if one.margin or ties]
    preferred_items = items_at(items, [place for place, _ in preferences])
    for item, (_, margin) in zip(preferred_items, preferences, strict=True):
        chosen, rejected = item.responses[::-1] if margin < 0 else item.responses
        preferred: Verdict = "second" if margin < 0 else "first"
        is_edited = bool(margin) and item.id in are_edited
        edit = chosen_edit(state.labels(item.id).values(), preferred) if is_edited else ""
        rows.append(
            {
                "prompt": [turn.copy() for turn in item.prompt],
                "chosen": edited(chosen, edit),
                "rejected": [turn.copy() for turn in rejected],
                "margin": abs(margin),
            }
        )
        if item.tools:
            rows[-1]["tools"] = list(item.tools)
    return rows, without


def edited_pairs(rows: Iterable[LabelledPair], items: Iterable[Item]) -> int:
    """Return the number of rows whose chosen response is none of the data: somebody edited it."""
    given = {text_of(response) for item in items for response in item.responses}
    return sum(text_of(row["chosen"]) not in given for row in rows)


def margin_of(labels: Sequence[Answer | FinalVerdict]) -> float:
    """Return the margin of an item's labels: positive when more people preferred the first response, else negative.

    The majority decides, whatever strengths the minority gave; with equal numbers the vote is split and the margin 0.
    Its size is the mean strength of the people who preferred the chosen response, times their lead: the number of
    people who preferred it less those who preferred the other, over all labels. One person's label has its strength as
    margin; three people of whom two preferred a response at strength 2 give 2 · 1/3.
    """
    if len(labels) == 1:  # as most pairs have
        return float(SIGN.get(str(labels[0].verdict), 0) * labels[0].strength)
    first, second = ([one.strength for one in labels if one.verdict == verdict] for verdict in SIGN)
    lead = len(first) - len(second)
    if lead == 0:
        return 0.0
    winners = first if lead > 0 else second
    return sum(winners) / len(winners) * lead / len(labels)
