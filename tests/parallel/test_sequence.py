"""Slices of rows on two processes give the steps of one process with whole rows; what cannot be sliced is refused.

Rows have odd lengths, micro-batches are of two rows, gradients are clipped, and an assistant's tokens lie in the later
slice for the most part: a mean of means, a label lost at a cut or a norm of parts would show. Relative as in
`test_equivalence.py`: to what the five steps changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

pytest.importorskip("deepspeed", reason="slices of rows need DeepSpeed: pip install 'trueup[deepspeed]'")

pytestmark = pytest.mark.xdist_group("processes")  # two processes at a time are enough for two cores

RELATIVE = 1e-4
TRAIN = "max_steps: 5, batch_size: 8, adam_epsilon: 1.0e-4, weight_decay: 0.01, max_grad_norm: 0.5"
STAGES = f"""
  a_pretrain:
    kind: pretrain
    data: corpus
    tokenizer: tokenizer
    init: base
    train: {{{TRAIN}, learning_rate: 1.0e-3}}
  a_sft: {{kind: sft, data: demos, model: base, train: {{{TRAIN}, learning_rate: 1.0e-3, warmup_steps: 2}}}}
  l_sft: {{kind: sft, data: demos, model: base, adapter: {{r: 4}}, train: {{{TRAIN}, learning_rate: 1.0e-2}}}}
"""
TRAINED = ("a_pretrain", "a_sft", "l_sft")
SPREAD = {"processes": 2, "sequence_parallel": 2, "micro_batch": 2}


def sets(names: Iterable[str], **compute: Any) -> list[str]:
    """Return what spreads stages so; kinds that cannot be sliced are left alone."""
    return [f"stages.{name}.compute.{word}={value}" for name in names for word, value in compute.items()]


@pytest.fixture(scope="module")
def world(spread_world: Callable[[str], Any]) -> Any:
    return spread_world(STAGES)


@pytest.fixture(scope="module")
def alone(world: Any) -> dict[str, dict[str, torch.Tensor]]:
    """What one process makes of each stage."""
    return world.train("alone", TRAINED, "compute.micro_batch=2")


@pytest.fixture(scope="module", params=(1, 2, 3))
def sliced(request: pytest.FixtureRequest, world: Any) -> tuple[str, dict[str, dict[str, torch.Tensor]]]:
    store = f"zero-{request.param}"
    return store, world.train(store, TRAINED, *sets(TRAINED, **SPREAD, zero=request.param))


@pytest.mark.parametrize("name", TRAINED)
def test_slices_take_the_steps_of_whole_rows(name: str, world: Any, alone: Any, sliced: Any) -> None:
    store, made = sliced
    start = world.start("base", alone[name])
    moved = world.difference(start, alone[name])
    assert moved > 1e-3
    found = world.difference(alone[name], made[name]) / moved
    print(f"{name} {store} {found:.2e} of {moved:.2e}")
    assert found < RELATIVE
    for whole, cut in zip(world.history("alone", name), world.history(store, name), strict=True):
        assert cut == pytest.approx(whole, rel=RELATIVE)
