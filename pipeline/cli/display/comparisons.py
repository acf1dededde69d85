"""Shows the comparison of two models: the conclusion as sentences, then a table of differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.cli.terminal import NO_BREAK_SPACE, Column, print_line, print_table
from pipeline.errors import counted
from pipeline.evaluation.stats.estimate import (
    number,
    p_number,
    p_text,
    percent,
    percent_interval,
    points_interval,
    signed_interval,
)

if TYPE_CHECKING:
    from pipeline.evaluation.pairwise import Comparison, Measure


_MARK = "*"


def print_comparisons(comparisons: Sequence[Comparison]) -> None:
    """Print comparisons with an empty line between two, then the notes of all, each once."""
    for index, each in enumerate(comparisons):
        if index:
            print()
        print_comparison(each)
    notes = dict.fromkeys(note for each in comparisons for note in each.notes)
    for note in notes:
        print_line(f"note: {note}")


def print_comparison(comparison: Comparison) -> None:
    """Print the conclusion of a comparison, its win rate, and the differences with their intervals."""
    models, prompts = f"{comparison.first} against {comparison.second}", f"{counted(comparison.prompts, 'prompt')}"
    print_line(f"{models}: {prompts} of {comparison.source}, judged by {comparison.judge}")
    for line in comparison.conclusion.lines:
        print_line(line)
    if comparison.win_rate is not None and comparison.p_value is not None:
        counts = (
            f"{comparison.wins} won, {comparison.ties} tied, {comparison.losses} lost, {p_text(comparison.p_value)}"
        )
        print_line(f"win rate {percent_interval(comparison.win_rate)}: {counts}")
    columns = [
        Column("", style="bold"),
        Column(comparison.first, right=True, fold=True),
        Column(comparison.second, right=True, fold=True),
        Column("difference", right=True),
        Column("p", right=True),
        Column("prompts", right=True),
    ]
    print_table(columns, [_row(measure, comparison) for measure in comparison.measures])
    print_line(f"{_MARK} beyond noise: interval and test both leave out zero; correct in percentage points")


def _row(measure: Measure, comparison: Comparison) -> list[str]:
    difference = measure.difference
    is_share = measure.name.startswith("correct")
    shown = percent if is_share else number
    is_beyond = difference.is_above(comparison.level) or difference.is_below(comparison.level)
    cells = [
        measure.name if is_share else f"mean {comparison.judge} {measure.name}",
        shown(measure.first),
        shown(measure.second),
        points_interval(difference).replace(" points", "") if is_share else signed_interval(difference),
        f"{p_number(difference.p_value)} {_MARK if is_beyond else ' '}",
        f"{difference.n:,}",
    ]
    return [cell.replace(" %", f"{NO_BREAK_SPACE}%") for cell in cells]
