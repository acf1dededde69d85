"""The figure of a sweep: the score of each setting over its divergence from the baseline.

A line connects the settings of one stage; in light, the models of single seeds. Models that are no variant of a stage
are single points. The axis of the divergence is a square root, as gains are often near linear in it.

Owns the content of the figure. Knows nothing of statistics: it draws a `Report`.

References: Rafailov et al. 2023, arXiv:2305.18290, figure 2 (reward over KL for several β); Gao et al. 2023,
arXiv:2210.10760, section 3 (the square root of the KL).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.evaluation.drawing import BASELINE, INK, MUTED, RULE, WIDTH_IN, colours, legend, new_figure, plain, save
from pipeline.evaluation.report.record import Judge, Report, SettingFigures, SettingValue
from pipeline.evaluation.report.sweep_section import value_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

LEAST_MODELS = 3
"""Least number of models with a KL for the figure."""
_LONGEST_LABEL = 24
_MARGIN, _EPSILON = 0.08, 1e-3
"""Share of the axis that is empty at each of its ends; least axis."""
_MARKER_PT, _LINE_PT, _ROWS = 8, 2, 3
"""Size of a point; room on each side of a line; how many labels may stand above one another on each side of a point."""
_SINGLES = "^vDPX*"
"""Markers of models that are no variant."""


class _Point(NamedTuple):
    """A setting in the figure: means over its models, with their standard deviations.

    Attributes:
        row: the setting.
        kl: mean divergence in nats.
        score: mean score.
        kl_sd: standard deviation of the divergence; 0 of one model.
        score_sd: the same of the score.
    """

    row: SettingFigures
    kl: float
    score: float
    kl_sd: float
    score_sd: float


class _Label(NamedTuple):
    """The label of a point.

    Attributes:
        note: its text in the figure.
        is_above: whether it stands above its point, if there is room.
    """

    note: Annotation
    is_above: bool

    def move(self, offset: tuple[int, int]) -> None:
        """Put it ``offset`` points right of and above its point, away from it."""
        self.note.xyann = offset
        self.note.set_horizontalalignment("left" if offset[0] > 0 else "right")
        self.note.set_verticalalignment("bottom" if offset[1] > 0 else "top")


class _Panel(NamedTuple):
    """What stands in a panel of the figure.

    Attributes:
        handles: its lines and points, for the legend.
        labels: what each of them is.
        notes: the labels of points.
    """

    handles: list[Any]
    labels: list[str]
    notes: list[_Label]

    def add(self, handles: Sequence[Any], label: str) -> None:
        """Add what one line of the legend describes."""
        self.handles.extend(handles)
        self.labels.append(label)


def has_frontier(report: Report) -> bool:
    """Return whether a report is on a sweep, or has the best of n, and enough models with a KL for the figure."""
    judge = scored_by(report)
    measured = [name for name in report.models if _is_measured(report, name, judge)]
    rows = report.sweep or []
    is_swept = any({"kl", judge} <= set(row.figures) for row in rows)
    return len(measured) >= LEAST_MODELS and (is_swept or bool(report.best_of_n))


def scored_by(report: Report) -> Judge:
    """Return the score of the figure: gold if all models have it, else that of the reward model."""
    return "gold" if all(model.gold for model in report.models.values()) else "reward"


def draw_frontier(report: Report, path: Path) -> Path:
    """Draw the score over the KL, gold above the reward if all models have both; call it within `style`."""
    judge = scored_by(report)
    judges: list[Judge] = [judge]
    if judge == "gold" and all(model.reward for model in report.models.values()):
        judges.append("reward")
    stages = list(dict.fromkeys(row.stage for row in report.sweep or []))
    others = _others(report, judge)
    below = 0.21 * (len(stages) + len(others) + bool(_best_of_n(report, judge)))
    figure = new_figure(WIDTH_IN, (3.8 if len(judges) == 1 else 6.4) + below)
    panels: Any = figure.subplots(len(judges), sharex=True, squeeze=False)[:, 0]
    drawn = [_draw_panel(axes, report, each) for axes, each in zip(panels, judges, strict=True)]
    over = plain(report.baseline) if len(report.baseline) <= _LONGEST_LABEL else "the baseline"
    panels[-1].set_xlabel(f"KL to {over} (nats per answer, square-root axis)")
    figure.suptitle(_title(judges), x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    legend(figure, drawn[0].handles, drawn[0].labels)
    for axes, panel in zip(panels, drawn, strict=True):
        _keep_apart(figure, axes, panel.notes)
    return save(figure, path, title=_title(judges))


def _draw_panel(axes: Any, report: Report, judge: Judge) -> _Panel:
    """Draw one score over the KL."""
    stages = list(dict.fromkeys(row.stage for row in report.sweep or []))
    colour = colours(stages)
    best = _best_of_n(report, judge)
    span = _root(max(0.0, *(kl for _, kl, _ in best), *_divergences(report, judge)))
    panel = _Panel([], [], [])
    families = {stage: points for stage in stages if (points := _points(report, stage, judge))}
    upper = _upper(families)
    for stage, points in families.items():
        panel.add(_family(axes, report, points, colour[stage], judge), _family_label(stage, points))
        panel.notes.extend(_label(axes, points, colour[stage], is_above=stage in upper))
    if best:
        label = f"best of n of {plain(report.baseline)}, n up to {best[-1][0]}; KL at most log n - (n - 1) / n"
        panel.add(_curve(axes, best), label)
    if any(len(row.models) > 1 for row in report.sweep or []):
        seed = axes.plot([], [], "o", color=MUTED, alpha=0.35, markersize=5)
        panel.add(seed, "one seed; bars are ± 1 standard deviation over seeds")
    for name, marker in _others(report, judge):
        is_baseline = name == report.baseline
        kl, score = _place(report, name, judge)
        shade = BASELINE if is_baseline else INK
        point = axes.plot([kl], [score], marker, color=shade, markersize=7, zorder=4)
        panel.add(point, f"{plain(name)} (baseline)" if is_baseline else plain(name))
    axes.set_xscale("function", functions=(_root, _square))
    lowest = min(0.0, *_divergences(report, judge))
    axes.set_xlim(_square(_root(lowest) - _MARGIN * span - _EPSILON), _square((1 + _MARGIN) * span + _EPSILON))
    axes.margins(y=0.16)
    axes.grid(color=RULE)
    axes.set_ylabel("mean gold score" if judge == "gold" else "mean score by the reward model")
    return panel


def _upper(families: Mapping[str, Sequence[_Point]]) -> set[str]:
    """Return the half of the stages that score highest, a single one too: their labels stand above their lines."""
    means = {stage: sum(point.score for point in points) / len(points) for stage, points in families.items()}
    ranked = sorted(
        (stage for stage in means if any(one.row.settings for one in families[stage])), key=means.__getitem__
    )
    return set(ranked[len(ranked) // 2 :])


def _title(judges: Sequence[Judge]) -> str:
    return f"{' and '.join(judges).capitalize()} over KL"


def _divergences(report: Report, judge: Judge) -> list[float]:
    """Return the KL of all models in the figure."""
    return [_place(report, name, judge)[0] for name in report.models if _is_measured(report, name, judge)]


def _best_of_n(report: Report, judge: Judge) -> list[tuple[int, float, float]]:
    """Return n, the bound of the KL in nats, and the mean score of the best of n answers."""
    points = report.best_of_n.points if report.best_of_n else []
    return [(point.n, point.kl, score.value) for point in points if (score := getattr(point, judge))]


def _curve(axes: Axes, best: Sequence[tuple[int, float, float]]) -> list[Any]:
    """Draw the best of n as a dashed line, labelled with the powers of two among n; return its handle."""
    handle = axes.plot([kl for _, kl, _ in best], [score for _, _, score in best], "--", color=MUTED, linewidth=1.4)
    marked = [(n, kl, score) for n, kl, score in best if n > 1 and n & (n - 1) == 0]
    axes.plot([kl for _, kl, _ in marked], [score for _, _, score in marked], "o", color=MUTED, markersize=4)
    for n, kl, score in marked:
        place: Any = {"textcoords": "offset points", "ha": "center", "va": "bottom"}
        axes.annotate(str(n), (kl, score), (0, 4), color=MUTED, fontsize=8, zorder=2, **place)
    return handle


def _root(values: Any) -> Any:
    """Return the square root of divergences; an estimate below zero keeps its sign."""
    return np.sign(values) * np.sqrt(np.abs(values))


def _square(values: Any) -> Any:
    return np.sign(values) * np.square(values)


def _points(report: Report, stage: str, judge: Judge) -> list[_Point]:
    """Return the settings of a stage that have KL and score, in the order in which a line connects them."""
    points = [
        _Point(row, kl.mean, score.mean, kl.sd or 0.0, score.sd or 0.0)
        for row in report.sweep or []
        if row.stage == stage and (kl := row.figures.get("kl")) and (score := row.figures.get(judge))
    ]
    values = [list(point.row.settings.values()) for point in points]
    if all(len(each) == 1 and isinstance(each[0], int | float) for each in values):
        return sorted(points, key=lambda point: float(next(iter(point.row.settings.values())) or 0))
    return sorted(points, key=lambda point: point.kl)


def _family(axes: Axes, report: Report, points: Sequence[_Point], colour: str, judge: Judge) -> list[Any]:
    """Draw the settings of one stage; return the handle of its line."""
    for point in points:
        if len(point.row.models) > 1:
            measured = [each for each in point.row.models if _is_measured(report, each, judge)]
            seeds = [_place(report, each, judge) for each in measured]
            axes.plot(*zip(*seeds, strict=True), "o", color=colour, alpha=0.35, markersize=5, zorder=2)
            low, high = point.score - point.score_sd, point.score + point.score_sd
            axes.vlines(point.kl, low, high, color=colour, linewidth=1.6, zorder=3)
            low, high = point.kl - point.kl_sd, point.kl + point.kl_sd
            axes.hlines(point.score, low, high, color=colour, linewidth=1.6, zorder=3)
    return axes.plot(
        [point.kl for point in points],
        [point.score for point in points],
        "o-",
        color=colour,
        linewidth=1.4,
        markersize=_MARKER_PT,
        markeredgecolor="white",
        zorder=4,
    )


def _label(axes: Axes, points: Sequence[_Point], colour: str, *, is_above: bool) -> list[_Label]:
    """Write the settings beside their points, and return the labels; `_keep_apart` chooses their places."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.6}
    style: Any = {"textcoords": "offset points", "bbox": box}
    labels = []
    for point in sorted((one for one in points if one.row.settings), key=lambda point: point.kl):
        text, place = _point_label(point.row.settings), (point.kl, point.score)
        note = axes.annotate(text, place, (0, 0), color=colour, fontsize=9, fontweight="bold", zorder=5, **style)
        labels.append(_Label(note, is_above))
    return labels


