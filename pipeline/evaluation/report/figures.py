"""The figures of a report: win rates, rounds, correctness by task, a sweep, and reward against gold over KL.

Owns the content of each figure. Knows nothing of statistics: it draws a `Report`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.drawing import (
    BASELINE,
    INK,
    MUTED,
    PALETTE,
    RULE,
    WIDTH_IN,
    colours,
    folded,
    legend,
    new_figure,
    plain,
    save,
    style,
)
from pipeline.evaluation.report.frontier import draw_frontier, has_frontier
from pipeline.evaluation.report.record import Gaming, Report
from pipeline.evaluation.report.tables import gamed_text
from pipeline.evaluation.stats.estimate import Estimate, number, percent_interval, signed_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAME_CHARACTERS, _TITLE_CHARACTERS = 24, 60
"""Most characters in a line of a name beside a figure, and in a line of its title."""
_MOST_LABELLED = 6
"""Most models whose values stand below their names in the figure of rounds."""
_BAR_IN, _LEAST_BAR_IN, _TALLEST_IN = 0.15, 0.07, 16.0
"""Thickness of a bar in inches, and its minimum in a figure that would be taller than `_TALLEST_IN`."""


def draw(report: Report, folder: Path) -> list[Path]:
    """Draw every figure for which the report has data; return the files written."""
    written = []
    with style():
        if any(metrics.win_rate for metrics in report.models.values()):
            written.append(_win_rates(report, folder / "win_rates.svg"))
        if report.rounds:
            written.append(_rounds(report, folder / "rounds.svg"))
        if report.task_names:
            written.append(_tasks(report, folder / "tasks.svg"))
        if has_frontier(report):
            written.append(draw_frontier(report, folder / "frontier.svg"))
        if _kl_and_gains(report):
            written.append(_reward_gold(report, folder / "reward_gold.svg"))
    return written


def _win_rates(report: Report, path: Path) -> Path:
    """Draw win rates as dots with intervals, one row per model, with the value as text."""
    shown = {name: m.win_rate for name, m in report.models.items() if m.win_rate}
    colour = colours(list(report.models), report.baseline)
    names = [folded(name, _NAME_CHARACTERS) for name in shown]
    lines = sum(max(1, name.count("\n")) for name in names)  # two lines fit in the height of a row
    figure = new_figure(WIDTH_IN, 1.1 + 0.46 * lines)
    axes = figure.add_subplot()
    for row, (name, rate) in enumerate(shown.items()):
        _whisker(axes, 100 * rate.value, row, rate, colour[name])
        axes.text(102, row, percent_interval(rate), va="center", ha="left", color=INK, clip_on=False)
    axes.axvline(50, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 25, 50, 75, 100], ["0 %", "25 %", "50 %\nno preference", "75 %", "100 %"])
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    judge = "gold function" if report.judge == "gold" else "reward model"
    _title(figure, f"Win rate against {report.baseline}, judged by the {judge}")
    return save(figure, path, title="Win rates")


def _rounds(report: Report, path: Path) -> Path:
    """Draw the mean score by the judge over the rounds, with intervals; below, each round's change as text."""
    steps = report.rounds or []
    names = [steps[0].before, *(step.model for step in steps)]
    means: list[Estimate] = [mean for name in names if (mean := getattr(report.models[name], report.judge))]
    figure = new_figure(WIDTH_IN, 3.6)
    axes = figure.add_subplot()
    places, values = range(len(means)), [mean.value for mean in means]
    axes.plot(places, values, "-", color=RULE, linewidth=2, zorder=2)
    for place, mean in zip(places, means, strict=True):
        colour = PALETTE[0] if place else BASELINE
        axes.vlines(place, mean.low, mean.high, color=colour, linewidth=2.4, zorder=3)
        axes.plot([place], [mean.value], "o", color=colour, markersize=8, markeredgecolor="white", zorder=4)
    labels = [folded(name, _NAME_CHARACTERS) for name in names]
    if len(means) <= _MOST_LABELLED:
        changes = ["", *(f"\n{signed_interval(step.delta)}".replace(" [", "\n[") for step in steps)]
        labels = [
            f"{label}\n{number(mean.value)}{change}" for label, mean, change in zip(labels, means, changes, strict=True)
        ]
    axes.set_xticks(places, labels)
    if len(means) > _MOST_LABELLED:
        axes.tick_params(axis="x", rotation=90)
    axes.set_xlim(-0.6, len(means) - 0.4)
    axes.margins(y=0.15)
    axes.grid(axis="y")
    judge = "gold function" if report.judge == "gold" else "reward model"
    axes.set_ylabel("mean score")
    _title(figure, f"Rounds and their changes, judged by the {judge}")
    return save(figure, path, title="Rounds")


def _whisker(axes: Axes, value: float, row: float, estimate: Estimate, colour: str) -> None:
    axes.hlines(row, 100 * estimate.low, 100 * estimate.high, color=colour, linewidth=2.4, zorder=3)
    axes.plot([value], [row], "o", color=colour, markersize=8, markeredgecolor="white", markeredgewidth=1, zorder=4)


def _title(figure: Figure, text: str) -> None:
    """Set a title over the whole width, aligned with the names."""
    figure.suptitle(folded(text, _TITLE_CHARACTERS), x=0.01, ha="left", fontsize=11.5, fontweight="bold")


