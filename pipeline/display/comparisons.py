"""Two models compared: sentences led by the figure that decides, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.evaluation.estimate import (
    number,
    p_number,
    p_text,
    percent,
    percent_interval,
    points_interval,
    signed_interval,
)
from pipeline.terminal import KEPT_BLANK, Column, print_line, print_table

if TYPE_CHECKING:
    from pipeline.evaluation.pairwise import Comparison, Measure


_MARK = "*"


def print_comparisons(found: Sequence[Comparison]) -> None:
    """Print every comparison, an empty line between two; what is to be known of all of them once, at the end."""
    for index, each in enumerate(found):
        if index:
            print()
        print_comparison(each)
    notes = dict.fromkeys(note for each in found for note in each.notes)
    for note in notes:
        print_line(f"note: {note}")


def print_comparison(each: Comparison) -> None:
    """Print what it comes to, what contradicts that, then the differences with their intervals."""
    print_line(f"{each.first} against {each.second}: {each.prompts:,} prompts of {each.source}, judged by {each.judge}")
    for line in each.conclusion.lines:
        print_line(line)
    if each.win_rate is not None and each.p_value is not None:
        counts = f"{each.wins} won, {each.ties} tied, {each.losses} lost, {p_text(each.p_value)}"
        print_line(f"win rate {percent_interval(each.win_rate)}: {counts}")
    columns = [
        Column("", style="bold"),
        Column(each.first, right=True, fold=True),
        Column(each.second, right=True, fold=True),
        Column("difference", right=True),
        Column("p", right=True),
        Column("prompts", right=True),
    ]
    print_table(columns, [_row(measure, each) for measure in each.measures])
    print_line(f"{_MARK} beyond noise: interval and test both leave out zero; correct in percentage points")


def _row(measure: Measure, each: Comparison) -> list[str]:
    difference = measure.difference
    is_share = measure.name.startswith("correct")
    shown = percent if is_share else number
    is_beyond = difference.is_above(each.level) or difference.is_below(each.level)
    cells = [
        measure.name if is_share else f"mean {each.judge} {measure.name}",
        shown(measure.first),
        shown(measure.second),
        points_interval(difference).replace(" points", "") if is_share else signed_interval(difference),
        f"{p_number(difference.p_value)} {_MARK if is_beyond else ' '}",
        f"{difference.n:,}",
    ]
    return [cell.replace(" %", f"{KEPT_BLANK}%") for cell in cells]
