"""Comparison of two models on the same prompts, from the samples of one report or of two.

Owns the pairing and the figures of `trueup compare`. The figures use the report's seed, resamples and level, so that
they equal those of the report for the same two models. Knows nothing of stores or terminals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.evaluation.report.conclusion import Conclusion, Figures, conclude
from pipeline.evaluation.report.record import Judge, Report, WinCounts
from pipeline.evaluation.report.samples import Sample
from pipeline.evaluation.stats.differences import paired_difference
from pipeline.evaluation.stats.estimate import Delta, Estimate, Record
from pipeline.evaluation.stats.intervals import RESAMPLES, Bootstrap
from pipeline.evaluation.stats.winrate import WinRate, win_rate

SEED = 0
"""Seed of the intervals when a report contains none, so that a comparison is reproducible."""


class Measure(Record):
    """One measure of two models on the same prompts.

    Attributes:
        name: ``score``, ``correct``, or ``correct: TASK``.
        first: mean of the first model.
        second: mean of the second model.
        difference: paired difference, first minus second.
    """

    name: str
    first: float
    second: float
    difference: Delta


class Comparison(Record):
    """Comparison of two models on the same prompts, or of one model in two reports.

    Attributes:
        first: label of the first model.
        second: label of the second model.
        source: report or reports with the answers.
        judge: the judge whose scores decide a win.
        prompts: number of shared prompts.
        level: confidence level of every interval.
        conclusion: the conclusion from the figures.
        notes: notes for the reader, e.g. that the report is on a sample.
        win_rate: win rate of the first model, a tie counting one half; None without scores.
        wins: number of prompts won by the first model.
        ties: number of ties.
        losses: number of prompts lost by the first model.
        p_value: p-value of no preference.
        won_by: mean difference of the scores on prompts won.
        lost_by: mean difference on prompts lost, as a positive number.
        measures: means and differences.
    """

    first: str
    second: str
    source: str
    judge: str
    prompts: int
    level: float
    conclusion: Conclusion
    notes: tuple[str, ...] = ()
    win_rate: Estimate | None = None
    wins: int = 0
    ties: int = 0
    losses: int = 0
    p_value: float | None = None
    won_by: float | None = None
    lost_by: float | None = None
    measures: tuple[Measure, ...] = ()


class Pairs(NamedTuple):
    """Paired samples, and how their intervals are computed.

    Attributes:
        samples: for each prompt the samples with the first and the second model's answer.
        judge: the judge whose scores decide a win.
        bootstrap: how intervals and tests are computed.
    """

    samples: Sequence[tuple[Sample, Sample]]
    judge: Judge
    bootstrap: Bootstrap


def pairs_of(samples: Sequence[tuple[Sample, Sample]], report: Report) -> Pairs:
    """Combine paired samples with the judge and the bootstrap of ``report``."""
    seed = SEED if report.seed is None else report.seed
    return Pairs(samples, report.judge, Bootstrap(seed, report.resamples or RESAMPLES, report.level))


def compare_samples(
    pairs: Pairs, names: tuple[str, str], labels: tuple[str, str], source: str, notes: Sequence[str] = ()
) -> Comparison:
    """Compare one model's answers with another's.

    Args:
        pairs: paired samples.
        names: names of the models in the first and in the second sample of a pair.
        labels: labels of the two models in the output.
        source: report or reports of the samples.
        notes: notes for the reader.
    """

    def measured(name: str, attribute: str, task: str | None = None) -> Measure | None:
        values = _paired_values(pairs, names, attribute, task)
        if not values:
            return None
        first, second = [a for a, _ in values], [b for _, b in values]
        return _measure(name, first, second, pairs, is_share=attribute == "correct")

    tasks = dict.fromkeys(sample.task for sample, _ in pairs.samples if sample.task)
    measured_values = [
        measured("correct", "correct"),
        measured("score", "score"),
        *(measured(f"correct: {task}", "correct", task) for task in tasks),
    ]
    measures = {measure.name: measure for measure in measured_values if measure}
    scores = _paired_values(pairs, names, "score", None)
    won: WinRate | None = None
    if scores:
        won = win_rate([first for first, _ in scores], [second for _, second in scores], **pairs.bootstrap.options)
    gold = measured("gold", "gold") if pairs.judge == "reward" else None
    differences = {title: measure.difference for title, measure in measures.items()}
    figures = Figures(
        judge=pairs.judge,
        level=pairs.bootstrap.level,
        correct=differences.get("correct"),
        gold=gold.difference if gold else None,
        win_rate=won.estimate if won else None,
        counts=WinCounts(**won.model_dump(exclude={"estimate"})) if won else None,
        score=differences.get("score"),
    )
    return Comparison(
        first=labels[0],
        second=labels[1],
        source=source,
        judge=pairs.judge,
        prompts=len(pairs.samples),
        level=pairs.bootstrap.level,
        conclusion=conclude(figures, *labels),
        notes=tuple(notes),
        measures=tuple(measures.values()),
        **(won.model_dump(exclude={"estimate", "decided"}) | {"win_rate": won.estimate} if won else {}),
    )


def _paired_values(pairs: Pairs, names: tuple[str, str], attribute: str, task: str | None) -> list[tuple[float, float]]:
    pairs_of_values = []
    for first, second in pairs.samples:
        answers = first.answers.get(names[0]), second.answers.get(names[1])
        if None in answers or (task is not None and first.task != task):
            continue
        values = tuple(getattr(answer, attribute) for answer in answers)
        if None not in values:
            pairs_of_values.append((float(values[0]), float(values[1])))
    return pairs_of_values


def _measure(name: str, first: Sequence[float], second: Sequence[float], pairs: Pairs, *, is_share: bool) -> Measure:
    bounds = (0.0, 1.0) if is_share else None
    difference = paired_difference(list(first), list(second), bounds=bounds, **pairs.bootstrap.options)
    return Measure(name=name, first=sum(first) / len(first), second=sum(second) / len(second), difference=difference)
