"""How several people's labels of a pair become one decision: by majority, or by Dawid and Skene's estimate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.stats.annotators import dawid_skene
from pipeline.preferences.agreement import SIGN, Decide, Decision, label_table, majority
from pipeline.preferences.items import Item
from pipeline.preferences.labels import VERDICTS, Answer, State
from pipeline.preferences.rankings import Implied, without_cycles
from pipeline.preferences.stored_items import ids_of

LEAST_LEAD = 1e-6
"""Lead of a verdict's probability over that of the opposite one below which labels decide nothing."""


def aggregated(name: str, pairs: Implied) -> Decide:
    """Return the function that aggregates the labels of a pair, also of one that follows from rankings.

    Args:
        name: ``majority`` or ``dawid_skene``.
        pairs: pairs of the batch, and their labels.
    """
    return without_cycles(pairs, decision_by(name, pairs.items, pairs.state))


def decision_by(name: str, items: Sequence[Item], state: State) -> Decide:
    """Return the function that aggregates the labels of an item.

    ``dawid_skene`` estimates how often each person errs in which way from all labels of the batch, and the probability
    of each verdict of an item from that. The decision is the most likely of the verdicts that somebody gave the item:
    where few labels say how a person errs, the estimate would else turn ties into preferences, and preferences of a
    single person into the opposite ones. If it prefers a response, the margin is the mean strength of the people who
    preferred it, times the probability of this verdict less that of the opposite one; where the opposite one is as
    likely, the labels are split. With one label for each item there is nothing to estimate errors from, and the label
    is the decision.

    Args:
        name: ``majority`` or ``dawid_skene``.
        items: items of the batch.
        state: their labels.
    """
    if name == "majority":
        return majority
    verdict_NA = label_table(items, state).verdict_NA
    count_N = (verdict_NA >= 0).sum(1)
    labelled = [int(place) for place in np.flatnonzero(count_N)]
    if not labelled or count_N.max() < 2:
        return majority
    posterior_NK = dawid_skene(verdict_NA[labelled], range(len(VERDICTS))).posterior_NK
    ids = ids_of(items)
    posteriors = {ids[place]: posterior_K for place, posterior_K in zip(labelled, posterior_NK, strict=True)}

    def decide(item: str, labels: Sequence[Answer]) -> Decision:
        posterior_K = posteriors[item]
        given = {label.verdict for label in labels}
        verdict = max((one for one in VERDICTS if one in given), key=lambda one: posterior_K[VERDICTS.index(one)])
        sign = SIGN.get(verdict, 0)
        if not sign:
            return Decision(verdict, 0.0)
        strengths = [label.strength for label in labels if label.verdict == verdict]
        lead = float(posterior_K[0] - posterior_K[1]) * sign
        if lead < LEAST_LEAD:
            return Decision("split", 0.0)
        return Decision(verdict, sign * lead * sum(strengths) / len(strengths))

    return decide
