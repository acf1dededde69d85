"""Numbers over the steps of a training: picked out of logged rows, smoothed, and given limits to be drawn in.

Owns what every curve shares. Knows nothing of figures beyond the axes it is given, nor of what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SMOOTH_FROM = 40
"""From so many points on a curve is drawn faint, with its trend over it."""
_MOST_POINTS = 2_000


def points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """Return (step, value), the last value of a step winning, at most `_MOST_POINTS` of them evenly spread."""
    found = {row["step"]: row[key] for row in rows if isinstance(row.get(key), int | float) and "step" in row}
    pairs = sorted(found.items())
    if len(pairs) > _MOST_POINTS:
        pairs = [pairs[round(i * (len(pairs) - 1) / (_MOST_POINTS - 1))] for i in range(_MOST_POINTS)]
    return pairs


def smoothed(pairs: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the mean over about a thirtieth of the points around each, fewer at the ends; a trend without delay."""
    reach = max(2, len(pairs) // 60)
    trend = []
    for place, (step, _) in enumerate(pairs):
        side = min(reach, place, len(pairs) - 1 - place)
        near = [value for _, value in pairs[place - side : place + side + 1]]
        trend.append((step, sum(near) / len(near)))
    return trend


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Return axis limits; a few huge values, far above all others, do not stretch them."""
    ordered = sorted(values)
    bottom, top = ordered[0], ordered[-1]
    usual = ordered[int(0.99 * (len(ordered) - 1))]
    if len(ordered) >= SMOOTH_FROM and top > 2 * usual > 0:
        top = usual
    room = 0.12 * (top - bottom) or 0.1 * abs(top) or 0.1
    # What cannot be negative is read from zero where that costs little height.
    low = 0.0 if 0 <= bottom < 0.5 * top else bottom - room
    return low, top + room


def columns(pairs: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Return steps and values, as matplotlib takes them."""
    return [step for step, _ in pairs], [value for _, value in pairs]


def trace(axes: Any, pairs: Sequence[tuple[int, float]], *, colour: str, label: str) -> None:
    """Draw a curve: as it is when it is short, faint with its trend over it when it is long."""
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
