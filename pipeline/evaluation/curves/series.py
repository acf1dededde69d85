"""Metrics over training steps: extracts them from logged rows, smooths them, and computes axis limits.

Owns the common parts of all curves. Knows nothing of figures beyond the axes it draws on, nor of a metric's meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.plain_data import JsonView

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTH_FROM = 40
"""Number of points from which a curve is drawn faint, with its smoothed trend on top."""
_MOST_POINTS = 2_000


def points(rows: Sequence[JsonView], key: str) -> list[tuple[int, float]]:
    """Return (step, value) pairs of a metric: the last value of each step, thinned evenly to `_MOST_POINTS`."""
    values = {row["step"]: row[key] for row in rows if isinstance(row.get(key), int | float) and "step" in row}
    pairs = sorted(values.items())
    if len(pairs) > _MOST_POINTS:
        pairs = [pairs[round(i * (len(pairs) - 1) / (_MOST_POINTS - 1))] for i in range(_MOST_POINTS)]
    return pairs


def smoothed(pairs: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the centred moving average over about a thirtieth of the points; the window shrinks at the ends."""
    reach = max(2, len(pairs) // 60)
    trend = []
    for index, (step, _) in enumerate(pairs):
        side = min(reach, index, len(pairs) - 1 - index)
        near = [value for _, value in pairs[index - side : index + side + 1]]
        trend.append((step, sum(near) / len(near)))
    return trend


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Return axis limits; the highest 1 % of values is ignored when it lies far above all others."""
    ordered = sorted(values)
    bottom, top = ordered[0], ordered[-1]
    usual = ordered[int(0.99 * (len(ordered) - 1))]
    if len(ordered) >= SMOOTH_FROM and top > 2 * usual > 0:
        top = usual
    room = 0.12 * (top - bottom) or 0.1 * abs(top) or 0.1
    # Values that are never negative start at zero when that wastes little height.
    low = 0.0 if 0 <= bottom < 0.5 * top else bottom - room
    return low, top + room


def columns(pairs: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Split pairs into steps and values, as matplotlib takes them."""
    return [step for step, _ in pairs], [value for _, value in pairs]


def trace(axes: Axes, pairs: Sequence[tuple[int, float]], *, colour: str, label: str) -> None:
    """Draw a curve; a long one is drawn faint, with its smoothed trend on top."""
    is_long = len(pairs) >= SMOOTH_FROM
    if is_long:
        axes.plot(*columns(pairs), color=colour, linewidth=0.8, alpha=0.3)
    marker = "o" if len(pairs) == 1 else ""
    axes.plot(
        *columns(smoothed(pairs) if is_long else pairs),
        color=colour,
        linewidth=1.8,
        marker=marker,
        markersize=4.5,
        label=f"{label} (smoothed)" if is_long else label,
    )
