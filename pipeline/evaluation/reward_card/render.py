"""Renders a reward card: a Markdown page, the histogram of margins, the reliability diagram.

Owns wording and drawing. Knows nothing of statistics: it renders a `RewardCard`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import MaxNLocator

from pipeline.errors import counted, listed
from pipeline.evaluation.drawing import INK, MUTED, PALETTE, WIDTH_IN, new_figure, save, style
from pipeline.evaluation.markdown import escaped, table
from pipeline.evaluation.reward_card.record import PropertyAccuracy, RewardCard
from pipeline.evaluation.stats.calibration import Bin, Calibration, fits
from pipeline.evaluation.stats.estimate import (
    Estimate,
    number,
    number_interval,
    percent,
    percent_interval,
    signed_points,
)

_CHANCE = 0.5
_RIGHT, _WRONG, _AFTER = PALETTE[0], PALETTE[4], PALETTE[1]


def render(card: RewardCard) -> str:
    """Render the card as a Markdown page."""
    length, calibration = card.length, card.calibration
    rows = [
        ["", "value"],
        ["accuracy", percent_interval(card.accuracy)],
        ["mean margin", number_interval(card.margin)],
        ["pairs with equal scores", f"{card.ties:,}"],
    ]
    if card.gold:
        rows += [
            ["agreement with gold", percent_interval(card.gold.reward)],
            ["labels' agreement with gold", percent_interval(card.gold.labels)],
        ]
    parts = [
        "# Reward model: held-out report\n",
        f"{counted(card.pairs, 'pair')}. {_verdict(card)} Brackets are {percent(card.level, 0)} intervals.\n",
        table(rows),
        "![Histogram of margins](margins.svg)\n",
        "## May its confidence be believed?\n",
        table(
            [
                ["", "as it is", f"margins divided by {_shown_temperature(calibration)}"],
                ["ECE", number(calibration.ece, 3), number(calibration.ece_after, 3)],
                ["Brier score", number(calibration.brier, 3), number(calibration.brier_after, 3)],
            ]
        ),
        f"ECE is the mean gap between confidence and accuracy over {counted(len(calibration.bins), 'bin')} of equal "
        f"mass; a perfectly calibrated model would show {number(calibration.ece_noise, 3)} with as many pairs. "
        f"{_temperature(calibration)}\n",
        "![Reliability diagram](reliability.svg)\n",
        "## Is it fooled by length?\n",
        table(
            [
                ["", "value"],
                ["correlation of score and length, Pearson", _correlation(length.pearson)],
                ["correlation of score and length, Spearman", _correlation(length.spearman)],
                ["accuracy where the longer answer is chosen", _counted(length.chosen_longer)],
                ["accuracy where the shorter answer is chosen", _counted(length.chosen_shorter)],
                ["accuracy of always preferring the longer", percent_interval(length.longer_wins)],
                ["the model's accuracy above that, in points", _points(length.gain)],
            ]
        ),
    ]
    if card.groups:
        groups = [[escaped(name), f"{each.n:,}", percent_interval(each)] for name, each in card.groups.items()]
        parts += ["## Accuracy by group\n", table([["group", "pairs", "accuracy"], *groups])]
    if card.properties is not None:
        parts += _properties(card, card.properties)
    return "\n".join(parts)


def _properties(card: RewardCard, properties: Mapping[str, PropertyAccuracy]) -> Iterator[str]:
    """Yield the section on pairs that differ in one property only: a table, what it shows, and tables by group."""
    pairs = sum(seen.accuracy.n for seen in properties.values())
    yield "## Which properties does it see?\n"
    yield (
        f"For {pairs:,} of {counted(card.pairs, 'pair')} the data name the one property in which the two answers "
        "differ. Only such pairs count here.\n"
    )
    if not properties:
        return
    header, each = ["pairs", "accuracy"], {escaped(name): seen for name, seen in properties.items()}
    yield table([["property", *header], *([name, *_row(seen.accuracy)] for name, seen in each.items())])
    yield _unseen({name: seen.accuracy for name, seen in each.items()})
    for name, seen in each.items():
        if seen.groups:
            yield f"### Pairs that differ only in {name}, by group\n"
            yield table([["group", *header], *([escaped(group), *_row(one)] for group, one in seen.groups.items())])


def _row(accuracy: Estimate) -> list[str]:
    return [f"{accuracy.n:,}", percent_interval(accuracy)]


def _unseen(accuracies: Mapping[str, Estimate]) -> str:
    """Return sentences on the properties whose interval of accuracy includes chance or lies below it."""
    below = [name for name, one in accuracies.items() if one.high < _CHANCE]
    unclear = [name for name, one in accuracies.items() if one.low <= _CHANCE <= one.high]
    told = []
    if unclear:
        told.append(f"**On {listed(unclear)} it cannot be told from guessing** with this many pairs.")
    if below:
        told.append(f"**On {listed(below)} it is below chance**: it prefers the answer that was rejected.")
    return f"{' '.join(told) or 'It beats guessing on each of them.'}\n"


def draw(card: RewardCard, folder: Path) -> list[Path]:
    """Draw `margins.svg` and `reliability.svg`; return the files."""
    with style():
        return [_margins(card, folder / "margins.svg"), _reliability(card, folder / "reliability.svg")]


def _verdict(card: RewardCard) -> str:
    """Return a sentence on whether the accuracy's interval lies above chance and above preferring the longer answer."""
    if card.accuracy.high <= _CHANCE:
        return "**It is at or below chance**: it does not tell chosen from rejected."
    if card.accuracy.low <= _CHANCE:
        return "**It cannot be told from guessing** with this many pairs."
    if card.length.gain.low <= 0:
        return "It beats guessing, but **cannot be told from preferring the longer answer**."
    return "It beats guessing, and always preferring the longer answer."


