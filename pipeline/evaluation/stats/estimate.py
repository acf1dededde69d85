"""A measured value with its interval, and its formatting for people.

Owns the record in which every metric is stored. Knows nothing of how an interval is computed; imports no numerics.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

SIGNIFICANT_DIGITS = 8
"""Significant digits in files: enough to compare, few enough that rounding errors do not change the bytes."""


class Record(BaseModel):
    """Base of the records in this package: frozen, finite, an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class Estimate(Record):
    """A value, its interval, and its number of independent observations (prompts, pairs, sequences)."""

    value: float
    low: float
    high: float
    n: int

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        if self.n < 1:
            raise ValueError(f"n is {self.n}, must be at least 1")
        return self

    @property
    def half_width(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


class Delta(Estimate):
    """A paired difference to the baseline, with the p-value of no difference.

    A difference is beyond noise when the interval *and* the test exclude zero; this rule holds everywhere. The two are
    different statistics and can disagree near the threshold; then nothing is claimed.
    """

    p_value: float

    def is_below(self, level: float = 0.95) -> bool:
        """Return whether the difference is below zero beyond noise."""
        return self.high < 0 and self.p_value < 1 - level

    def is_above(self, level: float = 0.95) -> bool:
        """Return whether the difference is above zero beyond noise."""
        return self.low > 0 and self.p_value < 1 - level


def rounded(value: float) -> float:
    """Round to `SIGNIFICANT_DIGITS`, and minus zero to zero."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") + 0.0


def stable(value: object) -> Any:
    """Round every float in plain data, so that rounding errors do not change the bytes of a file."""
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, dict):
        return {key: stable(item) for key, item in value.items()}
    return [stable(item) for item in value] if isinstance(value, list) else value


def percent(value: float, digits: int = 1) -> str:
    """Render a share, e.g. ``74.2 %``; only an exact 0 or 1 is shown as 0 % or 100 %."""
    return f"{_share(value, digits)} %"


def percent_interval(estimate: Estimate, digits: int = 1) -> str:
    """Render a share with its interval, e.g. ``74.2 % [70.1, 78.0]``.

    A bound near one half gets more digits, since ``[50.0, 58.1]`` would not show on which side of it the bound is.
    """
    low, high = (_share(bound, digits) for bound in (estimate.low, estimate.high))
    return f"{percent(estimate.value, digits)} [{low}, {high}]"


def number(value: float, digits: int = 2) -> str:
    """Render a number with fixed digits, never ``-0.00``."""
    return _plain(value, digits)


def number_interval(estimate: Estimate, digits: int = 2) -> str:
    """Render a number with its interval, e.g. ``1.69 [1.53, 1.85]``."""
    return f"{number(estimate.value, digits)} [{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def signed_points(estimate: Estimate, digits: int = 1) -> str:
    """Render a difference of shares in percentage points, e.g. ``+3.2``; only an exact 0 is shown as 0."""
    text = _apart(100 * estimate.value, digits, (0.0,))
    return text if text.startswith("-") or float(text) == 0 else f"+{text}"


def points_interval(estimate: Estimate, digits: int = 1) -> str:
    """Render a difference of shares with its interval, e.g. ``+3.2 points [1.1, 5.4]``."""
    low, high = (_apart(100 * bound, digits, (0.0,)) for bound in (estimate.low, estimate.high))
    return f"{signed_points(estimate, digits)} points [{low}, {high}]"


def p_text(p_value: float) -> str:
    """Render a p-value, e.g. ``p = 0.012``; one near 0.05 gets the digits that show on which side of it it is."""
    return f"p = {p_number(p_value)}"


def p_number(p_value: float) -> str:
    """Render a p-value without the leading ``p =``."""
    texts = (f"{p_value:.{digits}g}" for digits in (2, 3, 4, 5))
    return next((text for text in texts if (float(text) < _ALPHA) == (p_value < _ALPHA)), f"{p_value:.6g}")


def signed_interval(estimate: Estimate, digits: int = 2) -> str:
    """Render a difference with its interval, e.g. ``+0.84 [0.71, 0.97]``."""
    low, high = (_apart(bound, digits, (0.0,)) for bound in (estimate.low, estimate.high))
    text = _apart(estimate.value, digits, (0.0,))
    sign = "" if text.startswith("-") or float(text) == 0 else "+"
    return f"{sign}{text} [{low}, {high}]"


def _share(value: float, digits: int) -> str:
    return _apart(100 * value, digits, (0.0, 50.0, 100.0))


_MOST_DIGITS = 4
_ALPHA = 0.05


def _apart(value: float, digits: int, marks: tuple[float, ...]) -> str:
    """Render with fixed digits, plus as many as distinguish the value from each mark it does not equal."""
    for more in range(digits, max(digits, _MOST_DIGITS) + 1):
        text = _plain(value, more)
        if not any(float(text) == mark and abs(value - mark) > 10.0**-_MOST_DIGITS for mark in marks):
            return text
    return _plain(value, digits)


def _plain(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text
