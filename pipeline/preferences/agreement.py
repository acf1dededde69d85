"""Agreement between annotators, and the aggregation of a pair's labels into one preference."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from pipeline.preferences.items import Item
from pipeline.preferences.labels import Answer, State
from pipeline.records.shapes.turns import Turn

SIGN: Mapping[str, int] = {"first": 1, "second": -1}


class LabelledPair(TypedDict):
    """A row of preferences that people gave.

    Attributes:
        prompt: turns before the responses.
        chosen: turns of the preferred response.
        rejected: turns of the other response.
        margin: mean strength of the preference, above 0.
    """

    prompt: list[Turn]
    chosen: list[Turn]
    rejected: list[Turn]
    margin: float


@dataclass(frozen=True)
class Agreement:
    """Agreement between annotators on the items with several labels.

    Attributes:
        items: number of items with two labels or more.
        pairs: number of pairs of labels of the same item.
        same: number of these pairs that are equal.
        alpha: Krippendorff's nominal alpha; None when all labels are equal or none can be compared.
    """

    items: int
    pairs: int
    same: int
    alpha: float | None


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Return Krippendorff's alpha for nominal values; items with fewer than two values are left out.

    Args:
        units: the values of each item.

    Returns:
        1 for perfect agreement, 0 for chance agreement; None when all values are equal or none can be paired.

    Source: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, section C.
    """
    totals: Counter[Hashable] = Counter()
    apart = 0.0
    for values in units:
        if len(values) < 2:
            continue
        counts = Counter(values)
        totals.update(counts)
        apart += (len(values) ** 2 - sum(count**2 for count in counts.values())) / (len(values) - 1)
    n = sum(totals.values())
    by_chance = n**2 - sum(count**2 for count in totals.values())
    return 1 - (n - 1) * apart / by_chance if by_chance else None


def agreement(items: Iterable[Item], state: State) -> Agreement:
    """Measure the agreement of the labels of items."""
    units = [[label.verdict for label in state.labels(item.id).values()] for item in items]
    several = [unit for unit in units if len(unit) > 1]
    pairs = [one == other for unit in several for one, other in itertools.combinations(unit, 2)]
    return Agreement(len(several), len(pairs), sum(pairs), krippendorff_alpha(several))


def exported(items: Iterable[Item], state: State) -> tuple[list[LabelledPair], Counter[str]]:
    """Return the labels as preference rows, in the order of items, and the number of items without a row by reason.

    The rows are conversational, as trl takes them. The response that more people preferred is the chosen one
    (`margin_of`). Ties, pairs with both responses good or both bad, split votes, and flagged or dropped pairs give no
    row.
    """
    rows: list[LabelledPair] = []
    without = Counter[str]()
    for item in items:
        labels = list(state.labels(item.id).values())
        if item.id in state.dropped:
            without["dropped"] += 1
        elif state.is_flagged(item.id):
            without["flagged"] += 1
        elif not labels:
            without["unlabelled"] += 1
        elif (margin := margin_of(labels)) == 0:
            verdicts = {label.verdict for label in labels}
            without[str(verdicts.pop()) if len(verdicts) == 1 else "split"] += 1
        else:
            chosen, rejected = item.responses if margin > 0 else item.responses[::-1]
            rows.append(
                {
                    "prompt": [turn.copy() for turn in item.prompt],
                    "chosen": [turn.copy() for turn in chosen],
                    "rejected": [turn.copy() for turn in rejected],
                    "margin": abs(margin),
                }
            )
    return rows, without


def margin_of(labels: Sequence[Answer]) -> float:
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
