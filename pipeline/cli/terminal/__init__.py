"""Text output of the command: formatted figures, wrapped lines, tables that fit the terminal, and JSON.

Knows nothing of recipes, stages or stores. `rich` is imported only when a table is printed, to keep `--help` fast.
"""

from pipeline.cli.terminal.lines import (
    NO_BREAK_SPACE,
    expect_json,
    has_printed_json,
    line_width,
    print_command,
    print_json,
    print_line,
    wrapped,
)
from pipeline.cli.terminal.tables import Column, console, print_table
from pipeline.cli.terminal.words import age, duration, figure, metrics, shown_path, size

__all__ = [
    "NO_BREAK_SPACE",
    "Column",
    "age",
    "console",
    "duration",
    "expect_json",
    "figure",
    "has_printed_json",
    "line_width",
    "metrics",
    "print_command",
    "print_json",
    "print_line",
    "print_table",
    "shown_path",
    "size",
    "wrapped",
]
