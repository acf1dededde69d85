"""The labels of a batch as a table of numbers, and the aggregation of a pair's labels into one preference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.plain_data import JsonObject
from pipeline.preferences.edits import chosen_edit, edited
from pipeline.preferences.events import Verdict
from pipeline.preferences.items import Item, text_of
from pipeline.preferences.labels import VERDICTS, Answer, FinalVerdict, State
from pipeline.preferences.probes import is_probe
from pipeline.preferences.stored_items import ids_of
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
    verdict_NA: NDArray[np.int64]
    strength_NA: NDArray[np.int64]
    left_NA: NDArray[np.int64]
    seconds_NA: NDArray[np.float64]


def label_table(items: Sequence[Item], state: State) -> LabelTable:
    """Return the labels of items in a table."""
    names = [name for name, answers in state.answers.items() if any(map(_is_label, answers, answers.values()))]
    column = {name: place for place, name in enumerate(names)}
    shape = (len(items), len(names))
    verdict_NA, strength_NA = np.full(shape, -1), np.full(shape, -9)
    left_NA, seconds_NA = np.full(shape, -1), np.full(shape, np.nan)
    for row, item in enumerate(ids_of(items)):
        for name, label in state.labels(item).items():
            sign = SIGN.get(str(label.verdict), 0)
            cell = row, column[name]
            verdict_NA[cell] = VERDICTS.index(cast(Verdict, label.verdict))
            strength_NA[cell] = sign * label.strength
            if sign and label.swapped is not None:
                left_NA[cell] = (sign > 0) != label.swapped
            seconds_NA[cell] = np.nan if label.seconds is None else label.seconds
    return LabelTable(names, verdict_NA, strength_NA, left_NA, seconds_NA)


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
        labels = list(state.labels(name).values())
        final = state.adjudicated.get(name)
        if name in state.dropped:
            without["dropped"] += 1
        elif final is not None:
            decisions.append((place, majority(name, [final])))
        elif state.is_flagged(name):
            without["flagged"] += 1
        elif not labels:
            without["unlabelled"] += 1
        else:
            decisions.append((place, decide(name, labels)))
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
    answers = (pair for own in state.answers.values() for pair in own.items())
    are_edited = {item for item, one in answers if one.details is not None and one.details.edit}
    for place, (verdict, margin) in decisions:
        if not margin and not ties:
            without[verdict] += 1
            continue
        item = items[place]
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
    strengths: dict[int, list[int]] = {1: [], -1: []}
    for label in labels:
        sign = SIGN.get(str(label.verdict), 0)
        if sign:
            strengths[sign].append(label.strength)
    lead = len(strengths[1]) - len(strengths[-1])
    if lead == 0:
        return 0.0
    winners = strengths[1 if lead > 0 else -1]
    return sum(winners) / len(winners) * lead / len(labels)
