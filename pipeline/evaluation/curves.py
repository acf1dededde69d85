"""The loss curve of a training stage: its numbers as JSONL and its picture as SVG.

Owns `metrics.jsonl` and `loss.svg`, whose bytes depend on the training alone: everything a clock or a memory gauge
gave is left out. Knows nothing of trainers beyond the list of dicts they log.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.estimate import rounded
from pipeline.evaluation.series import columns, limits, points, trace

_NOT_REPRODUCIBLE = re.compile(r"runtime|per_second|_time$|^time|seconds|memory|mem_|timestamp|date|tokens_per_s", re.I)
_TRAIN, _EVAL, _RATE = "loss", "eval_loss", "learning_rate"

Row = dict[str, int | float | str | bool | None]


def metric_rows(history: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return a trainer's log without what differs between two equal runs.

    Rows keep their order and lose every wall-clock and memory entry, and everything that is not a plain value; a row
    left with nothing but its step is dropped. A number that is not finite becomes null.

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


def write_curve(history: Iterable[Mapping[str, Any]], folder: Path, *, title: str) -> list[Path]:
    """Write `metrics.jsonl` and, when a loss was logged, `loss.svg`.

    Args:
        history: ``log_history`` of a trainer.
        folder: made when missing.
        title: of the picture, e.g. the stage's name.

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


def draw_curve(rows: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> Path:
    """Draw training loss, held-out loss, and the learning rate on a second axis.

    Args:
        rows: from `metric_rows`.
        path: of the SVG.
        title: of the picture.
    """
    from matplotlib.ticker import MaxNLocator

    from pipeline.evaluation.drawing import MUTED, PALETTE, WIDTH_IN, new_figure, plain, save, style

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
    """Name the held-out loss with its lowest value, which has no room in the figure that is always free."""
    step, value = min(held_out, key=lambda point: (point[1], point[0]))
    return f"held out, lowest {value:.3f} at step {step:,}"


class _Nothing:
    """A value that is no plain value."""


_NOTHING = _Nothing()


def _plain(value: Any) -> int | float | str | bool | _Nothing | None:
    """Return a value as JSON can hold it; numpy scalars become numbers."""
    if hasattr(value, "item") and getattr(value, "size", 1) == 1:
        value = value.item()
    if isinstance(value, float):
        return rounded(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else _NOTHING
