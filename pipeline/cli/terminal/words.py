"""Formats durations, sizes, metrics and paths for people.

Knows nothing of where they are printed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path


def duration(seconds: float) -> str:
    """Format a duration as ``0.8 s``, ``12 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    if not math.isfinite(seconds):
        return "∞ h"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    minutes, rest = divmod(rounded, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def size(count: int) -> str:
    """Format a number of bytes as ``812 B``, ``3.4 MiB`` and so on."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def figure(value: float) -> str:
    """Format a measured number with four significant digits: ``0.1234``, ``12.35``, ``1,234``, ``1.2e-05``."""
    if value == 0 or value != value:
        return f"{value:g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.4g}"


def metrics(values: Mapping[str, float], limit: int = 3) -> str:
    """Format the most informative metrics of a training step, as ``loss 1.23  accuracy 0.81``."""
    if "kl" in values and "loss" not in values:
        return "  ".join(f"{short} {figure(values[name])}" for name, short in _ON_POLICY.items() if name in values)
    ranked = sorted(values.items(), key=lambda item: _interest(item[0]))
    shown = [f"{_short_name(name)} {figure(value)}" for name, value in ranked if _interest(name) < _IGNORED]
    return "  ".join(shown[:limit])


def age(created: str, now: datetime | None = None) -> str:
    """Format the age of an ISO time: ``just now``, ``5 min ago``, ``3 h ago``, ``12 d ago``."""
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
"""Metrics shown for an on-policy stage, whose loss says little, and their short names."""
_SHORT_NAMES = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "mean_token_accuracy": "token acc",
    "tokens_per_s": "tokens/s",
}
_NOT_SHOWN = ("learning_rate", "epoch", "grad_norm", "step", "total_flos", "num_tokens", "entropy")
_IGNORED = 1000


def _interest(name: str) -> int:
    if name in _FIRST:
        return _FIRST.index(name)
    if name in _NOT_SHOWN or name.endswith(("_runtime", "_per_second", "_seconds")):
        return _IGNORED
    return len(_FIRST)


def _short_name(name: str) -> str:
    return _SHORT_NAMES.get(name, name.replace("eval_", "held-out ").replace("_", " "))
