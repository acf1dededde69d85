"""The steps of a stage do not depend on its layout: ZeRO, FSDP2 and tensor parallelism take those of one process.

So do ZeRO's with `compute.offload`, which changes where its state lies. On a CPU both places are one: what is held is
DeepSpeed's way through its offloading code, not its memory on a GPU.

Every kind runs by recipe, five optimizer steps from the same parent, seed and batch, on rows of unequal lengths and in
micro-batches of two: a mean of means would show. Relative is meant strictly: the norm of the difference of two trained
models over the norm of what the five steps changed, not over the norm of the weights, most of which nobody changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from crossing import selected

from pipeline.estimate.buckets import bucket_sizes
from pipeline.models.load.pretrained import load_tokenizer
from pipeline.models.load.scratch import build_causal_lm
from pipeline.recipe import load
from pipeline.stage import ResolvedInput

pytestmark = pytest.mark.xdist_group("equivalence")  # what its fixtures train is trained once

RELATIVE = 1e-4
# Adam's epsilon keeps it from dividing rounding by rounding where a gradient is zero.
TRAIN = "max_steps: 5, batch_size: 8, adam_epsilon: 1.0e-4, weight_decay: 0.01"
# PPO keeps the best policy it had: longer answers are learnt soon enough for that to be the last one.
PPO = "iterations: 5, rollout_batch: 16, epochs: 1, max_new_tokens: 12, eval_every: 5, adam_epsilon: 1.0e-4"
PPO += ", lr_scheduler_type: constant"
MODEL = "type: llama, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 64"
REWARD = """

def words(completions, **columns):
    return [len(turns[-1]["content"].split()) / 4 for turns in completions]
"""
STAGES = f"""
  a_pretrain:
    kind: pretrain
    data: corpus
    tokenizer: tokenizer
    init: base
    train: {{{TRAIN}, learning_rate: 1.0e-3}}
  n_pretrain:
    kind: pretrain
    data: corpus
    tokenizer: tokenizer
    model: {{{MODEL}}}
    train: {{{TRAIN}, learning_rate: 1.0e-3}}
  a_sft: {{kind: sft, data: demos, model: base, train: {{{TRAIN}, learning_rate: 1.0e-3, warmup_steps: 2}}}}
  a_reward: {{kind: reward, data: pairs, model: sft, train: {{{TRAIN}, learning_rate: 1.0e-3}}}}
  a_dpo: {{kind: dpo, data: pairs, model: sft, train: {{{TRAIN}, learning_rate: 1.0e-3, beta: 0.5}}}}
  a_kto:
    kind: kto
    data: pairs
    model: sft
    train: {{{TRAIN}, learning_rate: 2.0e-3, kl_batch: 4, beta: 1.0, undesirable_weight: 0}}
  a_ppo:
    kind: ppo
    data: asks
    model: sft
    reward: {{function: gold.py:words}}
    train: {{{PPO}, learning_rate: 3.0e-3}}
  m_ppo:
    kind: ppo
    data: asks
    model: sft
    layout: separate
    reward: rm
    train: {{{PPO}, learning_rate: 3.0e-3}}
  l_sft: {{kind: sft, data: demos, model: base, adapter: {{r: 4}}, train: {{{TRAIN}, learning_rate: 1.0e-2}}}}
  l_reward: {{kind: reward, data: pairs, model: sft, adapter: {{r: 4}}, train: {{{TRAIN}, learning_rate: 1.0e-2}}}}
  l_dpo: {{kind: dpo, data: pairs, model: sft, adapter: {{r: 4}}, train: {{{TRAIN}, learning_rate: 1.0e-2, beta: 0.5}}}}
  l_ppo:
    kind: ppo
    data: asks
    model: sft
    reward: {{function: gold.py:words}}
    adapter: {{r: 4}}
    train: {{{PPO}, learning_rate: 2.0e-2}}
