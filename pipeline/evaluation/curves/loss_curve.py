"""The loss curve of a training stage: its metrics as JSONL and its plot as SVG.

Owns `metrics.jsonl` and `loss.svg`. Their bytes depend only on the training: time and memory measurements are left out.
Knows nothing of trainers beyond the list of dicts they log.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from pipeline.evaluation.curves.series import columns, limits, points, trace
from pipeline.evaluation.drawing import MUTED, PALETTE, WIDTH_IN, new_figure, plain, save, style
from pipeline.evaluation.stats.estimate import rounded
from pipeline.plain_data import JsonView

_NOT_REPRODUCIBLE = re.compile(r"runtime|per_second|_time$|^time|seconds|memory|mem_|timestamp|date|tokens_per_s", re.I)
_TRAIN, _EVAL, _RATE = "loss", "eval_loss", "learning_rate"

Row = dict[str, int | float | str | bool | None]


def metric_rows(history: Iterable[JsonView]) -> list[Row]:
    """Return the reproducible part of a trainer's log.

    Rows keep their order. Time and memory entries and values other than numbers, text and null are removed; a row with
    only a step left is dropped. A number that is not finite becomes null.

    Args:
        history: ``log_history`` of a trainer, or any rows with a ``step``.
    """
    rows = []
    for entry in history:
        row: Row = {}
        for key in sorted(entry, key=lambda name: (name not in ("step", "epoch"), name != "step", name)):
            value = _plain(entry[key])
            if not isinstance(value, _Nothing) and not _NOT_REPRODUCIBLE.search(key):
                row[key] = value
        if set(row) - {"step", "epoch"}:
            rows.append(row)
    return rows


def write_curve(history: Iterable[JsonView], folder: Path, *, title: str) -> list[Path]:
    """Write `metrics.jsonl` and, when a loss was logged, `loss.svg`.

    Args:
        history: ``log_history`` of a trainer.
        folder: output folder, created if missing.
        title: title of the plot, e.g. the stage's name.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = metric_rows(history)
    written = [folder / "metrics.jsonl"]
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    written[0].write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if points(rows, _TRAIN) or points(rows, _EVAL):
        written.append(draw_curve(rows, folder / "loss.svg", title=title))
    return written


def read_rows(path: Path) -> list[Row]:
    """Read a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def draw_curve(rows: Sequence[JsonView], path: Path, *, title: str) -> Path:
    """Draw training loss, held-out loss, and the learning rate on a second axis.

    Args:
        rows: rows from `metric_rows`.
        path: path of the SVG.
        title: title of the plot.
    """
    train, held_out, rate = points(rows, _TRAIN), points(rows, _EVAL), points(rows, _RATE)
    blue, orange = PALETTE[0], PALETTE[4]
    with style():
        figure = new_figure(WIDTH_IN, 3.6)
        axes: Any = figure.add_subplot()
        if len(rate) > 1:
            beside: Any = axes.twinx()
            axes.set_zorder(beside.get_zorder() + 1)
            axes.patch.set_visible(False)
            beside.plot(*columns(rate), color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="learning rate")
            beside.set_ylim(0, 1.08 * max(value for _, value in rate) or 1)
            beside.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=False)
            beside.set_ylabel("learning rate", color=MUTED)
            beside.tick_params(axis="y", length=0, labelcolor=MUTED)
            beside.spines["left"].set_visible(False)
        if train:
            trace(axes, train, colour=blue, label="training")
        if held_out:
            axes.plot(*columns(held_out), "o-", color=orange, linewidth=1.6, markersize=4.5, label=_named(held_out))
        low, high = limits([value for _, value in (*train, *held_out)])
        axes.set_ylim(low, high)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        figure.legend(loc="outside lower center", ncols=3, handlelength=1.4, columnspacing=1.2)
        axes.set_title(plain(title))
        return save(figure, path, title=f"Loss of {title}")


def _named(held_out: Sequence[tuple[int, float]]) -> str:
    """Return the legend label of the held-out loss with its lowest value, which might cover the curves in the plot."""
    step, value = min(held_out, key=lambda point: (point[1], point[0]))
    return f"held out, lowest {value:.3f} at step {step:,}"


class _Nothing:
    """Type of the marker for values that JSON cannot represent."""


_NOTHING = _Nothing()


def _plain(value: object) -> int | float | str | bool | _Nothing | None:
    """Convert a value for JSON; numpy scalars become numbers, anything unsupported the marker `_NOTHING`."""
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        value = value.item()
    if isinstance(value, float):
        return rounded(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else _NOTHING
