"""Warnings about reward models that are not reliable as judges.

Owns the warning. Knows nothing of models or cards: it reads the headline figures of the reward card from the manifest's
metrics, and imports no numerics.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.errors import counted
from pipeline.evaluation.stats.estimate import Estimate, percent_interval

CHANCE = 0.5
"""Accuracy of guessing."""

ON_PROPERTY = "accuracy_on_"
"""Begins the name of each accuracy on pairs that differ in one property only; the property follows."""

_MOST_PROPERTIES = 3
"""Properties in a summary; of more, the one with the lowest accuracy is named."""


def judge_warning(name: str, metrics: Mapping[str, float], *, judges: bool, consequence: str = "") -> str:
    """Return the warning about a reward model; empty when its accuracy's interval lies above chance.

    Args:
        name: name of the reward model.
        metrics: metrics of its manifest; empty when it is from outside.
        judges: whether its scores decide wins; else they are only shown beside gold.
        consequence: what follows from it, where that is not a win of an evaluation.
    """
    consequence = consequence or (
        "Its scores decide who wins here: check a sample of answers by hand, or judge with `gold`."
        if judges
        else "Its scores are shown beside gold; no win is decided by them."
    )
    keys = ("test_accuracy", "test_accuracy_low", "test_accuracy_high", "test_pairs")
    if not all(key in metrics for key in keys):
        if not judges:
            return ""
        statement = f"the reward model {name} has no report on held-out pairs: nobody knows how often it is right."
        return f"{statement} {consequence}"
    value, low, high, pairs = (metrics[key] for key in keys)
    if low > CHANCE:
        return ""
    accuracy = percent_interval(Estimate(value=value, low=low, high=high, n=max(1, int(pairs))))
    shown = f"right on {accuracy} of {int(pairs):,} held-out {'pair' if pairs == 1 else 'pairs'}"
    if high <= CHANCE:
        return f"the reward model {name} is at or below chance: {shown}. {consequence}"
    return f"the reward model {name} cannot be told from chance, with too few pairs to tell: {shown}. {consequence}"


def card_summary(metrics: Mapping[str, float]) -> str:
    """Return the main figures of a reward card in a few words: accuracy, agreement with gold, accuracy by property."""
    shown = accuracy_summary(metrics)
    if "gold_agreement" in metrics:
        shown += f", {metrics['gold_agreement']:.1%} agreement with gold"
    on = {key.removeprefix(ON_PROPERTY): key for key in metrics if key.startswith(ON_PROPERTY)}
    values = {name: metrics[key] for name, key in on.items() if f"{key}_low" in metrics}
    if len(values) > _MOST_PROPERTIES:
        lowest = min(values, key=lambda name: values[name])
        of = counted(len(values), "property", "properties")
        return f"{shown}, lowest of {of} on {lowest} with {values[lowest]:.1%}"
    return ", ".join([shown, *(f"{value:.1%} on {name}" for name, value in values.items())])


def accuracy_summary(metrics: Mapping[str, float]) -> str:
    """Return a reward model's accuracy in a few words, with a remark when its interval includes chance."""
    if not metrics:
        return "no held-out pairs"
    pairs = int(metrics["test_pairs"])
    shown = f"{metrics['test_accuracy']:.1%} of {pairs:,} held-out {'pair' if pairs == 1 else 'pairs'}"
    if metrics["test_accuracy_high"] <= CHANCE:
        return f"{shown}, at or below chance"
    return f"{shown}, too few to tell from chance" if metrics["test_accuracy_low"] <= CHANCE else shown
