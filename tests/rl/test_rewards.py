"""What a user's reward function is given, and what is refused of what it gives back."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.rl.rewards.functions import call_reward

ROWS: list[dict[str, Any]] = [
    {"prompt": [{"role": "user", "content": "a"}], "answer": "1"},
    {"prompt": [{"role": "user", "content": "b"}], "task": "sum"},
]


def test_columns_come_as_lists_beside_prompts_and_completions() -> None:
    seen: dict[str, Any] = {}

    def reward(**columns: Any) -> list[float]:
        seen.update(columns)
        return [1, 0.5]

    assert call_reward(reward, "gold.py:reward", ROWS, ["x", "y"]) == [1.0, 0.5]
    assert seen == {
        "prompts": [ROWS[0]["prompt"], ROWS[1]["prompt"]],
        "completions": ["x", "y"],
        "answer": ["1", None],
        "task": [None, "sum"],
    }


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda **c: 1 / 0,
            r"reward function f raised ZeroDivisionError: division by zero for row 0 \(a\). Correct the function",
        ),
        (lambda **c: [1.0], r"reward function f returned 1 value; expected one per row \(2\)"),
        (
            lambda **c: [1.0, None],
            r"reward function f returned None for row 1 \(b\); expected a finite number for every row",
        ),
        (lambda **c: [float("nan"), 1.0], r"reward function f returned nan for row 0 \(a\); expected a finite number"),
        (lambda **c: [1.0, float("inf")], r"reward function f returned inf for row 1 \(b\); expected a finite number"),
        (lambda **c: ["good", 1.0], r"reward function f returned good for row 0 \(a\); expected a finite number"),
        (lambda **c: 3.0, "reward function f returned float 3.0; expected one number per row in a list"),
    ],
)
def test_what_cannot_be_a_reward_is_an_error_that_names_the_function(function: Any, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        call_reward(function, "f", ROWS, ["x", "y"])


def test_columns_named_like_arguments_of_the_function_are_not_passed_on() -> None:
    rows = [{"prompt": "p", "completions": ["of the data"], "prompts": "too"}]
    assert call_reward(lambda completions, **columns: [float(completions == ["said"])], "f", rows, ["said"]) == [1.0]
