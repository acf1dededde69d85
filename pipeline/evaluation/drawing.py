"""Common parts of all figures: the palette, the style, and SVG files whose bytes depend only on the data.

Owns reproducible drawing with matplotlib's object interface (no pyplot, no global figure, no display). Knows nothing
of what is drawn. The colours are those of Okabe and Ito, distinguishable with all common kinds of colour blindness.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from pipeline.plain_data import KeywordArguments

INK = "#222222"
MUTED = "#6b6b6b"
RULE = "#d9d9d9"
BASELINE = "#8a8a8a"
WIDTH_IN = 6.4
"""Width of a figure in inches; its text is still readable on a phone, 390 pixels wide."""
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a500")

_DARKER = 0.55
"""Factor of brightness for each further round through the palette."""
_LEGEND_CHARACTERS = 80
"""Approximate number of legend characters that fit in the width of a figure of `WIDTH_IN`."""
_HANDLE_CHARACTERS = 5

_FAMILIES = ("axes", "font", "text", "lines", "patch", "grid", "legend", "figure", "xtick", "ytick", "savefig", "svg")
_STYLE: KeywordArguments = {
    "svg.hashsalt": "trueup",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextmanager
def style() -> Iterator[None]:
    """Apply this package's style inside the block, whatever the user's matplotlibrc says."""
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key.split(".")[0] in _FAMILIES}
    with matplotlib.rc_context({**defaults, **_STYLE}):
        yield


def new_figure(width_in: float, height_in: float) -> Figure:
    """Return an empty figure; call it within `style`."""
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def save(figure: Figure, path: Path, *, title: str) -> Path:
    """Write a figure as SVG; call it within `style`. The same figure gives the same bytes.

    Args:
        figure: a figure from `new_figure`.
        path: path of the file.
        title: title in the file's metadata, for screen readers.
    """
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None, "Title": title}
    with warnings.catch_warnings():  # SVG text is not drawn here: the viewer's fonts have the glyphs
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata=metadata, bbox_inches="tight", pad_inches=0.12)
    path.write_bytes(b"".join(line.rstrip() + b"\n" for line in buffer.getvalue().splitlines()))
    return path


def colours(names: Sequence[str], baseline: str | None = None) -> dict[str, str]:
    """Return a colour per name: grey for the baseline, the palette for the others, then darker shades of it."""
    others = [name for name in names if name != baseline]
    chosen = {name: _shade(PALETTE[index % len(PALETTE)], index // len(PALETTE)) for index, name in enumerate(others)}
    return {name: chosen.get(name, BASELINE) for name in names}


def _shade(colour: str, times: int) -> str:
    parts = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(part * _DARKER**times):02x}" for part in parts)


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Add a legend below a figure of `WIDTH_IN`, in as many columns as fit its longest label."""
    longest = max(len(label) for label in labels) + _HANDLE_CHARACTERS
    columns = max(1, min(len(labels), _LEGEND_CHARACTERS // longest))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=1.0, columnspacing=1.6)


def folded(text: str, width: int) -> str:
    """Wrap `plain` text into lines of at most ``width`` characters; a longer word is broken."""
    return "\n".join(plain(line) for line in textwrap.wrap(" ".join(text.split()), width)) or plain(text)


def plain(text: str) -> str:
    """Escape text so that matplotlib draws it literally on one line, without mathtext."""
    return " ".join(text.replace("$", r"\$").split())
