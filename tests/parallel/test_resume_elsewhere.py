"""A stage that was stopped goes on spread another way: other processes, another ZeRO stage, none.

Each session is stopped after a moment and resumed by the next one; the last one trains to the end. What comes out is
what one process makes without a stop, within 1e-4 of what the training changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.xdist_group("processes")

STEPS = 160
TRAIN = f"max_steps: {STEPS}, batch_size: 8, adam_epsilon: 1.0e-4, weight_decay: 0.01, warmup_steps: 20"
STAGES = f"""
  full: {{kind: sft, data: demos, model: base, train: {{{TRAIN}, learning_rate: 1.0e-3}}}}
  lora: {{kind: dpo, data: pairs, model: sft, adapter: {{r: 4}}, train: {{{TRAIN}, learning_rate: 2.0e-3, beta: 0.5}}}}
"""
PARENTS = {"full": "base", "lora": "sft"}
WAYS: dict[str, tuple[int, int, int, str]] = {
    "one": (1, 0, 1, "none"),
    "two": (2, 0, 1, "none"),
    "zero-1": (2, 1, 1, "none"),
    "zero-2": (2, 2, 1, "none"),
    "zero-3": (2, 3, 1, "none"),
    "zero-2 alone": (1, 2, 1, "none"),
    "zero-2 offloaded": (2, 2, 1, "optimizer"),
    "zero-3 offloaded": (2, 3, 1, "all"),
    "slices": (2, 0, 2, "none"),
}
"""Processes, ZeRO stage, slices of each matrix, and what is offloaded."""
CASES = {
    "other numbers of processes": ("full", ("one", "two", "one")),
    "ZeRO-3, plain, ZeRO-2": ("full", ("zero-3", "zero-3", "two", "zero-2", "zero-2 alone")),
    "from plain to ZeRO-1": ("full", ("one", "zero-1", "zero-1", "one")),
    "offloaded": ("full", ("one", "zero-3 offloaded", "zero-2 offloaded", "two")),
    "in slices": ("full", ("slices", "slices", "one", "slices", "two")),
    "an adapter in slices": ("lora", ("slices", "one", "slices")),
    "an adapter": ("lora", ("zero-2", "one", "zero-3", "zero-3", "two")),
}


@pytest.fixture(scope="module")
def world(spread_world: Callable[[str], Any]) -> Any:
    return spread_world(STAGES)


@pytest.fixture(scope="module")
def whole(world: Any) -> dict[str, Any]:
    """What one process makes of each stage without a stop."""
    return world.train("whole", tuple(PARENTS))


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_spread_another_way(case: str, world: Any, whole: dict[str, Any]) -> None:
    name, ways = CASES[case]
    if any("zero" in way for way in ways):
        pytest.importorskip("deepspeed", reason="ZeRO needs DeepSpeed: pip install 'trueup[deepspeed]'")
    reached = 0
    made: dict[str, Any] = {}
    for place, way in enumerate(ways):
        words = ("processes", "zero", "tensor_parallel", "offload")
        sets = tuple(f"compute.{word}={value}" for word, value in zip(words, WAYS[way], strict=True))
        last = place == len(ways) - 1
        made = world.train(case.replace(" ", "-"), (name,), *sets, stop_after=None if last else 2)
        begun = [int(found[1]) for note in world.notes if (found := re.match(r"resumes at step (\d+) of", note))]
        if place:
            assert begun and begun[0] > reached, f"{way} did not resume after step {reached}: {world.notes}"
            reached = begun[0]
    start = world.start(PARENTS[name], whole[name])
    found = world.difference(whole[name], made[name]) / world.difference(start, whole[name])
    print(f"{case} {found:.2e}")
    assert found < 1e-4