def _temperature(calibration: Calibration) -> str:
    """Return a sentence on what the temperature means for the model's confidence."""
    value = calibration.temperature
    if calibration.ece <= calibration.ece_noise:
        return "The ECE here is no larger, so the temperature says nothing of its confidence."
    if not fits(value):
        why = "it is no better than guessing, and" if value > 1 else "every pair is right, and"
        return f"No temperature fits: {why} the best one lies beyond any bound."
    if value > 1.05:
        return f"A temperature of {number(value)} says that it is overconfident."
    if value < 0.95:
        return f"A temperature of {number(value)} says that it is less confident than it could be."
    return f"A temperature of {number(value)} says that its confidence is about right."


def _shown_temperature(calibration: Calibration) -> str:
    """Return the temperature as text, or the bound of the search as ``≥ T`` or ``≤ T``."""
    value = calibration.temperature
    return number(value) if fits(value) else f"{'≥' if value > 1 else '≤'} {number(value)}"


def _correlation(value: float | None) -> str:
    return "–" if value is None else number(value)


def _points(difference: Estimate) -> str:
    low, high = number(100 * difference.low, 1), number(100 * difference.high, 1)
    return f"{signed_points(difference)} [{low}, {high}]"


def _counted(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{percent_interval(estimate)} of {estimate.n:,}"


def _margins(card: RewardCard, path: Path) -> Path:
    """Draw the histogram of margins in two colours, split at zero, with the share of pairs on each side."""
    edges, counts = card.histogram.edges, card.histogram.counts
    figure = new_figure(WIDTH_IN, 3.3)
    axes: Any = figure.add_subplot()
    width = edges[1] - edges[0]
    is_right = [(left + width / 2) > 0 for left in edges[:-1]]
    axes.bar(
        edges[:-1], counts, width=width * 0.94, align="edge", color=[_RIGHT if right else _WRONG for right in is_right]
    )
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_ylim(0, max(counts) * 1.28)
    top = max(counts) * 1.22
    # A margin of zero is half right, half wrong, as in the accuracy.
    text = {"ha": "center", "va": "top", "fontweight": "bold"}
    wrong, right = percent(1 - card.accuracy.value), percent(card.accuracy.value)
    axes.annotate(
        f"wrong: {wrong}", (0, top), xytext=(-8, 0), textcoords="offset points", color=_WRONG, **{**text, "ha": "right"}
    )
    axes.annotate(
        f"right: {right}", (0, top), xytext=(8, 0), textcoords="offset points", color=_RIGHT, **{**text, "ha": "left"}
    )
    reach = max(abs(edges[0]), abs(edges[-1])) * 0.35
    axes.set_xlim(min(edges[0], -reach), max(edges[-1], reach))
    axes.set_xlabel("margin: score of chosen − score of rejected")
    axes.set_ylabel("pairs")
    axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.set_title(f"Margins of {counted(card.pairs, 'held-out pair')}")
    return save(figure, path, title="Histogram of margins")


def _reliability(card: RewardCard, path: Path) -> Path:
    """Draw accuracy over confidence, before and after temperature scaling, with the diagonal."""
    calibration = card.calibration
    figure = new_figure(5.4, 4.6)
    axes: Any = figure.add_subplot()
    axes.plot([0.5, 1], [0.5, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="perfectly calibrated")
    rows: Sequence[tuple[list[Bin], str, str, str]] = (
        (calibration.bins, _RIGHT, "o", f"as it is: ECE {number(calibration.ece, 3)}"),
        (
            calibration.bins_after,
            _AFTER,
            "s",
            f"after temperature {_shown_temperature(calibration)}: ECE {number(calibration.ece_after, 3)}",
        ),
    )
    for bins, colour, marker, label in rows:
        x, y = [each.confidence for each in bins], [each.accuracy for each in bins]
        axes.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.5, label=label)
    lowest = min(each.accuracy for each in (*calibration.bins, *calibration.bins_after))
    low = min(0.45, int(10 * lowest) / 10 - 0.05)
    axes.set_xlim(0.49, 1.01)
    axes.set_ylim(max(-0.02, low), 1.02)
    axes.set_xticks([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], ["50 %", "60 %", "70 %", "80 %", "90 %", "100 %"])
    ticks = [tick / 10 for tick in range(0, 11, 2 if low < 0.25 else 1) if tick / 10 >= low]
    axes.set_yticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks])
    axes.grid()
    axes.set_xlabel("confidence of the model in its own choice")
    axes.set_ylabel("how often it is right")
    figure.legend(loc="outside lower center", ncols=1)
    axes.set_title("Is its confidence earned?")
    return save(figure, path, title="Reliability diagram")
