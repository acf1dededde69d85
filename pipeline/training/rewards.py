"""Calls a user's Python reward function, with trl's signature, and checks what comes back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.errors import PipelineError, Problem


def call_reward(
    function: Callable[..., Any],
    name: str,
    rows: Sequence[dict[str, Any]],
    completions: Sequence[Any],
    skip: Sequence[str] = ("prompt",),
) -> list[float]:
    """Return one reward per row.

    Args:
        function: called as ``function(prompts=…, completions=…, **columns)``, as trl calls reward functions.
        name: how the recipe names it, for messages.
        rows: rows with a `prompt` (messages) and any further columns.
        completions: one response per row, as text or messages.
        skip: columns not passed on.

    Raises:
        PipelineError: the function raises, returns another number of values, or a value that is not finite.
    """
    columns = sorted({key for row in rows for key in row} - set(skip))
    extra = {key: [row.get(key) for row in rows] for key in columns}
    try:
        returned = function(prompts=[row["prompt"] for row in rows], completions=list(completions), **extra)
    except Exception as error:  # a user's function may raise anything
        raise PipelineError(
            Problem(f"reward function {name} raised {type(error).__name__}: {error}", remedy="correct the function")
        ) from error
    try:
        values = list(returned)
    except TypeError:
        found = f"reward function {name} returned {type(returned).__name__} {returned}"
        raise PipelineError(Problem(found, "one number per row in a list")) from None
    if len(values) != len(rows):
        raise PipelineError(
            Problem(f"reward function {name} returned {len(values)} values", f"one per row ({len(rows)})")
        )
    for index, value in enumerate(values):
        if not _is_finite(value):
            raise PipelineError(
                Problem(f"reward function {name} returned {value} for row {index}", "a finite number for every row")
            )
    return [float(value) for value in values]


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
