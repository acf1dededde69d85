"""The conclusion of a comparison of two models: the deciding figure as a sentence, and the figures that contradict it.

Owns the rule and its wording for `report.md`, the terminal, the manifest's summary and `trueup compare`, so that all of
them agree. Knows nothing of statistics: it reads computed figures.

A figure is beyond noise when its interval *and* its test exclude "no difference". The first figure beyond noise
decides, in this order: checkable answers (`correct`), gold when a reward model is the judge, win rate, mean score. A
figure beyond noise on the other side makes the outcome ``mixed``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from pipeline.errors import counted
from pipeline.evaluation.report.record import Gaming, Judge, Report, WinCounts
from pipeline.evaluation.report.tables import gamed_text
from pipeline.evaluation.stats.estimate import (
    Delta,
    Estimate,
    Record,
    number,
    p_text,
    percent,
    percent_interval,
    points_interval,
    signed_interval,
)

Outcome = Literal["better", "worse", "mixed", "even"]


class Conclusion(Record):
    """The conclusion of a comparison.

    Attributes:
        outcome: outcome for the first model: ``even`` when no figure is beyond noise, ``mixed`` when two contradict.
        deciding: name of the deciding figure, e.g. ``correct``; empty when none decides.
        text: the sentence with the deciding figure.
        contradictions: sentences on the figures of the other side.
    """

    outcome: Outcome
    deciding: str = ""
    text: str
    contradictions: list[str] = Field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """All sentences."""
        return [self.text, *self.contradictions]


class Figures(NamedTuple):
    """The figures of one model against another; a figure that was not measured is None.

    Attributes:
        judge: the judge whose scores decide a win.
        level: confidence level of every interval.
        correct: paired difference of the share of correct answers.
        gold: paired difference of gold, when the reward model is the judge.
        win_rate: win rate by the judge; a tie counts one half.
        counts: counts behind the win rate.
        score: paired difference of the judge's score.
    """

    judge: Judge
    level: float
    correct: Delta | None = None
    gold: Delta | None = None
    win_rate: Estimate | None = None
    counts: WinCounts | None = None
    score: Delta | None = None


class _Evidence(NamedTuple):
    """One figure as evidence.

    Attributes:
        name: name of the figure.
        side: sign of the difference: 1, 0 or -1.
        is_beyond: whether interval and test both exclude "no difference".
        is_half: whether only one of them does.
        text: the figure in words, with interval and p-value.
        short: the figure in words, without them.
    """

    name: str
    side: int
    is_beyond: bool
    is_half: bool
    text: str
    short: str


def conclude(figures: Figures, first: str, second: str) -> Conclusion:
    """Derive the conclusion from the figures of ``first`` against ``second``."""
    evidence = _evidence(figures)
    decides = next((each for each in evidence if each.is_beyond), None)
    if decides is None:
        shown = f" ({evidence[0].text})" if evidence else ""
        text = f"{first} cannot be told from {second} beyond noise{shown}."
        return Conclusion(outcome="even", text=text, contradictions=_half_beyond(evidence))
    word = "better" if decides.side > 0 else "worse"
    against = [each for each in evidence if each.side == -decides.side]
    beyond = [each for each in against if each.is_beyond]
    text = f"{first} is {word} than {second}: {decides.text}."
    if beyond:
        text = f"{first} is {word} than {second} by {decides.name}, but not by every figure: {decides.text}."
    contradictions = [
        f"{_capital(each.name)} says the opposite: {each.text}."
        if each.is_beyond
        else f"{_capital(each.name)} leans the other way, within noise ({each.short})."
        for each in against
    ]
    return Conclusion(
        outcome="mixed" if beyond else "better" if decides.side > 0 else "worse",
        deciding=decides.name,
        text=text,
        contradictions=[*contradictions, *_explained(figures, evidence, first)],
    )


def of_model(report: Report, name: str, shown: Callable[[str], str] = str) -> Conclusion:
    """Return the conclusion on one of a report's models against the baseline; ``shown`` renders names."""
    metrics = report.models[name]
    gold_judges = report.judge == "gold"
    figures = Figures(
        judge=report.judge,
        level=report.level,
        correct=metrics.delta,
        gold=None if gold_judges else metrics.gold_delta,
        win_rate=metrics.win_rate,
        counts=metrics.win_counts,
        score=metrics.gold_delta if gold_judges else metrics.reward_delta,
    )
    return conclude(figures, shown(name), shown(report.baseline))


