"""The figures of a report: win rates, correctness by task, and reward against gold over KL.

Owns what each figure shows. Knows nothing of how the numbers came about: it draws a `Report`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.evaluation.drawing import BASELINE, INK, MUTED, RULE, colours, new_figure, plain, save, style
from pipeline.evaluation.estimate import Estimate, percent_interval
from pipeline.evaluation.report import Gaming, Report
from pipeline.evaluation.tables import gamed_text

_WIDEST_IN = 14.0
_LOWER = "below"


def draw(report: Report, folder: Path) -> list[Path]:
    """Draw every figure the report has numbers for; return the files written."""
    written = []
    with style():
        if any(metrics.win_rate for metrics in report.models.values()):
            written.append(_win_rates(report, folder / "win_rates.svg"))
        if report.task_names:
            written.append(_tasks(report, folder / "tasks.svg"))
        if _frontier(report):
            written.append(_reward_gold(report, folder / "reward_gold.svg"))
    return written


def _win_rates(report: Report, path: Path) -> Path:
    """Dots with intervals, one row per model, the value written beside it."""
    shown = {name: m.win_rate for name, m in report.models.items() if m.win_rate}
    colour = colours(list(report.models), report.baseline)
    figure = new_figure(7.6, 1.1 + 0.46 * len(shown))
    axes = figure.add_subplot()
    for row, (name, rate) in enumerate(shown.items()):
        _whisker(axes, 100 * rate.value, row, rate, colour[name])
        axes.text(102, row, percent_interval(rate), va="center", ha="left", color=INK, clip_on=False)
    axes.axvline(50, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_yticks(range(len(shown)), [plain(name) for name in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 25, 50, 75, 100], ["0 %", "25 %", "50 %\nno preference", "75 %", "100 %"])
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    judge = "gold function" if report.judge == "gold" else "reward model"
    axes.set_title(f"Win rate against {plain(report.baseline)}, judged by the {judge}")
    return save(figure, path, title="Win rates")


def _whisker(axes: Any, value: float, row: float, estimate: Estimate, colour: str) -> None:
    axes.hlines(row, 100 * estimate.low, 100 * estimate.high, color=colour, linewidth=2.4, zorder=3)
    axes.plot([value], [row], "o", color=colour, markersize=8, markeredgecolor="white", markeredgewidth=1, zorder=4)


def _tasks(report: Report, path: Path) -> Path:
    """Grouped bars with intervals; a mark above a bar that is below the baseline beyond noise."""
    names = sorted((name for name, m in report.models.items() if m.tasks), key=lambda name: name != report.baseline)
    tasks = report.task_names
    colour = colours(list(report.models), report.baseline)
    bar = 0.82 / len(names)
    figure = new_figure(min(_WIDEST_IN, max(7.6, 0.9 + len(tasks) * (0.35 + 0.17 * len(names)))), 3.7)
    axes = figure.add_subplot()
    for place, name in enumerate(names):
        found = report.models[name].tasks
        rows = [(group, found[task]) for group, task in enumerate(tasks) if task in found]
        x = [group + (place - (len(names) - 1) / 2) * bar for group, _ in rows]
        heights = [100 * each.correct.value for _, each in rows]
        axes.bar(x, heights, width=bar * 0.9, color=colour[name], label=plain(name), zorder=2)
        lows = [100 * each.correct.low for _, each in rows]
        highs = [100 * each.correct.high for _, each in rows]
        axes.vlines(x, lows, highs, color=INK, linewidth=0.9, alpha=0.75, zorder=3)
        for position, high, (_, each) in zip(x, highs, rows, strict=True):
            if each.delta and each.delta.is_below(report.level):
                axes.plot([position], [high + 3.5], "v", color=INK, markersize=5.5, zorder=4)
    axes.set_xticks(range(len(tasks)), [plain(task) for task in tasks])
    if max(len(task) for task in tasks) * len(tasks) > 90:
        axes.tick_params(axis="x", labelrotation=30)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.55, len(tasks) - 0.45)
    axes.set_ylim(0, 108)
    axes.set_yticks([0, 25, 50, 75, 100], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if any(metrics.lower_tasks(report.level) for metrics in report.models.values()):
        axes.plot([], [], "v", color=INK, markersize=5.5, label=f"{_LOWER} {plain(report.baseline)} beyond noise")
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(
        range(len(labels)), key=lambda place: labels[place].startswith(_LOWER)
    )  # models first, then the mark
    figure.legend(
        [handles[place] for place in order],
        [labels[place] for place in order],
        loc="outside lower center",
        ncols=min(len(labels), 7),
        handlelength=1.0,
        columnspacing=1.6,
    )
    axes.set_title("Correct answers by task")
    return save(figure, path, title="Correct answers by task")


def _frontier(report: Report) -> dict[str, tuple[Estimate, Gaming]]:
    """Return KL and both gains of the models that have them."""
    return {name: (m.kl, m.gaming) for name, m in report.models.items() if m.kl and m.gaming}


def _reward_gold(report: Report, path: Path) -> Path:
    """Both gains over KL in one unit: a filled dot for the reward model, a hollow diamond for gold."""
    points = _frontier(report)
    colour = colours(list(report.models), report.baseline)
    figure = new_figure(7.6, 4.0)
    axes: Any = figure.add_subplot()
    apart = 0.006 * max(kl.high for kl, _ in points.values())  # side by side, so that neither interval hides the other
    for name, (kl, gaming) in points.items():
        axes.plot([kl.value] * 2, [gaming.proxy.value, gaming.gold.value], color=colour[name], linewidth=5, alpha=0.18)
        for gain, side, marker, fill in ((gaming.proxy, -1, "o", colour[name]), (gaming.gold, 1, "D", "white")):
            x = kl.value + side * apart
            axes.vlines(x, gain.low, gain.high, color=colour[name], linewidth=1.6, zorder=3)
            axes.hlines(gain.value, kl.low, kl.high, color=colour[name], linewidth=0.9, alpha=0.5, zorder=3)
            axes.plot([x], [gain.value], marker, color=colour[name], markerfacecolor=fill, markersize=7, zorder=4)
        gamed = gamed_text(report.models[name])
        text = f"{plain(name)}: {plain(gamed)}" if gamed else plain(name)
        top = max(gaming.proxy.high, gaming.gold.high)
        beside = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center", "color": INK}
        axes.annotate(text, (kl.value, top), fontweight="bold" if gamed else "normal", **beside)
    axes.axhline(0, color=BASELINE, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.plot([0], [0], "o", color=BASELINE, markersize=7, zorder=2)
    axes.annotate(plain(report.baseline), (0, 0), xytext=(0, 8), textcoords="offset points", ha="center", color=INK)
    axes.plot([], [], "o", color=MUTED, markersize=7, label="reward model")
    axes.plot([], [], "D", color=MUTED, markerfacecolor="white", markersize=7, label="gold")
    figure.legend(loc="outside lower center", ncols=2, handlelength=1.0)
    axes.grid(color=RULE)
    axes.margins(x=0.1, y=0.14)
    axes.set_xlabel("KL to the reference (nats per answer)")
    axes.set_ylabel(f"gain over {plain(report.baseline)}\n(standard deviations)")
    axes.set_title("Reward model and gold over KL")
    return save(figure, path, title="Reward model and gold against KL")
