"""Calls a user's Python reward function with trl's signature, and checks its return value."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from pipeline.errors import PipelineError, Problem, counted
from pipeline.plain_data import KeywordArguments, Row
from pipeline.records.shapes.plain import MARK

Offered = Mapping[str, Any]
"""What a trainer offers a reward function beside the rows: arguments by name, which the function may name or not."""


def call_reward(
    function: Callable[..., Any],
    name: str,
    rows: Sequence[Row],
    completions: Sequence[Any],
    skip: Sequence[str] = ("prompt",),
    *,
    extra: Offered | None = None,
    may_skip_rows: bool = False,
) -> list[float]:
    """Return one reward per row.

    Args:
        function: called as ``function(prompts=…, completions=…, **columns)``, as trl calls reward functions. One
            without ``**kwargs`` gets only the columns it names; an ``async`` one is awaited.
        name: name in the recipe, for messages.
        rows: rows with a `prompt` (messages) and any further columns.
        completions: one response per row, as text or messages.
        skip: columns that are not passed on, beside those named as the function's own arguments.
        extra: further arguments.
        may_skip_rows: whether None is allowed; the reward then does not apply to that row, which gets NaN.

    Raises:
        PipelineError: the function raises, returns another number of values, or a value that is not finite.
    """
    columns = {key for row in rows for key in row} - {*skip, MARK, "prompts", "completions"}
    taken = _taken(function, [*sorted(columns), *sorted(set(extra or {}) - columns)])

    def call(indices: Sequence[int]) -> Any:
        given: KeywordArguments = {}
        for key in taken:
            value = [row.get(key) for row in rows] if key in columns else (extra or {})[key]
            given[key] = [value[i] for i in indices] if _is_per_row(value, rows) else value
        returned = function(
            prompts=[rows[i]["prompt"] for i in indices], completions=[completions[i] for i in indices], **given
        )
        return asyncio.run(_wait_for(returned)) if inspect.isawaitable(returned) else returned

    try:
        returned = call(range(len(rows)))
    except Exception as error:  # a user's function may raise anything
        statement = f"reward function {name} raised {type(error).__name__}: {error}"
        raise PipelineError(
            Problem(statement + _first_that_raises(call, rows), remedy="correct the function")
        ) from error
    try:
        values = list(returned)
    except TypeError:
        statement = f"reward function {name} returned {type(returned).__name__} {returned}"
        raise PipelineError(Problem(statement, "one number per row in a list")) from None
    if len(values) != len(rows):
        raise PipelineError(
            Problem(f"reward function {name} returned {counted(len(values), 'value')}", f"one per row ({len(rows)})")
        )
    values = [
        math.nan if value is None and may_skip_rows else _checked(value, name, rows, i)
        for i, value in enumerate(values)
    ]
    return [float(value) for value in values]


async def _wait_for(returned: Awaitable[Any]) -> Any:
    return await returned


def _taken(function: Callable[..., Any], names: Sequence[str]) -> list[str]:
    """Return the arguments that a function accepts: all of them if it has ``**kwargs``."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return list(names)
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return [name for name in names if takes_all or name in parameters]


def _is_per_row(value: object, rows: Sequence[Any]) -> bool:
    return isinstance(value, list) and len(value) == len(rows)


def _first_that_raises(call: Callable[[Sequence[int]], Any], rows: Sequence[Row]) -> str:
    """Return the row that a function raises for, by calling it row by row; empty if no single row fails."""
    for index in range(len(rows)):
        try:
            call([index])
        except Exception:  # as above
            return f" for {_named(rows, index)}"
    return ""


def _checked(value: object, name: str, rows: Sequence[Row], index: int) -> Any:
    if not _is_finite(value):
        statement = f"reward function {name} returned {value} for {_named(rows, index)}"
        raise PipelineError(Problem(statement, "a finite number for every row"))
    return value


def _named(rows: Sequence[Row], index: int) -> str:
    """Name a row by its index and the start of its last message."""
    asked = " ".join(str(rows[index]["prompt"][-1]["content"]).split()) if rows[index].get("prompt") else ""
    return f"row {index} ({asked if len(asked) <= 60 else asked[:59] + '…'})" if asked else f"row {index}"


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
