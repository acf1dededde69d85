"""Two models' answers to the same prompts, from the samples of one report or of two.

Owns the pairing and the figures of `trueup compare`. They are made as a report makes its own, with the report's seed,
resamples and level, so that both say the same of the same two models. Knows nothing of stores or terminals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.evaluation.conclusion import Conclusion, Figures, conclude
from pipeline.evaluation.differences import paired_difference
from pipeline.evaluation.estimate import Delta, Estimate, Record
from pipeline.evaluation.intervals import RESAMPLES
from pipeline.evaluation.report import Judge, Report, WinCounts
from pipeline.evaluation.samples import Sample
from pipeline.evaluation.winrate import WinRate, win_rate

SEED = 0
"""Of the intervals where a report tells none, so that comparing twice gives the same."""


class Measure(Record):
    """One measure of two models on the same prompts.

    Attributes:
        name: ``score``, ``correct``, or ``correct: TASK``.
        first: mean of the first.
        second: mean of the second.
        difference: paired, first minus second.
    """

    name: str
    first: float
    second: float
    difference: Delta


class Comparison(Record):
    """Two models on the same prompts, or one model in two reports.

    Attributes:
        first: what is compared.
        second: what it is compared with.
        source: where the answers come from.
        judge: whose scores decide.
        prompts: shared by both.
        level: confidence level of every interval.
        conclusion: what the figures come to, led by the one that decides.
        notes: what a reader must know, e.g. that the report is on a sample.
        win_rate: of the first, ties counting one half; absent without scores.
        wins: prompts won.
        ties: prompts on which neither was better.
        losses: prompts lost.
        p_value: of no preference.
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
    """Samples of the same prompts, and what their intervals are made with.

    Attributes:
        samples: the first model's and the second's sample of each prompt.
        judge: whose scores decide.
        settings: seed, resamples and level of every interval.
    """

    samples: Sequence[tuple[Sample, Sample]]
    judge: Judge
    settings: dict[str, Any]


def pairs_of(samples: Sequence[tuple[Sample, Sample]], report: Report) -> Pairs:
    """Return samples of the same prompts, to be compared as ``report`` compares its own."""
    seed = SEED if report.seed is None else report.seed
    settings = {"seed": seed, "resamples": report.resamples or RESAMPLES, "level": report.level}
    return Pairs(samples, report.judge, settings)


def compare_samples(
    pairs: Pairs, names: tuple[str, str], labels: tuple[str, str], source: str, notes: Sequence[str] = ()
) -> Comparison:
    """Compare one model's answers with another's.

    Args:
        pairs: samples of the same prompts.
        names: of the models in the first and in the second sample of a pair.
        labels: what to call them.
        source: where the samples are from.
        notes: what a reader must know.
    """

    def measured(name: str, attribute: str, task: str | None = None) -> Measure | None:
        values = _paired_values(pairs, names, attribute, task)
        if not values:
            return None
        mine, theirs = [a for a, _ in values], [b for _, b in values]
        return _measure(name, mine, theirs, pairs, is_share=attribute == "correct")

    tasks = dict.fromkeys(sample.task for sample, _ in pairs.samples if sample.task)
    found = [
        measured("correct", "correct"),
        measured("score", "score"),
        *(measured(f"correct: {task}", "correct", task) for task in tasks),
    ]
    measures = {measure.name: measure for measure in found if measure}
    scores = _paired_values(pairs, names, "score", None)
    won: WinRate | None = None
    if scores:
        won = win_rate([mine for mine, _ in scores], [theirs for _, theirs in scores], **pairs.settings)
    gold = measured("gold", "gold") if pairs.judge == "reward" else None
    differences = {title: measure.difference for title, measure in measures.items()}
    figures = Figures(
        judge=pairs.judge,
        level=pairs.settings["level"],
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
        level=pairs.settings["level"],
        conclusion=conclude(figures, *labels),
        notes=tuple(notes),
        measures=tuple(measures.values()),
        **(won.model_dump(exclude={"estimate", "decided"}) | {"win_rate": won.estimate} if won else {}),
    )


def _paired_values(pairs: Pairs, names: tuple[str, str], attribute: str, task: str | None) -> list[tuple[float, float]]:
    found = []
    for mine, theirs in pairs.samples:
        answers = mine.answers.get(names[0]), theirs.answers.get(names[1])
        if None in answers or (task is not None and mine.task != task):
            continue
        values = tuple(getattr(answer, attribute) for answer in answers)
        if None not in values:
            found.append((float(values[0]), float(values[1])))
    return found


def _measure(name: str, mine: Sequence[float], theirs: Sequence[float], pairs: Pairs, *, is_share: bool) -> Measure:
    bounds = (0.0, 1.0) if is_share else None
    difference = paired_difference(list(mine), list(theirs), bounds=bounds, **pairs.settings)
    return Measure(name=name, first=sum(mine) / len(mine), second=sum(theirs) / len(theirs), difference=difference)