"""
PARENTS = {"a_pretrain": "base", "a_sft": "base", "l_sft": "base"}
TRAINED = (
    "a_pretrain",
    "n_pretrain",
    "a_sft",
    "a_reward",
    "a_dpo",
    "a_kto",
    "a_ppo",
    "m_ppo",
    "l_sft",
    "l_reward",
    "l_dpo",
    "l_ppo",
)
TENSOR_PARALLEL = tuple(name for name in TRAINED if not name.endswith("ppo"))
"""Tensor parallelism is refused for stages that sample."""


class Layout(NamedTuple):
    """A way to spread a stage over processes.

    Attributes:
        settings: of `compute`.
        suite: stages that the suite runs with it.
        matrix: further ones, which `make test-matrix` runs.
    """

    settings: tuple[str, ...]
    suite: tuple[str, ...]
    matrix: tuple[str, ...]


ALL_OFFLOADED = ("a_sft", "l_dpo", "a_ppo")
SPREADS = {
    "plain": Layout(("zero=0",), ("a_kto",), ("a_pretrain", "a_sft", "a_reward", "a_dpo", "a_ppo", "m_ppo")),
    "zero-1": Layout(("zero=1",), ("l_sft",), ("a_sft", "a_ppo", "l_dpo")),
    "zero-2": Layout(("zero=2",), ("l_ppo",), ("n_pretrain", "l_reward", "a_kto")),
    "zero-3": Layout(("zero=3",), ("n_pretrain", "a_reward", "m_ppo"), TRAINED),
    "zero-1 offloaded": Layout(("zero=1", "offload=optimizer"), (), ALL_OFFLOADED),
    "zero-2 offloaded": Layout(("zero=2", "offload=optimizer"), ("a_sft",), ALL_OFFLOADED),
    "zero-3 offloaded": Layout(("zero=3", "offload=optimizer"), (), ALL_OFFLOADED),
    "zero-3 all offloaded": Layout(("zero=3", "offload=all"), ("l_dpo", "a_ppo"), ALL_OFFLOADED),
    "fsdp": Layout(("fsdp=true",), ("a_pretrain", "l_reward", "a_dpo"), TRAINED),
    "tensor parallel": Layout(("tensor_parallel=2",), ("l_dpo",), TENSOR_PARALLEL),
    "groups": Layout(("tensor_parallel=2",), (), ("a_kto", "a_pretrain", "l_reward")),
}
"""How stages are spread. The matrix has every stage in every layout that shares weights out, for those meet every
kind's own code. Gradients are averaged alike with and without an adapter, and ZeRO-1 and 2 never look at the model: a
few kinds stand for all, each trainer (transformers', trl's, ours) and each kind of batch (rows, pairs, answers) among
them. The suite has every stage in some layout, and ZeRO-3 with a stage of each trainer. `test_trunk_processes.py` has
PPO with FSDP2, `test_tensor.py` groups of processes with tensor parallelism, a new model and SFT among them."""
CASES = [
    pytest.param(spread, name, marks=() if name in layout.suite else pytest.mark.whole)
    for spread, layout in SPREADS.items()
    for name in dict.fromkeys((*layout.suite, *layout.matrix))
]


@pytest.fixture(scope="module")
def world(spread_world: Callable[[str], Any]) -> Any:
    made = spread_world(STAGES)
    gold = made.recipe.parent / "gold.py"
    gold.write_text(gold.read_text() + REWARD)
    return made


@pytest.fixture(scope="module")
def alone(request: pytest.FixtureRequest, world: Any) -> dict[str, dict[str, torch.Tensor]]:
    """What one process makes of each stage."""
    return world.train("alone", selected(request, "name"), "compute.micro_batch=2")


@pytest.fixture(scope="module")
def together(request: pytest.FixtureRequest, world: Any) -> tuple[str, dict[str, dict[str, torch.Tensor]]]:
    if request.param.startswith("zero"):
        pytest.importorskip("deepspeed", reason="ZeRO needs DeepSpeed: pip install 'trueup[deepspeed]'")
    # A checkpoint after every step: writing one changes nothing, also right after an evaluation.
    often = "compute.checkpoint_every_s=0.001"
    settings, names = SPREADS[request.param].settings, selected(request, "name")
    processes = 4 if request.param == "groups" else 2  # two groups share the rows
    spread = [f"stages.{name}.compute.{setting}" for name in names for setting in settings]
    sets = ("compute.micro_batch=2", f"compute.processes={processes}", often, *spread)
    return request.param, world.train(request.param, names, *sets)


def drawn(world: Any) -> dict[str, torch.Tensor]:
    """Return the weights a new model is drawn with."""
    recipe = load(world.recipe)
    folder = world.chain.store.artifacts("tokenizer")[-1].path
    source = ResolvedInput(ref="tokenizer", name="tokenizer", kind="tokenizer", fingerprint="0", path=str(folder))
    model = build_causal_lm(yaml.safe_load(f"{{{MODEL}}}"), load_tokenizer(source), recipe.stages["n_pretrain"].seed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("together", "name"), CASES, indirect=["together"])
def test_two_processes_take_the_steps_of_one(name: str, world: Any, alone: Any, together: Any) -> None:
    spread, made = together
    if name == "a_kto":  # the divergence, an average over processes, takes part: it is cut off at 0
        assert max(row["kl"] for row in world.history("alone", name) if "kl" in row) > 0.01
    start = drawn(world) if name == "n_pretrain" else world.start(PARENTS.get(name, "sft"), alone[name])
    moved = world.difference(start, alone[name])
    assert moved > 1e-3
    relative_difference = world.difference(alone[name], made[name]) / moved
    print(f"{name} {spread} {relative_difference:.2e} of {moved:.2e}")
    assert relative_difference < RELATIVE
    manifest = world.store(spread).artifacts(name)[-1].manifest
    assert manifest.runtime["ran"].get("loaded") == ("sharded" if spread.startswith("zero-3") else None)
    if spread.startswith("zero"):  # not DeepSpeed's 5e8; that they are the engine's too is looked at as it starts
        zero = manifest.runtime["ran"]["deepspeed"]["zero_optimization"]
        assert bucket_sizes(int(spread.split()[0][-1]), 8).keys() <= zero.keys() and zero["reduce_bucket_size"] == 2**22
