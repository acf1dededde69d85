"""Allowed values of an argument inside a field, such as those of a schedule or an optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard


@dataclass(frozen=True)
class Argument:
    """The allowed values of an argument.

    Attributes:
        expected: description of the values for messages, e.g. ``must be a number``.
        holds: returns whether a value is allowed.
    """

    expected: str
    holds: Callable[[Any], bool]


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value is a finite number; booleans are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def of_words(*words: str) -> Argument:
    """Return an argument that takes one of ``words``."""
    last = f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    return Argument(f"must be {last}", lambda value: value in words)


def ranged(words: str, holds: Callable[[Any], bool], *, whole: bool = False) -> Argument:
    """Return an argument that takes a number within bounds.

    Args:
        words: the bounds as text, e.g. ``>= 0``.
        holds: returns whether a number is within the bounds.
        whole: whether only whole numbers are allowed.
    """
    expected = f"must be a whole number {words}" if whole else f"must be a number {words}"
    return Argument(expected, lambda value: is_number(value) and (not whole or value == int(value)) and holds(value))


NUMBER = Argument("must be a number", is_number)
POSITIVE = ranged("> 0", lambda value: value > 0)
AT_LEAST_0 = ranged(">= 0", lambda value: value >= 0)
SHARE = ranged("from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_1 = ranged(">= 0 and < 1", lambda value: 0 <= value < 1)
COUNT = ranged(">= 0", lambda value: value >= 0, whole=True)
AT_LEAST_1 = ranged(">= 1", lambda value: value >= 1, whole=True)
SWITCH = Argument("must be true or false", lambda value: isinstance(value, bool))