def summary(report: Report) -> str:
    """Summarize a report in one line: the candidates better than the baseline, then the others by outcome.

    A variant of the baseline is no candidate.
    """
    conclusions = {name: of_model(report, name) for name in report.candidates}
    if not conclusions:
        return f"{report.baseline} alone: nothing to compare it with"
    winners = [name for name, each in conclusions.items() if each.outcome == "better"]
    gamed = {name: gamed_text(report.models[name]) for name in winners}
    named = [f"{name} ({gamed[name]})" if gamed[name] else name for name in winners]
    said = f"better than {report.baseline}: {', '.join(named)}" if winners else f"none is better than {report.baseline}"
    for outcome in ("mixed", "even", "worse"):
        others = [name for name, each in conclusions.items() if each.outcome == outcome]
        said += f"; {outcome}: {', '.join(others)}" if others else ""
    return said + (
        f" (on {report.prompts:,} of {counted(report.available or 0, 'prompt')})" if report.is_sample else ""
    )


def winners(report: Report) -> list[str]:
    """Return the candidates better than the baseline, except those whose gold or correctness fell as reward rose."""

    def has_fallen(gaming: Gaming | None) -> bool:
        return gaming is not None and gaming.verdict in ("gold fell", "correct fell")

    better = [name for name in report.candidates if of_model(report, name).outcome == "better"]
    return [name for name in better if not has_fallen(report.models[name].gaming)]


def _evidence(figures: Figures) -> list[_Evidence]:
    """Return the measured figures as evidence, in the order in which they decide."""
    evidence = []
    level = figures.level

    def add(name: str, delta: Delta | None, shown: Callable[[Delta], str]) -> None:
        if delta is not None:
            is_beyond = delta.is_above(level) or delta.is_below(level)
            is_half = (delta.low > 0 or delta.high < 0) != (delta.p_value < 1 - level)
            text, short = f"{name} {shown(delta)}, {p_text(delta.p_value)}", shown(delta).partition(" [")[0]
            evidence.append(_Evidence(name, _sign(delta.value), is_beyond, is_half, text, short))

    add("correct", figures.correct, points_interval)
    add("mean gold score", figures.gold, signed_interval)
    rate, counts = figures.win_rate, figures.counts
    if rate is not None:
        is_outside = rate.low > _EVEN or rate.high < _EVEN
        # Reports of schema 1 may lack the counts; then the interval alone says what lies beyond noise.
        is_tested = is_outside if counts is None else counts.p_value < 1 - level
        text = f"win rate {percent_interval(rate)}" + (f", {p_text(counts.p_value)}" if counts else "")
        sides = (_sign(rate.value - _EVEN), is_outside and is_tested, is_outside != is_tested)
        evidence.append(_Evidence("win rate", *sides, text, percent(rate.value)))
    add(f"mean {figures.judge} score", figures.score, signed_interval)
    return evidence


def _half_beyond(evidence: Sequence[_Evidence]) -> list[str]:
    """Explain why figures on which interval and test disagree do not count; the first was shown already."""
    half = [each.name if each is evidence[0] else each.text for each in evidence if each.is_half]
    if not half:
        return []
    return [f"Interval and test disagree near the edge, so nothing is claimed from it: {'; '.join(half)}."]


def _explained(figures: Figures, evidence: Sequence[_Evidence], first: str) -> list[str]:
    """Explain a win rate and a mean score of opposite sign by the size of wins and losses; empty otherwise."""
    sides = {each.name: each.side for each in evidence}
    counts, rate, score = figures.counts, sides.get("win rate", 0), sides.get(f"mean {figures.judge} score", 0)
    if rate * score >= 0 or counts is None or counts.won_by is None or counts.lost_by is None:
        return []
    return [
        f"A win rate counts prompts, a mean counts by how much: {first} wins {counted(counts.wins, 'prompt')} by "
        f"{number(counts.won_by)} on average and loses {counts.losses:,} by {number(counts.lost_by)}."
    ]


_EVEN = 0.5


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _capital(name: str) -> str:
    return f"The {name}" if name != "correct" else "Correctness"
