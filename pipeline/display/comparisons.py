"""Two models compared: a sentence and a table."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.evaluation.estimate import number, percent, percent_interval
from pipeline.reports import Comparison, Measure
from pipeline.terminal import KEPT_BLANK, Column, print_line, print_table


def print_comparisons(found: Sequence[Comparison]) -> None:
    """Print every comparison, an empty line between two."""
    for index, each in enumerate(found):
        if index:
            print()
        print_comparison(each)


def print_comparison(each: Comparison) -> None:
    """Print who wins how often, then the differences with their intervals."""
    print_line(f"{each.first} against {each.second}: {each.prompts:,} prompts of {each.source}, judged by {each.judge}")
    if each.win_rate is not None:
        counts = f"{each.wins} won, {each.ties} tied, {each.losses} lost, p = {each.p_value:.2g}"
        print_line(f"win rate {percent_interval(each.win_rate)}: {counts}")
    columns = [
        Column("", style="bold"),
        Column(each.first, right=True, fold=True),
        Column(each.second, right=True, fold=True),
        Column("difference", right=True),
        Column("interval", right=True),
        Column("p", right=True),
        Column("prompts", right=True),
    ]
    print_table(columns, [_row(measure) for measure in each.measures])


def _row(measure: Measure) -> list[str]:
    difference = measure.difference
    shown = percent if measure.name.startswith("correct") else number
    sign = "+" if difference.value > 0 else ""
    cells = [
        measure.name,
        shown(measure.first),
        shown(measure.second),
        f"{sign}{shown(difference.value)}",
        "[" + ", ".join(shown(end).removesuffix(" %") for end in (difference.low, difference.high)) + "]",
        f"{difference.p_value:.2g}",
        f"{difference.n:,}",
    ]
    return [cell.replace(" %", f"{KEPT_BLANK}%") for cell in cells]
