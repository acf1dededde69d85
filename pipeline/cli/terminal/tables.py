"""Tables that fit a terminal of any width, without truncated cells.

A table that is too wide first wraps the columns with ``fold``. If that is not enough, its last column moves beneath
each row; a table of figures, without such columns, is transposed. As the last resort each row is printed as a list of
its cells. `rich` is imported only when a table is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TextIO

from pipeline.cli.terminal.lines import INDENT, NO_BREAK_SPACE, line_width, widest, width_of, wrapped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PIPE_WIDTH = 2000
"""Width in columns given to `rich` when lines are not wrapped."""
GAP = 2
"""Spaces between two columns."""
READABLE = 28
"""Least width, in columns, at which a wrapped sentence is readable."""


_STATUS_STYLES = {
    "cached": "green",
    "done": "green",
    "ok": "green",
    "pending": "yellow",
    "resumes": "cyan",
    "waiting": "magenta",
    "optional": "dim",
    "missing": "bold red",
    "failed": "bold red",
    "damaged": "bold red",
}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: text of the header.
        right: whether cells are aligned to the right, as numbers are.
        fold: whether cells may wrap onto several lines; else the column keeps its natural width.
        style: style of `rich`; ``status`` colours each word by its meaning.
    """

    title: str
    right: bool = False
    fold: bool = False
    style: str = ""


@dataclass(frozen=True)
class _Layout:
    """Widths of the columns side by side, and whether their words may also break after `/`, `,` and `=`."""

    widths: list[int]
    fine: bool


def console(stream: TextIO | None = None) -> Console:
    """Return a `rich` console for a stream, standard output by default; without colour unless it is a terminal."""
    from rich.console import Console  # slow to load; `--help` and `--json` print no table

    stream = stream or sys.stdout
    width = line_width(stream)
    return Console(
        file=stream, width=width or PIPE_WIDTH, highlight=False, soft_wrap=width is None, emoji=False, markup=False
    )


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, stream: TextIO | None = None) -> None:
    """Print a table of plain text, on standard output by default."""
    out, width = console(stream), line_width(stream)
    beneath = None
    layout = _layout(columns, rows, width)
    if layout is None and not any(column.fold for column in columns):  # a table of figures: transposed, if that fits
        turned = _turned(columns, rows)
        layout = _layout(*turned, width)
        columns, rows = turned if layout is not None else (columns, rows)
    if columns[-1].fold and not (layout is not None and _is_readable(rows, layout)):
        layout = _layout(columns[:-1], [row[:-1] for row in rows], width)
        beneath = width
    if layout is None:
        lines = list(_listed(columns, rows, width))
    else:
        lines = _row([replace(column, style="bold") for column in columns], [c.title for c in columns], layout, beneath)
        for row in rows:
            lines += _row(columns, row, layout, beneath)
    for line in lines:
        line.rstrip()
        out.print(line, overflow="ignore", no_wrap=True, crop=False)


def _layout(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> _Layout | None:
    """Return column widths at which no word is split; None when the table does not fit."""
    texts = [[column.title, *(row[index] for row in rows)] for index, column in enumerate(columns)]
    natural = [max(width_of(line) for text in column for line in text.split("\n")) for column in texts]
    room = None if width is None else width - GAP * (len(columns) - 1)
    if room is None or sum(natural) <= room:
        return _Layout(natural, fine=False)
    for fine in (False, True):
        least = [
            max(widest(text, fine=fine) for text in texts[index]) if column.fold else natural[index]
            for index, column in enumerate(columns)
        ]
        spare = room - sum(least)
        if spare >= 0:
            return _Layout(_levelled(least, natural, spare), fine)
    return None


def _levelled(least: Sequence[int], most: Sequence[int], spare: int) -> list[int]:
    """Distribute ``spare`` columns over the widths ``least``, each to the narrowest that is still below ``most``."""
    widths = list(least)
    for _ in range(spare):
        wanting = [index for index, wide in enumerate(widths) if wide < most[index]]
        if not wanting:
            break
        widths[min(wanting, key=lambda index: widths[index])] += 1
    return widths


def _turned(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> tuple[list[Column], list[list[str]]]:
    """Transpose a table: its rows become columns, titled by their first cells."""
    named = [Column(row[0], right=columns[-1].right) for row in rows]
    cells = [[column.title, *(row[index] for row in rows)] for index, column in enumerate(columns)]
    return [Column(columns[0].title, style=columns[0].style), *named], cells[1:]


def _is_readable(rows: Sequence[Sequence[str]], layout: _Layout) -> bool:
    """Return whether the last column has its natural width, or is at least `READABLE` wide."""
    longest = max((width_of(row[-1]) for row in rows), default=0)
    return layout.widths[-1] >= min(longest, READABLE)


def _row(columns: Sequence[Column], row: Sequence[str], layout: _Layout, beneath: int | None) -> list[Text]:
    """Return the lines of a row: its cells side by side, then the last cell beneath if ``beneath`` gives a width."""
    from rich.text import Text  # slow to load; `--help` and `--json` print no table

    cells = [
        wrapped(cell, width, fine=layout.fine) if column.fold else [cell.replace(NO_BREAK_SPACE, " ")]
        for column, cell, width in zip(columns, row, layout.widths, strict=False)
    ]
    lines = []
    for number in range(max(map(len, cells))):
        line = Text()
        for column, cell, pieces, width in zip(columns, row, cells, layout.widths, strict=False):
            text = pieces[number] if number < len(pieces) else ""
            blanks = " " * (width - width_of(text))
            line.append(" " * GAP if line else "")
            line.append(f"{blanks}{text}" if column.right else f"{text}{blanks}", _style(column, cell))
        lines.append(line)
    if beneath is not None and row[-1]:
        last = wrapped(row[-1], beneath - len(INDENT))
        lines += [Text(f"{INDENT}{text}", _style(columns[-1], row[-1])) for text in last]
    return lines


def _listed(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> Iterator[Text]:
    """Yield the lines of a table as one list per row: each cell after its title, an empty line between two rows."""
    from rich.text import Text  # slow to load; `--help` and `--json` print no table

    titles = max(width_of(column.title) for column in columns)
    for index, row in enumerate(rows):
        if index:
            yield Text()
        for column, cell in zip(columns, row, strict=True):
            room = None if width is None else width - titles - GAP
            for number, text in enumerate(wrapped(cell, room) if cell else ()):
                title = "" if number else column.title
                head = title + " " * (titles - width_of(title) + GAP)
                yield Text.assemble(head, (text, _style(column, cell)))


def _style(column: Column, cell: str) -> str:
    return _STATUS_STYLES.get(cell, "") if column.style == "status" else column.style
