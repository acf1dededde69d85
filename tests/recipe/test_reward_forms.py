"""The short ways to write `reward:`, what they stand for, and what a wrong one is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from pipeline.errors import PipelineError, Problem
from pipeline.recipe import load
from pipeline.rl.rewards.fields import RewardFields, rewards_given
from pipeline.stage import Code, Data, Input, register_kind

HEAD = """data:
  pairs: {path: pairs.jsonl}
stages:
  b: {kind: base}
  rm: {kind: base}
  p:
    kind: online
    data: pairs
    model: b
"""


class OnlineConfig(RewardFields):
    watch: Annotated[list[str], Input("base", external=True)] = Field(default=[])
    watch_functions: Annotated[list[str], Code()] = Field(default=[])
    data: Annotated[str, Data("prompt")]
    model: Annotated[str, Input("base", external=True)]
    reward: Annotated[list[str], Input("base", external=True)] = Field(default=[])

    def check(self) -> list[Problem]:
        return self.reward_problems()


@pytest.fixture
def loaded(write: Callable[..., Path], tmp_path: Path) -> Callable[[str], Any]:
    """Load a recipe with a `reward:` and return the configuration of its stage."""
    register_kind("online", version=1, config=OnlineConfig, run="", makes="model")
    (tmp_path / "rewards.py").write_text("def polite(completions, **columns): ...\ndef short(completions, **c): ...\n")

    def config(reward: str) -> Any:
        recipe = load(write(HEAD + reward))
        return next(one.config for one in recipe.stages.values() if one.kind == "online")

    return config


@pytest.mark.parametrize(
    ("reward", "models", "functions", "weights"),
    [
        ("    reward: rm\n", ["rm"], [], [1.0]),
        ("    reward: {model: rm}\n", ["rm"], [], [1.0]),
        ("    reward: {model: rm, weight: 0.5}\n", ["rm"], [], [0.5]),
        ("    reward: {function: rewards.py:polite}\n", [], ["rewards.py:polite"], [1.0]),
        ("    reward: [rm, {function: rewards.py:polite}]\n", ["rm"], ["rewards.py:polite"], [1.0, 1.0]),
        (
            # Models come first, and every weight stays with its own reward.
            "    reward:\n      - {function: rewards.py:short, weight: 0.2}\n      - {model: rm, weight: 3}\n"
            "      - {function: rewards.py:polite, weight: -1}\n",
            ["rm"],
            ["rewards.py:short", "rewards.py:polite"],
            [3.0, 0.2, -1.0],
        ),
        (
            "    reward: [rm]\n    reward_functions: [rewards.py:polite]\n    reward_weights: [2.0, 0.5]\n",
            ["rm"],
            ["rewards.py:polite"],
            [2.0, 0.5],
        ),
    ],
)
def test_each_form_stands_for_the_same_fields(
    reward: str, models: list[str], functions: list[str], weights: list[float], loaded: Callable[[str], Any]
) -> None:
    config = loaded(reward)
    assert config.reward == models
    assert config.reward_functions == functions
    assert config.weights == weights
    assert rewards_given(config) == [*models, *(name.partition(":")[2] for name in functions)]


def test_what_is_watched_is_written_alike_without_weights(loaded: Callable[[str], Any]) -> None:
    config = loaded("    reward: rm\n    watch: [rm, {function: rewards.py:polite}]\n")
    assert (config.watch, config.watch_functions) == (["rm"], ["rewards.py:polite"])
    with pytest.raises(PipelineError, match=r"unknown key `weight` in watch; expected one of model, function"):
        loaded("    reward: rm\n    watch: {model: rm, weight: 2}\n")
    with pytest.raises(PipelineError, match=r"watch names nothing; expected a reward model's name"):
        loaded("    reward: rm\n    watch: {}\n")


EXPECTED = "a reward model's name, {model: NAME} or {function: FILE.py:NAME}, each with an optional weight"
BAD = {
    "neither": ("    reward: {weight: 2}\n", f"r.yaml:10 stage p: reward names nothing; expected {EXPECTED}"),
    "both": (
        "    reward:\n      - rm\n      - {model: rm, function: rewards.py:polite}\n",
        f"r.yaml:12 stage p: reward names both a model and a function; "
        f"expected {EXPECTED}. One entry of a list for each",
    ),
    "unknown key": (
        "    reward:\n      - {model: rm, wieght: 2}\n",
        "r.yaml:11 stage p: unknown key `wieght` in reward; "
        "expected one of model, function, weight. Did you mean `weight`?",
    ),
    "number": ("    reward: [rm, 3]\n", f"r.yaml:10 stage p: reward is 3; expected {EXPECTED}"),
    "weight that is text": ("    reward: {model: rm, weight: much}\n", "r.yaml:10 stage p: reward_weights"),
    "no such function": ("    reward: {function: rewards.py}\n", "r.yaml:10 stage p: reward_functions: `rewards.py`"),
    "no such file": (
        "    reward: {function: rewrads.py:polite}\n",
        "r.yaml:10 stage p: reward_functions: `rewrads.py`",
    ),
    "none": ("", "stage p: no reward; expected a reward model's name or {function: FILE.py:NAME}. Add `reward:`"),
    "empty": ("    reward: []\n", "stage p: no reward"),
    "weights of another number": (
        "    reward: [rm]\n    reward_weights: [1, 2]\n",
        "stage p: 2 reward_weights for 1 reward; expected one for each",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_reward_is_told_with_its_line(case: str, loaded: Callable[[str], Any]) -> None:
    reward, message = BAD[case]
    with pytest.raises(PipelineError) as raised:
        loaded(reward)
    assert any(message in str(problem) for problem in raised.value.problems), raised.value.problems
    assert all(len(str(problem).splitlines()) == 1 for problem in raised.value.problems)
