"""The plot of a reinforcement learning run: reward, watched score, KL, response length and entropy over steps.

Owns the panels of `training.svg`. Knows nothing of the trainer beyond the rows it logs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.curves.loss_curve import Row, metric_rows
from pipeline.evaluation.curves.series import columns, limits, points, trace
from pipeline.evaluation.drawing import MUTED, PALETTE, new_figure, plain, save, style
from pipeline.plain_data import JsonView

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHED = (0, (4, 3))


def draw_training(rows: Sequence[JsonView], path: Path, *, title: str) -> Path:
    """Draw the logged metrics of a run in up to five panels; a panel without data is left out.

    Time and memory measurements are not drawn, so that equal runs give equal bytes.

    Args:
        rows: rows with a ``step`` and any of ``reward`` (mean score), ``objective`` (reward - β KL), ``eval_reward``
            (held-out prompts), ``eval_watch`` and ``eval_watch_se`` (a score that is not trained on, with its standard
            error), ``kl`` (to the reference, summed over a response, nats), ``kl_target``, ``length``
            (tokens per response), ``eos_rate`` (share of responses that ended with EOS) and ``entropy``.
        path: path of the SVG.
        title: title of the plot, e.g. the stage's name.
    """
    logged = metric_rows(rows)
    drawn = [draw for keys, draw in _PANELS if any(points(logged, key) for key in keys)]
    with style():
        wide, high = min(2, len(drawn)) or 1, (len(drawn) + 1) // 2 or 1
        figure = new_figure(4.4 * wide + 0.2, 2.75 * high + 0.3)
        figure.suptitle(plain(title), x=0.01, ha="left", fontsize=12.5, fontweight="bold")
        engine: Any = figure.get_layout_engine()
        engine.set(wspace=0.05, hspace=0.05)
        grid: Any = figure.subplots(high, wide, squeeze=False)
        for index, axes in enumerate(grid.flat):
            if index >= len(drawn):
                axes.set_axis_off()
                continue
            drawn[index](axes, logged)
            axes.grid(axis="y")
            axes.margins(x=0.03)
            if index >= len(drawn) - wide:
                axes.set_xlabel("step")
        if not drawn:
            grid.flat[0].text(0.5, 0.5, "nothing was logged", ha="center", color=MUTED)
        return save(figure, path, title=f"Training of {title}")


def _reward(axes: Axes, rows: Sequence[Row]) -> None:
    lines = {
        "mean score": (points(rows, "reward"), PALETTE[0]),
        "score - β KL": (points(rows, "objective"), PALETTE[2]),
        "held out": (points(rows, "eval_reward"), PALETTE[4]),
    }
    for label, (pairs, colour) in lines.items():
        if label == "held out" and pairs:
            axes.plot(*columns(pairs), "o-", color=colour, linewidth=1.6, markersize=4.5, label=label)
        elif pairs:
            trace(axes, pairs, colour=colour, label=label)
    axes.set_ylim(*limits([value for pairs, _ in lines.values() for _, value in pairs]))
    axes.set_ylabel("score")
    _headed(axes, "Reward")


def _watched(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the score that is not trained on, with twice its standard error."""
    pairs, errors = points(rows, "eval_watch"), dict(points(rows, "eval_watch_se"))
    steps, values = columns(pairs)
    spread = [2 * errors.get(step, 0.0) for step in steps]
    axes.errorbar(steps, values, spread, fmt="o-", color=PALETTE[1], linewidth=1.6, markersize=4.5, label="held out")
    axes.set_ylabel("score, ± 2 standard errors")
    _headed(axes, "What is watched, not trained on")


def _kl(axes: Axes, rows: Sequence[Row]) -> None:
    kl, target = points(rows, "kl"), points(rows, "kl_target")
    if kl:
        trace(axes, kl, colour=PALETTE[0], label="KL")
    if target:
        axes.axhline(target[-1][1], color=MUTED, linewidth=1, linestyle=_DASHED, label=f"target {target[-1][1]:g}")
    axes.set_ylim(*limits([value for _, value in (*kl, *target)]))
    axes.set_ylabel("nats per response")
    _headed(axes, "KL to the reference")


def _length(axes: Axes, rows: Sequence[Row]) -> None:
    lengths, ends = points(rows, "length"), points(rows, "eos_rate")
    if lengths:
        trace(axes, lengths, colour=PALETTE[0], label="tokens")
        axes.set_ylim(*limits([value for _, value in lengths]))
    axes.set_ylabel("tokens")
    beside: Any = axes
    if ends:
        beside = axes.twinx()
        beside.set_zorder(axes.get_zorder() - 1)
        axes.patch.set_visible(False)
        trace(beside, [(step, 100 * value) for step, value in ends], colour=PALETTE[4], label="ended")
        beside.set_ylim(0, 105)
        beside.set_yticks([0, 50, 100], ["0 %", "50 %", "100 %"])
        beside.set_ylabel("ended by themselves", color=PALETTE[4])
        beside.tick_params(axis="y", length=0, labelcolor=PALETTE[4])
        beside.spines["left"].set_visible(False)
    if not lengths:
        axes.set_yticks([])
        axes.set_ylabel("")
    _headed(axes, "Response length", beside)


def _entropy(axes: Axes, rows: Sequence[Row]) -> None:
    entropy = points(rows, "entropy")
    trace(axes, entropy, colour=PALETTE[0], label="mean over tokens")
    axes.set_ylim(*limits([value for _, value in entropy]))
    axes.set_ylabel("nats per token")
    _headed(axes, "Entropy of the policy")


def _headed(axes: Axes, title: str, beside: Axes | None = None) -> None:
    """Set a panel's title and, below it, its legend, which includes the lines of a second axis."""
    handles, labels = axes.get_legend_handles_labels()
    if beside is not None and beside is not axes:
        more, named = beside.get_legend_handles_labels()
        handles, labels = [*handles, *more], [*labels, *named]
    spacing = {"handlelength": 1.3, "columnspacing": 1.0, "handletextpad": 0.5, "borderpad": 0.2}
    axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=3, fontsize=8.5, **spacing)
    axes.set_title(title, fontsize=11, pad=20)


_PANELS: tuple[tuple[tuple[str, ...], Callable[[Axes, Sequence[Row]], None]], ...] = (
    (("reward", "objective", "eval_reward"), _reward),
    (("eval_watch",), _watched),
    (("kl",), _kl),
    (("length", "eos_rate"), _length),
    (("entropy",), _entropy),
)
