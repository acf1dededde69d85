"""Renders a judge's figures: flat metrics for a manifest, and a page with a table."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.evaluation.judges.measures import JudgeFigures
from pipeline.evaluation.markdown import escaped, table
from pipeline.evaluation.stats.estimate import Estimate, number_interval, percent_interval, rounded


class Spent(NamedTuple):
    """What the verdicts of an artifact cost, whenever they were asked for.

    Attributes:
        calls: different requests that were answered.
        tokens: tokens of these requests and their replies.
    """

    calls: int = 0
    tokens: int = 0


RATES = {
    "first_position": ("prefers the response shown first", "verdicts that prefer one"),
    "flip_rate": ("verdict flips with the order", "judged pairs"),
    "longer_wins": ("prefers the longer response", "preferences"),
    "parse_failure_rate": ("reply without a verdict", "asked pairs"),
    "error_rate": ("no verdict, for whatever reason", "asked pairs"),
}
"""What the report calls each rate, and of what it is a share."""

COUNTS = ("pairs", "preferences", "ties", "flips", "equal", "errors", "parse_failures")


def metrics_of(figures: JudgeFigures, spent: Spent) -> dict[str, float]:
    """Return the figures as flat metrics, each rate with the ends of its interval: `flip_rate`, `flip_rate_low`, …."""
    metrics = {name: float(getattr(figures, name)) for name in COUNTS}
    metrics |= {"calls": float(spent.calls), "tokens": float(spent.tokens)}
    estimates: dict[str, Estimate | None] = {name: getattr(figures, name) for name in RATES}
    if figures.people is not None:
        metrics["people_pairs"] = float(figures.people.pairs)
        estimates |= {"people_agreement": figures.people.same, "people_kappa": figures.people.kappa}
    for name, estimate in estimates.items():
        if estimate is not None:
            metrics |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return {name: rounded(value) for name, value in metrics.items()}


def page(figures: JudgeFigures, spent: Spent, judge: str) -> str:
    """Render the page of a judge.

    Args:
        figures: its figures.
        spent: what its verdicts cost.
        judge: its name.
    """
    counts = [["pairs", f"{figures.pairs:,}"]]
    words = {"preferences": "preferred one", "ties": "tie", "flips": "flipped, a tie", "equal": "equal, not asked"}
    counts += [[word, f"{getattr(figures, name):,}"] for name, word in words.items()]
    counts.append(["no verdict", f"{figures.errors:,}"])
    if figures.parse_failures:
        counts.append(["of these, a reply without one", f"{figures.parse_failures:,}"])
    if spent.calls:
        counts += [["calls", f"{spent.calls:,}"], ["tokens", f"{spent.tokens:,}"]]
    rates = [
        [words[0], percent_interval(estimate), words[1], f"{estimate.n:,}"]
        for name, words in RATES.items()
        if (estimate := getattr(figures, name)) is not None
    ]
    people = figures.people
    if people is not None:
        pairs = "pairs that people labelled too"
        rates.append(["agrees with people", percent_interval(people.same), pairs, f"{people.pairs:,}"])
        if people.kappa is not None:
            rates.append(["Cohen's kappa with people", number_interval(people.kappa), pairs, f"{people.pairs:,}"])
    parts = [f"# Judge {escaped(judge)}\n", table([["pairs", "number"], *counts])]
    if rates:
        parts += ["Intervals are of 95 %. They resample prompts where a prompt has several pairs or verdicts.\n"]
        parts += [table([["rate", "value", "of", "prompts or pairs"], *rates])]
    return "\n".join(parts)
