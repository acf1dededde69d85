"""The tables of a report as plain text: all models, and correctness by task.

Owns the first tables of the terminal and of the page. Knows nothing of statistics or drawing.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.evaluation.report.record import LOWER_MARK, ModelMetrics, Report, TaskMetrics
from pipeline.evaluation.stats.estimate import number, number_interval, percent, percent_interval, signed_points

_MOST_NAMED = 2
"""Most tasks named in a cell; of more, only their number is given."""


def headline(report: Report) -> list[list[str]]:
    """Return the final table: a header and one row per model, as plain text, without empty columns.

    The columns stand in the order in which figures decide a conclusion, so the first one decides.
    """
    columns: list[tuple[str, list[str]]] = [("model", list(report.models))]

    def add(title: str, cells: Mapping[str, str]) -> None:
        if any(cells.values()):
            columns.append((title, [cells[name] or "–" for name in report.models]))

    models = report.models
    add("correct", {name: _correct_cell(m, report) for name, m in models.items()})
    won = (f"win rate vs {report.baseline}", {name: _win_cell(report, name) for name in models})
    gold = ("gold", {name: number_interval(m.gold) if m.gold else "" for name, m in models.items()})
    for title, cells in (gold, won) if report.judge == "reward" else (won, gold):
        add(title, cells)
    add("reward", {name: _reward_cell(m) for name, m in models.items()})
    add("KL", {name: number(m.kl.value) if m.kl else "" for name, m in models.items()})
    add("tokens", {name: number(m.length.value, 1) if m.length else "" for name, m in models.items()})
    add("ended", {name: percent(m.eos_rate.value, 0) if m.eos_rate else "" for name, m in models.items()})
    if report.task_names:
        add(f"tasks below {report.baseline}", {name: _lower_cell(report, name) for name in models})
    return [[title for title, _ in columns], *([*row] for row in zip(*(cells for _, cells in columns), strict=True))]


def task_table(report: Report) -> list[list[str]]:
    """Return correctness per task: a header and one row per task, with the baseline, then the others with deltas."""
    others = [name for name in report.models if name != report.baseline]
    rows = [["task", "prompts", report.baseline, *others]]
    for task in report.task_names:
        metrics_by_model = {
            name: metrics.tasks[task] for name, metrics in report.models.items() if task in metrics.tasks
        }
        counts = {each.correct.n for each in metrics_by_model.values()}
        asked = max(counts)
        cells = [task, f"{asked:,}"]
        for name in (report.baseline, *others):
            cells.append(_task_cell(metrics_by_model[name], report.level, asked) if name in metrics_by_model else "–")
        rows.append(cells)
    return rows


def win_cell(metrics: ModelMetrics) -> str:
    """Render a win rate with its interval; empty without one."""
    return percent_interval(metrics.win_rate) if metrics.win_rate else ""


def _win_cell(report: Report, name: str) -> str:
    return "baseline" if name == report.baseline else win_cell(report.models[name])


def gamed_text(metrics: ModelMetrics) -> str:
    """Return ``gamed``, ``gamed in howto`` or ``gamed in 4 tasks``; empty for a model that games no reward model."""
    gaming = metrics.gaming
    if gaming is None or not metrics.is_gamed:
        return ""
    if gaming.verdict:
        return "gamed"
    tasks = gaming.gamed_tasks
    return f"gamed in {', '.join(tasks) if len(tasks) <= _MOST_NAMED else f'{len(tasks)} tasks'}"


def correct_cell(metrics: ModelMetrics, report: Report, text: str) -> str:
    """Append to a share of correct answers its number of prompts, unless it covers all of the report's."""
    counted = metrics.correct.n if metrics.correct else report.prompts
    return text if report.prompts is None or counted == report.prompts else f"{text} of {counted:,}"


def _reward_cell(metrics: ModelMetrics) -> str:
    if not metrics.reward:
        return ""
    gamed = gamed_text(metrics)
    return number(metrics.reward.value) + (f" ({gamed})" if gamed else "")


def _correct_cell(metrics: ModelMetrics, report: Report) -> str:
    if not metrics.correct:
        return ""
    mark = f" {LOWER_MARK}" if metrics.delta and metrics.delta.is_below(report.level) else ""
    return correct_cell(metrics, report, percent(metrics.correct.value)) + mark


def _lower_cell(report: Report, name: str) -> str:
    metrics = report.models[name]
    if name == report.baseline or not metrics.tasks:
        return ""
    lower = metrics.lower_tasks(report.level)
    return f"{LOWER_MARK} {', '.join(lower)}" if lower else "none"


def _task_cell(metrics: TaskMetrics, level: float, asked: int) -> str:
    """Return correctness and its difference to the baseline, with the number of prompts if other models have more."""
    text = percent(metrics.correct.value, 0)
    text += f" of {metrics.correct.n:,}" if metrics.correct.n != asked else ""
    if metrics.delta is None:
        return text
    mark = f" {LOWER_MARK}" if metrics.delta.is_below(level) else ""
    return f"{text} ({signed_points(metrics.delta, 0)}){mark}"
