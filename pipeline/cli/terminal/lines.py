"""Line wrapping: the width of an output stream, and where a line may break.

Output to a terminal is wrapped to its width. Output to a pipe or a file is not wrapped, unless the variable COLUMNS
gives a width. Lines break at white space; a word wider than the line gets a line of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from typing import TextIO

NO_BREAK_SPACE = "\u00a0"
"""No-break space: no line breaks at it, and it is printed as an ordinary space."""

_WORD = re.compile(r"[ \t]*[^ \t]+")
_PIECE = re.compile(r"[ \t]*(?:[^ \t/,=]+[/,=]?|[/,=])")
"""A word, or a piece of one that may also break after `/`, `,` and `=`: a path, a list, a setting."""

INDENT = "  "
_BLANKS = f" \t{NO_BREAK_SPACE}"
_json: list[bool] = []


def line_width(stream: TextIO | None = None) -> int | None:
    """Return the width of a stream in columns, standard output by default; None when its lines are not wrapped."""
    stream = stream or sys.stdout
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return shutil.get_terminal_size().columns if stream.isatty() else None


def width_of(text: str) -> int:
    """Return the width of a text in columns; a Chinese character takes two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # slow to load; ASCII text does without

    return cell_len(text)


def widest(text: str, *, fine: bool = False) -> int:
    """Return the width of the widest word in columns; with ``fine``, words also break after `/`, `,` and `=`."""
    return max((width_of(unit.lstrip(_BLANKS)) for unit in (_PIECE if fine else _WORD).findall(text)), default=0)


def wrapped(text: str, width: int | None, indent: str = "", *, fine: bool = False) -> list[str]:
    """Break a text into lines of at most ``width`` columns.

    Args:
        text: the text; its own line breaks are kept.
        width: columns; None breaks no line.
        indent: put before the continuation of a broken line.
        fine: whether a word may also break after `/`, `,` and `=`.
    """
    lines: list[str] = []
    for source_line in text.split("\n"):
        line = source_line
        if width is not None and width_of(source_line) > width:
            line = ""
            for unit in (_PIECE if fine else _WORD).findall(source_line):
                if line.strip() and width_of(line + unit) > width:
                    lines.append(line)
                    line = indent + unit.lstrip(_BLANKS)
                else:
                    line += unit
        lines.append(line)
    return [line.replace(NO_BREAK_SPACE, " ") for line in lines]


def print_line(text: str = "", *, indent: str = INDENT, stream: TextIO | None = None) -> None:
    """Print a text wrapped to the width of the stream, standard output by default; continuation lines are indented.

    No line breaks inside a figure such as ``p = 0.01`` or ``48.0 %``.
    """
    out = stream or sys.stdout
    unbroken = text.replace(" = ", f"{NO_BREAK_SPACE}={NO_BREAK_SPACE}").replace(" %", f"{NO_BREAK_SPACE}%")
    print("\n".join(wrapped(unbroken, line_width(out), indent)), file=out)


def print_command(command: str) -> None:
    """Print a shell command, indented; a command too long for a line is continued with a backslash."""
    width = line_width()
    lines = wrapped(f"{INDENT}{command}", None if width is None else width - 2, INDENT * 2)
    print(" \\\n".join(lines))


def print_json(value: object) -> None:
    """Print a value as indented JSON on standard output."""
    _json.append(True)
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def expect_json() -> None:
    """Reset `has_printed_json` at the start of a command."""
    _json.clear()


def has_printed_json() -> bool:
    """Return whether this command has printed JSON; a later error must not print a second document."""
    return bool(_json)
