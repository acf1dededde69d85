"""A measured value with its interval, and how people read it.

Owns the record every metric is stored as. Knows nothing of how the interval came about; imports no numerics.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator

SIGNIFICANT_DIGITS = 8
"""Digits kept in files: enough to compare, few enough that the last bits of a sum do not change the bytes."""


class Record(BaseModel):
    """Base of the records in this package: frozen, finite, an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class Estimate(Record):
    """A value, its interval, and the number of independent observations (prompts, pairs, sequences) behind it."""

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
    """A paired difference against the baseline, with the p-value of no difference."""

    p_value: float

    def is_lower(self, level: float = 0.95) -> bool:
        """Whether the value is below the baseline beyond noise: negative, with ``p < 1 - level``."""
        return self.value < 0 and self.p_value < 1 - level

    def is_below(self, level: float = 0.95) -> bool:
        """Whether both the test and the interval leave out zero, and the value is under it."""
        return self.high < 0 and self.p_value < 1 - level

    def is_above(self, level: float = 0.95) -> bool:
        """Whether both the test and the interval leave out zero, and the value is over it."""
        return self.low > 0 and self.p_value < 1 - level


def rounded(value: float) -> float:
    """Round to `SIGNIFICANT_DIGITS`, and minus zero to zero."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") + 0.0


def stable(value: Any) -> Any:
    """Round every float in plain data, so that the last bits of a sum do not change the bytes of a file."""
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, dict):
        return {key: stable(item) for key, item in value.items()}
    return [stable(item) for item in value] if isinstance(value, list) else value


def percent(value: float, digits: int = 1) -> str:
    """Render a share, e.g. ``74.2 %``."""
    return f"{_plain(100 * value, digits)} %"


def percent_interval(estimate: Estimate, digits: int = 1) -> str:
    """Render a share with its interval, e.g. ``74.2 % [70.1, 78.0]``."""
    low, high = (_plain(100 * bound, digits) for bound in (estimate.low, estimate.high))
    return f"{percent(estimate.value, digits)} [{low}, {high}]"


def number(value: float, digits: int = 2) -> str:
    """Render a number with fixed digits, never ``-0.00``."""
    return _plain(value, digits)


def number_interval(estimate: Estimate, digits: int = 2) -> str:
    """Render a number with its interval, e.g. ``1.69 [1.53, 1.85]``."""
    return f"{number(estimate.value, digits)} [{number(estimate.low, digits)}, {number(estimate.high, digits)}]"


def signed_points(estimate: Estimate, digits: int = 1) -> str:
    """Render a difference of shares in percentage points, e.g. ``+3.2``."""
    text = _plain(100 * estimate.value, digits)
    return text if text.startswith("-") or float(text) == 0 else f"+{text}"


def signed_interval(estimate: Estimate, digits: int = 2) -> str:
    """Render a difference with its interval, e.g. ``+0.84 [0.71, 0.97]``."""
    text = number_interval(estimate, digits)
    return text if estimate.value < 0 or float(_plain(estimate.value, digits)) == 0 else f"+{text}"


def _plain(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text