def _keep_apart(figure: Figure, axes: Axes, labels: Sequence[_Label]) -> None:
    """Move labels to the first places beside their points where no label, point or line is, else where least is.

    Call it when all else is in the figure, as that moves the axes.
    """
    figure.draw_without_rendering()
    taken = list(_drawn(axes, figure.dpi / 72))
    for label in labels:
        fits: list[tuple[float, int, tuple[int, int], Sequence[float]]] = []
        for row, turn, is_right in product(range(_ROWS), (1, -1), (not label.is_above, label.is_above)):
            up = turn if label.is_above else -turn
            place = ((4 if is_right else -4), up * (9 + 12 * row))
            label.move(place)
            extents = label.note.get_window_extent().extents
            fits.append((sum(_overlap(extents, other) for other in taken), len(fits), place, tuple(extents)))
        best = min(fits)
        label.move(best[2])
        taken.append(best[3])


def _drawn(axes: Axes, pixels_per_pt: float) -> Iterator[Sequence[float]]:
    """Yield boxes of the points, and of short pieces of the lines: left, bottom, right and top of each, in pixels."""
    for line in axes.lines:
        data = np.asarray(line.get_xydata())
        if not data.size:
            continue
        places = axes.transData.transform(data)
        half = line.get_markersize() / 2 * pixels_per_pt
        if line.get_marker() not in ("", "None", None):
            yield from ((x - half, y - half, x + half, y + half) for x, y in places)
        if line.get_linestyle() not in ("", "None"):
            for (x, y), (to_x, to_y) in pairwise(places):
                for part in np.linspace(
                    0, 1, max(2, int(np.hypot(to_x - x, to_y - y) / (2 * _LINE_PT * pixels_per_pt)))
                ):
                    at_x, at_y, near = x + part * (to_x - x), y + part * (to_y - y), _LINE_PT * pixels_per_pt
                    yield at_x - near, at_y - near, at_x + near, at_y + near
    for text in axes.texts:
        if text.get_text() and text.get_fontweight() != "bold":
            yield tuple(text.get_window_extent().extents)


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the area that two boxes share: left, bottom, right and top of each."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _is_measured(report: Report, name: str, judge: Judge) -> bool:
    """Return whether a model has a KL and the score of the figure."""
    return report.models[name].kl is not None and getattr(report.models[name], judge) is not None


