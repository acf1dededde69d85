"""What all figures share: the palette, the style, and SVG files whose bytes depend on the data alone.

Owns reproducible drawing with matplotlib's object interface (no pyplot, no global figure, no display). Knows nothing
of what is drawn. Colours are those of Okabe and Ito, told apart with every common kind of colour blindness.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#222222"
MUTED = "#6b6b6b"
RULE = "#d9d9d9"
BASELINE = "#8a8a8a"
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a500")

_FAMILIES = ("axes", "font", "text", "lines", "patch", "grid", "legend", "figure", "xtick", "ytick", "savefig", "svg")
_STYLE: dict[str, Any] = {
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
    """Draw in the house style, whatever the user's matplotlibrc says; restored afterwards."""
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
        figure: from `new_figure`.
        path: of the file.
        title: in the file's metadata, read out by screen readers.
    """
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None, "Title": title}
    figure.savefig(buffer, format="svg", metadata=metadata, bbox_inches="tight", pad_inches=0.12)
    path.write_bytes(b"".join(line.rstrip() + b"\n" for line in buffer.getvalue().splitlines()))
    return path


def colours(names: Sequence[str], baseline: str | None = None) -> dict[str, str]:
    """Return a colour per name: grey for the baseline, the palette in order for the others."""
    others = [name for name in names if name != baseline]
    chosen = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(others)}
    return {name: chosen.get(name, BASELINE) for name in names}


def plain(text: str) -> str:
    """Return text that matplotlib draws as it is: no mathematics, one line."""
    return " ".join(text.replace("$", r"\$").split())
