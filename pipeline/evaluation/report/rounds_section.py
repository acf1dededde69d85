"""The section of a report on rounds: each model beside the one before, as a table and a sentence.

Owns wording and order. Knows nothing of statistics or drawing: it renders a `Report` to text.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.errors import listed
from pipeline.evaluation.report.record import LOWER_MARK, Report
from pipeline.evaluation.stats.estimate import number_interval, percent_interval, signed_interval


def rounds_table(report: Report) -> list[list[str]]:
    """Return a header and one row per model of the rounds, the one before round 1 first, as plain text."""
    rows = [["round", "model", f"mean {report.judge} score", "change", "win rate vs the round before"]]
    steps = report.rounds or []
    for number, name in enumerate([steps[0].before, *(step.model for step in steps)] if steps else []):
        mean = getattr(report.models[name], report.judge)
        row = [str(number) if number else "start", name, number_interval(mean) if mean else "–"]
        if number:
            step = steps[number - 1]
            mark = f" {LOWER_MARK}" if step.delta.is_below(report.level) else ""
            row += [signed_interval(step.delta) + mark, percent_interval(step.win_rate)]
        rows.append(row + ["–"] * (5 - len(row)))
    return rows


def rounds_sentence(report: Report, shown: Callable[[str], str] = str) -> str:
    """Return which rounds rose beyond noise over the one before, and which fell; ``shown`` renders names."""
    steps, level = report.rounds or [], report.level
    rose = [shown(step.model) for step in steps if step.delta.is_above(level)]
    fell = [shown(step.model) for step in steps if step.delta.is_below(level)]
    if len(rose) == len(steps):
        return f"Every round rises over the one before, beyond noise ({report.judge})."
    even = [shown(step.model) for step in steps if not (step.delta.is_above(level) or step.delta.is_below(level))]
    parts = [("rises", rose), ("falls", fell), ("cannot be told from it", even)]
    said = "; ".join(f"{word}: {listed(names)}" for word, names in parts if names)
    return f"Against the round before, by {report.judge}: {said}."