def _place(report: Report, name: str, judge: Judge) -> tuple[float, float]:
    """Return KL and score of a model that has both."""
    model = report.models[name]
    kl, score = model.kl, getattr(model, judge)
    return (kl.value if kl else 0.0), score.value


def _point_label(settings: Mapping[str, SettingValue]) -> str:
    """Return the value of the one setting, or all settings with their values."""
    if len(settings) == 1:
        return plain(value_text(next(iter(settings.values()))))
    return plain(", ".join(f"{key} {value_text(value)}" for key, value in settings.items()))


def _family_label(stage: str, points: Sequence[_Point]) -> str:
    """Return the stage, and the setting that the labels of its points are values of."""
    keys = list(dict.fromkeys(key for point in points for key in point.row.settings))
    return plain(f"{stage}, labelled by {keys[0]}" if len(keys) == 1 else stage)


def _others(report: Report, judge: Judge) -> list[tuple[str, str]]:
    """Return the models with a KL that are no variant, each with its marker; the baseline's is a square."""
    variants = {name for row in report.sweep or [] for name in row.models}
    names = [name for name in report.models if name not in variants and _is_measured(report, name, judge)]
    others = [name for name in names if name != report.baseline]
    markers = {name: _SINGLES[index % len(_SINGLES)] for index, name in enumerate(others)}
    return [(name, markers.get(name, "s")) for name in names]
