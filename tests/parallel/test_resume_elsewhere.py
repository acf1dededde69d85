"""A stage that was stopped goes on spread another way: other processes, another ZeRO stage, none.

Each session is stopped after a moment and resumed by the next one; the last one trains to the end. What comes out is
what one process makes without a stop, within 1e-4 of what the training changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.xdist_group("resume elsewhere")  # what its fixtures train is trained once

STEPS = 160
TRAIN = f"max_steps: {STEPS}, batch_size: 8, adam_epsilon: 1.0e-4, weight_decay: 0.01, warmup_steps: 20"
STAGES = f"""
  full: {{kind: sft, data: demos, model: base, train: {{{TRAIN}, learning_rate: 1.0e-3}}}}
  lora: {{kind: dpo, data: pairs, model: sft, adapter: {{r: 4}}, train: {{{TRAIN}, learning_rate: 2.0e-3, beta: 0.5}}}}
"""
PARENTS = {"full": "base", "lora": "sft"}
WAYS = {
    "one": (1, "zero=0"),
    "two": (2, "zero=0"),
    "zero-1": (2, "zero=1"),
    "zero-2": (2, "zero=2"),
    "zero-3": (2, "zero=3"),
    "zero-2 alone": (1, "zero=2"),
    "fsdp": (2, "fsdp=true"),
    "fsdp on four": (4, "fsdp=true"),
    "fsdp alone": (1, "fsdp=true"),
    "zero-2 offloaded": (2, "zero=2", "offload=optimizer"),
    "zero-3 offloaded": (2, "zero=3", "offload=all"),
    "tensor parallel": (2, "tensor_parallel=2"),
    "tensor parallel groups": (4, "tensor_parallel=2"),
}
CASES = {
    "other numbers of processes": ("full", ("one", "two", "one")),
    "ZeRO-3, plain, ZeRO-2": ("full", ("zero-3", "zero-3", "two", "zero-2", "zero-2 alone")),
    "from plain to ZeRO-1": ("full", ("one", "zero-1", "zero-1", "one")),
    "FSDP2, other numbers of processes": ("full", ("fsdp", "fsdp on four", "one", "fsdp alone", "fsdp")),
    "FSDP2 and ZeRO-3": ("full", ("zero-3", "fsdp", "zero-3", "fsdp", "two")),
    "an adapter with FSDP2": ("lora", ("fsdp", "fsdp", "one", "fsdp", "zero-2", "fsdp")),
    "offloaded": ("full", ("one", "zero-3 offloaded", "zero-2 offloaded", "two")),
    "tensor parallel, whole, tensor parallel": (
        "full",
        ("tensor parallel", "tensor parallel groups", "one", "tensor parallel groups", "two"),
    ),
    "an adapter, tensor parallel": ("lora", ("tensor parallel groups", "one", "tensor parallel")),
    "an adapter": ("lora", ("zero-2", "one", "zero-3", "zero-3", "two")),
    "every kind in turn": ("full", ("zero-3", "fsdp", "tensor parallel", "zero-2 offloaded", "one")),
    "an adapter, in turn": ("lora", ("tensor parallel", "zero-3", "fsdp", "one")),
}
SUITE = ("every kind in turn", "an adapter, in turn")
"""Each kind of layout saves what another goes on from; `make test-matrix` runs the others too."""


@pytest.fixture(scope="module")
def world(spread_world: Callable[[str], Any]) -> Any:
    return spread_world(STAGES)


@pytest.fixture(scope="module")
def whole(world: Any) -> dict[str, Any]:
    """What one process makes of each stage without a stop."""
    return world.train("whole", tuple(PARENTS))


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in SUITE else pytest.mark.whole) for case in CASES]
)
def test_a_run_goes_on_spread_another_way(case: str, world: Any, whole: dict[str, Any]) -> None:
    name, ways = CASES[case]
    if any("zero" in way for way in ways):
        pytest.importorskip("deepspeed", reason="ZeRO needs DeepSpeed: pip install 'trueup[deepspeed]'")
    reached = 0
    made: dict[str, Any] = {}
    for place, way in enumerate(ways):
        processes, *sharding = WAYS[way]
        sets = (f"compute.processes={processes}", *(f"compute.{word}" for word in sharding))
        last = place == len(ways) - 1
        made = world.train(case.replace(" ", "-"), (name,), *sets, stop_after=None if last else 2)
        begun = [int(match[1]) for note in world.notes if (match := re.match(r"resumes at step (\d+) of", note))]
        if place:
            assert begun and begun[0] > reached, f"{way} did not resume after step {reached}: {world.notes}"
            reached = begun[0]
    start = world.start(PARENTS[name], whole[name])
    relative_difference = world.difference(whole[name], made[name]) / world.difference(start, whole[name])
    print(f"{case} {relative_difference:.2e}")
    assert relative_difference < 1e-4
