"""`compute.offload` changes where ZeRO keeps its state, not the steps: two processes take those of one.

On a CPU both places are one, so this holds DeepSpeed's way through its offloading code, not its memory on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from selection import selected

pytestmark = pytest.mark.xdist_group("offload")  # what its fixtures train is trained once

RELATIVE = 1e-4
TRAIN = "max_steps: 5, batch_size: 8, adam_epsilon: 1.0e-4, weight_decay: 0.01, learning_rate: 1.0e-3"
PPO = "iterations: 5, rollout_batch: 16, epochs: 1, max_new_tokens: 12, eval_every: 5, adam_epsilon: 1.0e-4"
PPO += ", lr_scheduler_type: constant, learning_rate: 3.0e-3"
STAGES = f"""
  o_sft: {{kind: sft, data: demos, model: base, train: {{{TRAIN}, warmup_steps: 2}}}}
  o_dpo: {{kind: dpo, data: pairs, model: sft, adapter: {{r: 4}}, train: {{{TRAIN}, beta: 0.5}}}}
  o_ppo:
    kind: ppo
    data: asks
    model: sft
    reward: {{function: gold.py:words}}
    train: {{{PPO}}}
"""
REWARD = """

def words(completions, **columns):
    return [len(turns[-1]["content"].split()) / 4 for turns in completions]
"""
PARENTS = {"o_sft": "base"}
TRAINED = ("o_sft", "o_dpo", "o_ppo")
OFFLOADS = {"zero-1 optimizer": (1, "optimizer"), "zero-2 optimizer": (2, "optimizer")}
OFFLOADS |= {"zero-3 optimizer": (3, "optimizer"), "zero-3 all": (3, "all")}
SUITE = {"zero-2 optimizer": ("o_sft",), "zero-3 all": ("o_dpo", "o_ppo")}
"""Stages that the suite runs with them; `make test-matrix` runs all with all."""
CASES = [
    pytest.param(way, name, marks=() if name in SUITE.get(way, ()) else pytest.mark.whole)
    for way in OFFLOADS
    for name in TRAINED
]


@pytest.fixture(scope="module")
def world(spread_world: Callable[[str], Any]) -> Any:
    pytest.importorskip("deepspeed", reason="ZeRO needs DeepSpeed: pip install 'trueup[deepspeed]'")
    made = spread_world(STAGES)
    gold = made.recipe.parent / "gold.py"
    gold.write_text(gold.read_text() + REWARD)
    return made


@pytest.fixture(scope="module")
def alone(request: pytest.FixtureRequest, world: Any) -> dict[str, dict[str, torch.Tensor]]:
    """What one process makes of each stage."""
    return world.train("alone", selected(request, TRAINED), "compute.micro_batch=2")


@pytest.fixture(scope="module")
def together(request: pytest.FixtureRequest, world: Any) -> tuple[str, dict[str, dict[str, torch.Tensor]]]:
    zero, offload = OFFLOADS[request.param]
    sets = ("compute.micro_batch=2", "compute.processes=2", f"compute.zero={zero}", f"compute.offload={offload}")
    names = selected(request, TRAINED, request.param)
    return request.param, world.train(request.param.replace(" ", "-"), names, *sets)


@pytest.mark.parametrize(("together", "name"), CASES, indirect=["together"])
def test_offloaded_state_takes_the_steps_of_one_process(name: str, world: Any, alone: Any, together: Any) -> None:
    spread, made = together
    moved = world.difference(world.start(PARENTS.get(name, "sft"), alone[name]), alone[name])
    assert moved > 1e-3
    found = world.difference(alone[name], made[name]) / moved
    print(f"{name} {spread} {found:.2e} of {moved:.2e}")
    assert found < RELATIVE
