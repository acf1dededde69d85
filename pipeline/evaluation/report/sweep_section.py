"""The sections of a report on a sweep and on the best of n, each a table and a sentence.

Owns wording and order. Knows nothing of statistics or drawing: it renders a `Report` to text.
"""

from __future__ import annotations

from collections.abc import Callable

from pipeline.evaluation.report.record import Judge, Report, SettingFigures, Spread
from pipeline.evaluation.stats.estimate import number, number_interval, percent

_JUDGES: tuple[Judge, ...] = ("gold", "reward")


def sweep_table(report: Report) -> list[list[str]]:
    """Return a header and one row per setting, as plain text, without columns that are empty for all."""
    rows = report.sweep or []
    columns: list[tuple[str, str, Callable[[float], str]]] = [
        (f"win rate vs {report.baseline}", "win_rate", percent),
        ("gold", "gold", number),
        ("reward", "reward", number),
        ("correct", "correct", percent),
        ("KL", "kl", number),
        (f"NLL by {report.baseline}", "nll", number),
        ("tokens", "length", lambda value: number(value, 1)),
    ]
    shown = [column for column in columns if any(column[1] in row.figures for row in rows)]
    header = ["setting", "models", *(title for title, _, _ in shown)]
    body = [
        [setting_text(row), str(len(row.models)), *(_cell(row.figures.get(key), text) for _, key, text in shown)]
        for row in rows
    ]
    return [header, *body]


def setting_text(row: SettingFigures) -> str:
    """Return a setting in words: `dpo, beta 0.05`."""
    return ", ".join([row.stage, *(f"{key} {value_text(value)}" for key, value in row.settings.items())])


def value_text(value: object) -> str:
    """Return the value of a setting: `0.05`, `true`, `null`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.12g}"
    return "null" if value is None else str(value)


def sweep_sentence(report: Report) -> str:
    """Return what the figures of the table are: means with standard deviations over seeds, or single models."""
    several = [len(row.models) for row in report.sweep or [] if len(row.models) > 1]
    if not several:
        return "One model of each setting, so nothing says how much another seed would change."
    counts = f"{min(several)}" if min(several) == max(several) else f"{min(several)} to {max(several)}"
    return f"Means over {counts} models that differ in the seed only, ± their standard deviation."


def _cell(spread: Spread | None, text: Callable[[float], str]) -> str:
    if spread is None:
        return "–"
    return text(spread.mean) if spread.sd is None else f"{text(spread.mean).removesuffix(' %')} ± {text(spread.sd)}"


def best_of_n_table(report: Report) -> list[list[str]]:
    """Return a header and a row for n = 1, 2, 4, … and the last n, as plain text."""
    points = report.best_of_n.points if report.best_of_n else []
    shown = [point for point in points if point.n & (point.n - 1) == 0 or point is points[-1]]
    judges: list[Judge] = [judge for judge in _JUDGES if any(getattr(point, judge) for point in points)]
    body = [
        [
            str(point.n),
            *(number_interval(score) for judge in judges if (score := getattr(point, judge))),
            number(point.kl),
        ]
        for point in shown
    ]
    return [["n", *judges, "KL, at most"], *body]


def best_of_n_sentence(report: Report, shown: Callable[[str], str] = str) -> str:
    """Return what the table of the best of n is; ``shown`` renders the name of the baseline."""
    chosen = "reward model" if report.best_of_n and report.best_of_n.chosen_by == "reward" else "gold function"
    name, most = shown(report.baseline), report.best_of_n.points[-1].n if report.best_of_n else 0
    all_answers = f" Here n = 1 is the mean of all {most} answers to a prompt; the table above has one of them."
    return f"Mean scores of the best of n answers of {name}, chosen by the {chosen}.{all_answers}"
