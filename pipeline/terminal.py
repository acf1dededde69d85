"""What the command writes on a terminal: numbers in words, tables that also work in a pipe, and JSON.

Owns how a figure looks and when colours are used. Knows nothing of recipes, stages or stores. `rich` is imported when
a table is printed, so that `--help` does not pay for it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

PIPE_WIDTH = 2000
"""Columns when output goes to a file or a pipe: nothing is cut or wrapped there."""

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
        fold: may wrap onto more lines when the terminal is narrow; else it keeps its width.
        shorten: is cut with an ellipsis instead.
        style: of `rich`; ``status`` colours each word by its meaning.
    """

    title: str
    right: bool = False
    fold: bool = False
    shorten: bool = False
    style: str = ""


def console(stream: TextIO | None = None) -> Console:
    """Return a console for a stream, standard output by default; wide and colourless unless it is a terminal."""
    from rich.console import Console

    stream = stream or sys.stdout
    is_terminal = stream.isatty()
    return Console(
        file=stream, width=None if is_terminal else PIPE_WIDTH, highlight=False, soft_wrap=not is_terminal, emoji=False
    )


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, title: str = "") -> Table:
    """Build a table; cells are plain text."""
    from rich.table import Table
    from rich.text import Text

    built = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", title=title or None)
    built.title_justify = "left"
    for column in columns:
        built.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=not (column.fold or column.shorten),  # what may not wrap keeps its width
            style="" if column.style == "status" else column.style,
        )
    for row in rows:
        cells: list[RenderableType] = []
        for column, cell in zip(columns, row, strict=True):
            style = _STATUS_STYLES.get(cell, "") if column.style == "status" else ""
            overflow: Literal["ellipsis", "fold"] = "ellipsis" if column.shorten else "fold"
            cells.append(Text(cell, style=style, no_wrap=column.shorten or None, overflow=overflow))
        built.add_row(*cells)
    return built


def print_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], *, title: str = "", stream: TextIO | None = None
) -> None:
    """Print a table, on standard output by default; without trailing blanks in a pipe."""
    out = console(stream)
    if out.is_terminal:
        out.print(table(columns, rows, title=title))
        return
    with out.capture() as captured:
        out.print(table(columns, rows, title=title))
    for line in captured.get().splitlines():
        print(line.rstrip(), file=out.file)


def print_json(value: Any) -> None:
    """Print a value as indented JSON on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def duration(seconds: float) -> str:
    """Return ``0.8 s``, ``12 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    if not math.isfinite(seconds):
        return "∞ h"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def size(count: int) -> str:
    """Return a number of bytes as ``812 B``, ``3.4 MiB`` and so on."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def figure(value: float) -> str:
    """Return a measured number with four digits that count: ``0.1234``, ``12.35``, ``1,234``, ``1.2e-05``."""
    if value == 0 or value != value:
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.4g}"


def metrics(values: Mapping[str, float], limit: int = 3) -> str:
    """Return the metrics people follow during training, as ``loss 1.23  accuracy 0.81``."""
    if "kl" in values and "loss" not in values:
        return "  ".join(f"{short} {figure(values[name])}" for name, short in _ON_POLICY.items() if name in values)
    ranked = sorted(values.items(), key=lambda item: _interest(item[0]))
    shown = [f"{_short_name(name)} {figure(value)}" for name, value in ranked if _interest(name) < _IGNORED]
    return "  ".join(shown[:limit])


def age(created: str, now: datetime | None = None) -> str:
    """Return how long ago an ISO time was: ``just now``, ``5 min ago``, ``3 h ago``, ``12 d ago``."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    if seconds < 60:
        return "just now"
    for unit, length, until in (("min", 60, 3600), ("h", 3600, 86400), ("d", 86400, float("inf"))):
        if seconds < until:
            return f"{int(seconds // length)} {unit} ago"
    return created


def shown_path(path: Path) -> str:
    """Return a path relative to the current folder when it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


_FIRST = (
    "loss",
    "eval_loss",
    "reward",
    "accuracy",
    "rewards/accuracies",
    "rewards/margins",
    "kl",
    "mean_token_accuracy",
)
_ON_POLICY = {
    "reward": "reward",
    "kl": "kl",
    "entropy": "entropy",
    "length": "length",
    "eos_rate": "ended",
    "explained_variance": "value fit",
}
"""Metrics of a stage that has no loss worth following, and what they are called."""
_NOT_SHOWN = ("learning_rate", "epoch", "grad_norm", "step", "total_flos", "num_tokens", "entropy")
_IGNORED = 1000


def _interest(name: str) -> int:
    if name in _FIRST:
        return _FIRST.index(name)
    if name in _NOT_SHOWN or name.endswith(("_runtime", "_per_second", "_seconds")):
        return _IGNORED
    return len(_FIRST)


def _short_name(name: str) -> str:
    return {"rewards/accuracies": "accuracy", "rewards/margins": "margin", "mean_token_accuracy": "token acc"}.get(
        name, name.replace("eval_", "held-out ").replace("_", " ")
    )
