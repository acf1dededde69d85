"""Lines that fit: how wide output may be, and where a line may break.

A terminal has its width. A pipe or a file has none, unless the variable COLUMNS gives it one. Lines break at white
space; a word that is wider than the line stands alone and whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from typing import Any, TextIO

KEPT_BLANK = "\u00a0"
"""A blank at which no line breaks; it is printed as a plain one."""

_WORD = re.compile(r"[ \t]*[^ \t]+")
_PIECE = re.compile(r"[ \t]*(?:[^ \t/,=]+[/,=]?|[/,=])")
"""A word, or what is left of one when it may also break after `/`, `,` and `=`: a path, a list, a setting."""

INDENT = "  "
_BLANKS = f" \t{KEPT_BLANK}"
_json: list[bool] = []


def line_width(stream: TextIO | None = None) -> int | None:
    """Return the columns of a stream, standard output by default; None where lines may be of any length."""
    stream = stream or sys.stdout
    asked = os.environ.get("COLUMNS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return shutil.get_terminal_size().columns if stream.isatty() else None


def width_of(text: str) -> int:
    """Return the columns a text takes: a Chinese character takes two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def widest(text: str, *, fine: bool = False) -> int:
    """Return the columns of the widest word; with ``fine``, of what is left of words that break after `/`, `,`, `=`."""
    return max((width_of(unit.lstrip(_BLANKS)) for unit in (_PIECE if fine else _WORD).findall(text)), default=0)


def wrapped(text: str, width: int | None, indent: str = "", *, fine: bool = False) -> list[str]:
    """Break a text into lines of at most ``width`` columns.

    Args:
        text: may have lines of its own.
        width: None leaves them as they are.
        indent: of the lines that follow one that was broken.
        fine: a word may also break after `/`, `,` and `=`.
    """
    lines: list[str] = []
    for whole in text.split("\n"):
        line = whole
        if width is not None and width_of(whole) > width:
            line = ""
            for unit in (_PIECE if fine else _WORD).findall(whole):
                if line.strip() and width_of(line + unit) > width:
                    lines.append(line)
                    line = indent + unit.lstrip(_BLANKS)
                else:
                    line += unit
        lines.append(line)
    return [line.replace(KEPT_BLANK, " ") for line in lines]


def print_line(text: str = "", *, indent: str = INDENT, stream: TextIO | None = None) -> None:
    """Print a text, on standard output by default, in lines that fit; those after the first are indented.

    A figure stays whole: no line breaks inside ``p = 0.01`` or ``48.0 %``.
    """
    out = stream or sys.stdout
    kept = text.replace(" = ", f"{KEPT_BLANK}={KEPT_BLANK}").replace(" %", f"{KEPT_BLANK}%")
    print("\n".join(wrapped(kept, line_width(out), indent)), file=out)


def print_command(command: str) -> None:
    """Print a command to type, indented; one too long for a line goes on in the next, as a shell takes it."""
    width = line_width()
    lines = wrapped(f"{INDENT}{command}", None if width is None else width - 2, INDENT * 2)
    print(" \\\n".join(lines))


def print_json(value: Any) -> None:
    """Print a value as indented JSON on standard output."""
    _json.append(True)
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def expect_json() -> None:
    """Forget the JSON of an earlier command of this process."""
    _json.clear()


def has_printed_json() -> bool:
    """Return whether this command has printed its JSON: an error that comes later must not add a second document."""
    return bool(_json)
