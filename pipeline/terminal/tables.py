"""Tables that fit: whole words, nothing cut, on a terminal of any width and in a pipe.

A table that is too wide first breaks the columns that may break; then its last column goes beneath each row; one of
figures is turned; at last each row becomes a list of its cells. `rich` is imported when a table is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TextIO

from pipeline.terminal.lines import INDENT, KEPT_BLANK, line_width, widest, width_of, wrapped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

PIPE_WIDTH = 2000
"""Columns `rich` is told of where lines may be of any length."""
GAP = 2
"""Blanks between two columns."""
READABLE = 28
"""Columns in which a sentence still reads well."""


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
        title: of the header.
        right: align numbers to the right.
        fold: may wrap onto more lines when there is little room; else it keeps its width.
        style: of `rich`; ``status`` colours each word by its meaning.
    """

    title: str
    right: bool = False
    fold: bool = False
    style: str = ""


@dataclass(frozen=True)
class _Layout:
    """Widths of the columns that stand side by side, and whether their words break after `/`, `,` and `=`."""

    widths: list[int]
    fine: bool


def console(stream: TextIO | None = None) -> Console:
    """Return a console for a stream, standard output by default; colourless unless it is a terminal."""
    from rich.console import Console

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
    if layout is None and not any(column.fold for column in columns):  # figures: as columns, if that fits
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
    """Return widths at which no word breaks; None where there are none."""
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
    """Return ``least`` with the spare columns given to the narrowest one that still has use for one."""
    widths = list(least)
    for _ in range(spare):
        wanting = [index for index, wide in enumerate(widths) if wide < most[index]]
        if not wanting:
            break
        widths[min(wanting, key=lambda index: widths[index])] += 1
    return widths


def _turned(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> tuple[list[Column], list[list[str]]]:
    """Return a table with its rows as columns, named by their first cells."""
    named = [Column(row[0], right=columns[-1].right) for row in rows]
    cells = [[column.title, *(row[index] for row in rows)] for index, column in enumerate(columns)]
    return [Column(columns[0].title, style=columns[0].style), *named], cells[1:]


def _is_readable(rows: Sequence[Sequence[str]], layout: _Layout) -> bool:
    """Return whether the last column has its width, or one in which a sentence reads well."""
    longest = max((width_of(row[-1]) for row in rows), default=0)
    return layout.widths[-1] >= min(longest, READABLE)


def _row(columns: Sequence[Column], row: Sequence[str], layout: _Layout, beneath: int | None) -> list[Text]:
    """Return the lines of a row: its cells side by side, then the last one beneath where that has no room."""
    from rich.text import Text

    cells = [
        wrapped(cell, width, fine=layout.fine) if column.fold else [cell.replace(KEPT_BLANK, " ")]
        for column, cell, width in zip(columns, row, layout.widths, strict=False)
    ]
    lines = []
    for number in range(max(map(len, cells))):
        line = Text()
        for column, whole, cell, width in zip(columns, row, cells, layout.widths, strict=False):
            text = cell[number] if number < len(cell) else ""
            blanks = " " * (width - width_of(text))
            line.append(" " * GAP if line else "")
            line.append(f"{blanks}{text}" if column.right else f"{text}{blanks}", _style(column, whole))
        lines.append(line)
    if beneath is not None and row[-1]:
        last = wrapped(row[-1], beneath - len(INDENT))
        lines += [Text(f"{INDENT}{text}", _style(columns[-1], row[-1])) for text in last]
    return lines


def _listed(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> Iterator[Text]:
    """Yield the lines of rows as lists of their cells, each with its title; an empty line between two rows."""
    from rich.text import Text

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
