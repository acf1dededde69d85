"""PPO on one trunk (policy, value and reward are adapters of it) sharded on two processes is that of one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.xdist_group("trunk processes")  # what its fixtures train is trained once

RELATIVE = 1e-4
ONE_PROMPT = "data.asks.limit=1"
"""No prompt is held out, so the start is not evaluated: the policy of the last iteration is written, better or not."""

STAGE = """
  trunk:
    kind: ppo
    data: asks
    model: sft
    reward: rm
    value: adapter
    adapter: {r: 4}
    train: {iterations: 3, rollout_batch: 16, epochs: 1, max_new_tokens: 8, eval_every: 3, adam_epsilon: 1.0e-4,
            lr_scheduler_type: constant, learning_rate: 5.0e-3}
"""


@pytest.fixture(scope="module")
def world(spread_world: Callable[[str], Any]) -> Any:
    return spread_world(STAGE)


@pytest.fixture(scope="module")
def alone(world: Any) -> dict[str, Any]:
    return world.train("alone", ("trunk",), ONE_PROMPT)["trunk"]


@pytest.mark.parametrize("spread", ["zero=3", "fsdp=true"])
def test_three_sharded_adapters_are_saved_as_the_policy_of_one_process(
    spread: str, world: Any, alone: dict[str, Any]
) -> None:
    if spread.startswith("zero"):
        pytest.importorskip("deepspeed", reason="ZeRO needs DeepSpeed: pip install 'trueup[deepspeed]'")
    weights = world.train(spread, ("trunk",), ONE_PROMPT, "compute.processes=2", f"compute.{spread}")["trunk"]
    assert any("adapter on the policy's own trunk" in note for note in world.notes)
    assert weights.keys() == alone.keys()
    change = world.difference(alone, world.start("sft", alone))
    assert change > 0
    assert world.difference(alone, weights) < RELATIVE * change