def _tasks(report: Report, path: Path) -> Path:
    """Draw correctness as one group of bars with intervals per task; more tasks make the figure taller, not wider.

    A triangle beside an interval marks a bar that is below the baseline beyond noise.
    """
    names = sorted((name for name, m in report.models.items() if m.tasks), key=lambda name: name != report.baseline)
    tasks = report.task_names
    colour = colours(list(report.models), report.baseline)
    shown = [folded(task, _NAME_CHARACTERS) for task in tasks]
    thick = min(_BAR_IN, max(_LEAST_BAR_IN, _TALLEST_IN / len(tasks) / (len(names) + 1)))
    rows = max(len(names) + 1, *(2 + name.count("\n") for name in shown))  # of a group, including the gap below it
    figure = new_figure(WIDTH_IN, 1.2 + thick * rows * len(tasks) + 0.2 * len(names))
    axes = figure.add_subplot()
    bar = 1 / rows
    handles: list[Any] = []
    for index, name in enumerate(names):
        metrics_by_task = report.models[name].tasks
        own = [(group, metrics_by_task[task]) for group, task in enumerate(tasks) if task in metrics_by_task]
        y = [group + (index - (len(names) - 1) / 2) * bar for group, _ in own]
        widths, highs = [100 * each.correct.value for _, each in own], [100 * each.correct.high for _, each in own]
        handles.append(axes.barh(y, widths, height=bar * 0.9, color=colour[name], label=plain(name), zorder=2))
        axes.hlines(
            y, [100 * each.correct.low for _, each in own], highs, color=INK, linewidth=0.9, alpha=0.75, zorder=3
        )
        for position, high, (_, each) in zip(y, highs, own, strict=True):
            if each.delta and each.delta.is_below(report.level):
                axes.plot([high + 2.5], [position], "v", color=INK, markersize=4.5, zorder=4, clip_on=False)
    axes.set_yticks(range(len(tasks)), shown)
    axes.set_ylim(len(tasks) - 0.45, -0.55)
    axes.set_xlim(0, 104)
    axes.set_xticks([0, 25, 50, 75, 100], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.grid(axis="x")
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    labels = [plain(name) for name in names]
    if any(metrics.lower_tasks(report.level) for metrics in report.models.values()):
        handles += axes.plot([], [], "v", color=INK, markersize=5.5)
        labels.append(f"below {plain(report.baseline)} beyond noise")
    legend(figure, handles, labels)
    _title(figure, "Correct answers by task")
    return save(figure, path, title="Correct answers by task")


def _kl_and_gains(report: Report) -> dict[str, tuple[Estimate, Gaming]]:
    """Return KL and gains, for the models that have both."""
    return {name: (m.kl, m.gaming) for name, m in report.models.items() if m.kl and m.gaming}


def _reward_gold(report: Report, path: Path) -> Path:
    """Draw both gains over KL in one unit: a filled dot for the reward model, a hollow diamond for gold.

    Names are in the legend: models of one run often have nearly the same KL, where labels would overlap.
    """
    points = _kl_and_gains(report)
    colour = colours(list(report.models), report.baseline)
    figure = new_figure(WIDTH_IN, 4.0 + 0.1 * len(points))
    axes: Any = figure.add_subplot()
    handles = axes.plot([], [], "o", color=MUTED, markersize=7) + axes.plot(
        [], [], "D", color=MUTED, markerfacecolor="white", markersize=7
    )
    labels = ["reward model", "gold", plain(report.baseline)]
    handles += axes.plot([0], [0], "s", color=BASELINE, markersize=7, zorder=2)
    apart = 0.006 * max(kl.high for kl, _ in points.values())  # side by side, so that neither interval hides the other
    for name, (kl, gaming) in points.items():
        axes.plot([kl.value] * 2, [gaming.proxy.value, gaming.gold.value], color=colour[name], linewidth=5, alpha=0.18)
        for gain, side, marker, fill in ((gaming.proxy, -1, "o", colour[name]), (gaming.gold, 1, "D", "white")):
            x = kl.value + side * apart
            axes.vlines(x, gain.low, gain.high, color=colour[name], linewidth=1.6, zorder=3)
            axes.hlines(gain.value, kl.low, kl.high, color=colour[name], linewidth=0.9, alpha=0.5, zorder=3)
            axes.plot([x], [gain.value], marker, color=colour[name], markerfacecolor=fill, markersize=7, zorder=4)
        gamed = gamed_text(report.models[name])
        handles += axes.plot([], [], "s", color=colour[name], markersize=7)
        labels.append(f"{plain(name)}: {plain(gamed)}" if gamed else plain(name))
    axes.axhline(0, color=BASELINE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    legend(figure, handles, labels)
    axes.grid(color=RULE)
    axes.margins(x=0.1, y=0.14)
    axes.set_xlabel("KL to the reference (nats per answer)")
    over = plain(report.baseline) if len(report.baseline) <= _NAME_CHARACTERS else "the baseline"
    axes.set_ylabel(f"gain over {over}\n(standard deviations)")
    _title(figure, "Reward model and gold over KL")
    return save(figure, path, title="Reward model and gold against KL")
