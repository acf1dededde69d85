"""Renders what choosing the best of n gains: a Markdown page, and the curves over n.

Owns wording and drawing. Knows nothing of statistics: it renders a `BestOfN`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.errors import agreeing, counted
from pipeline.evaluation.best_of_n.record import BestOfN
from pipeline.evaluation.drawing import PALETTE, WIDTH_IN, new_figure, save, style
from pipeline.evaluation.markdown import table
from pipeline.evaluation.stats.estimate import Estimate, number, number_interval, percent, signed_interval

_MOST_TICKS = 8
_TITLE = "Mean score of the best of n answers"


def render(curve: BestOfN) -> str:
    """Render the curve as a Markdown page."""
    has_gold, has_kl = curve.last.gold is not None, curve.last.kl is not None
    header = ["n", "score of the best", *(["its gold score"] if has_gold else []), *(["KL, at most"] if has_kl else [])]
    rows = [
        [
            str(point.n),
            number_interval(point.score, 3),
            *([number_interval(point.gold, 3)] if point.gold else []),
            *([number(point.kl)] if point.kl is not None else []),
        ]
        for point in curve.points
    ]
    brackets = f"Brackets are {percent(curve.level, 0)} intervals over prompts."
    parts = [
        "# Best of n\n",
        f"{counted(curve.prompts, 'prompt')}. {conclusion(curve)} {brackets}\n",
        table([header, *rows]),
        "![Score over n](best_of_n.svg)\n",
    ]
    if curve.fewer:
        have, are = agreeing(curve.fewer, "has", "have"), agreeing(curve.fewer, "is", "are")
        fewer = f"fewer than {counted(curve.last.n, 'usable answer')}"
        parts.append(f"{counted(curve.fewer, 'prompt')} {have} {fewer} and {are} in no row of the table.\n")
    if not has_kl:
        parts.append("The answers come from several models or temperatures, so their choice has no known divergence.\n")
    return "\n".join(parts)


def conclusion(curve: BestOfN) -> str:
    """Return one or two sentences: what the largest n gains over a single answer, and whether gold follows."""
    if curve.gain is None:
        return "There is one answer to each prompt, so there is nothing to choose."
    text = f"The best of {curve.last.n} scores {signed_interval(curve.gain, 3)} over a single answer."
    gold = curve.gold_gain
    if gold is None:
        return text
    if gold.is_above(curve.level):
        return f"{text} Gold rises too: {signed_interval(gold, 3)}."
    if gold.is_below(curve.level):
        return f"{text} **Gold falls**: {signed_interval(gold, 3)}. The judge prefers what is worse."
    return f"{text} **Gold does not rise beyond noise**: {signed_interval(gold, 3)}."


def draw(curve: BestOfN, path: Path) -> Path:
    """Draw score, and gold if there is any, over n; the second line of each tick is the bound of the divergence."""
    panels: list[tuple[str, list[Estimate], str]] = [
        ("score", [point.score for point in curve.points], PALETTE[0]),
    ]
    gold = [point.gold for point in curve.points if point.gold is not None]
    if gold:
        panels.append(("gold", gold, PALETTE[1]))
    has_kl = curve.last.kl is not None
    with style():
        figure = new_figure(WIDTH_IN, 1.0 + 2.1 * len(panels))
        grid: Any = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
        for (name, estimates, colour), axes in zip(panels, grid[:, 0], strict=True):
            n = [point.n for point in curve.points]
            axes.fill_between(
                n, [one.low for one in estimates], [one.high for one in estimates], color=colour, alpha=0.2
            )
            axes.plot(n, [one.value for one in estimates], "o-", color=colour, linewidth=1.6, markersize=4.5)
            axes.set_ylabel(name)
            axes.grid(axis="y")
        shown = curve.points[:: max(1, -(-len(curve.points) // _MOST_TICKS))]
        labels = [f"{one.n}" if one.kl is None else f"{one.n}\n{number(one.kl)}" for one in shown]
        grid[-1, 0].set_xticks([one.n for one in shown], labels)
        grid[-1, 0].set_xlabel("n, and the largest possible KL to the policy (nats)" if has_kl else "n")
        grid[0, 0].set_title(_TITLE)
        return save(figure, path, title=_TITLE)
