"""Shards of rows on two processes give the steps of one process with whole rows; what cannot be sharded is refused.

Rows have odd lengths, micro-batches are of two rows, gradients are clipped, and an assistant's tokens lie in the later
shard for the most part: a mean of means, a label lost at a cut or a norm of parts would show. Relative as in
`test_equivalence.py`: to what the five steps changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from crossing import crossed, selected

from pipeline.cli.display.manifest import ran_facts
from pipeline.errors import PipelineError
from pipeline.plan import make_plan
from pipeline.preflight import check_plan
from pipeline.recipe import load

pytest.importorskip("deepspeed", reason="shards of rows need DeepSpeed: pip install 'trueup[deepspeed]'")

pytestmark = pytest.mark.xdist_group("sequence")  # what its fixtures train is trained once

RELATIVE = 1e-4
TRAIN = "max_steps: 5, batch_size: 8, adam_epsilon: 1.0e-4, weight_decay: 0.01, max_grad_norm: 0.5"
LONG = "max_steps: 120, batch_size: 8, adam_epsilon: 1.0e-4, weight_decay: 0.01"
STAGES = f"""
  a_pretrain:
    kind: pretrain
    data: texts
    tokenizer: tokenizer
    init: base
    train: {{{TRAIN}, learning_rate: 1.0e-3}}
  a_sft: {{kind: sft, data: demos, model: base, train: {{{TRAIN}, learning_rate: 1.0e-3, warmup_steps: 2}}}}
  p_sft:
    kind: sft
    data: demos
    model: base
    train: {{{TRAIN}, learning_rate: 1.0e-3, mode: packed, max_length: 61}}
  long: {{kind: sft, data: demos, model: base, train: {{{LONG}, learning_rate: 1.0e-3, warmup_steps: 20}}}}
  bloom:
    kind: pretrain
    data: corpus
    tokenizer: tokenizer
    model: {{type: bloom, hidden_size: 32, n_layer: 1, n_head: 4}}
    train: {{{TRAIN}}}
  pythia:
    kind: pretrain
    data: corpus
    tokenizer: tokenizer
    model: {{type: gpt_neox, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 64}}
    train: {{{TRAIN}, learning_rate: 1.0e-3}}
  qwen:
    kind: pretrain
    data: corpus
    tokenizer: tokenizer
    model:
      type: qwen3
      hidden_size: 32
      num_hidden_layers: 2
      num_attention_heads: 4
      num_key_value_heads: 1
      head_dim: 8
      intermediate_size: 64
    train: {{{TRAIN}, learning_rate: 1.0e-3}}
  falcon:
    kind: pretrain
    data: corpus
    tokenizer: tokenizer
    model: {{type: falcon, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 4, alibi: false}}
    train: {{{TRAIN}}}
  l_sft: {{kind: sft, data: demos, model: base, adapter: {{r: 4}}, train: {{{TRAIN}, learning_rate: 1.0e-2}}}}
"""
TRAINED = ("a_pretrain", "a_sft", "p_sft", "l_sft")
SPREAD = {"processes": 2, "sequence_parallel": 2, "micro_batch": 2}


def sets(names: Iterable[str], **compute: Any) -> list[str]:
    """Return what spreads stages so; kinds that cannot be sharded are left alone."""
    return [f"stages.{name}.compute.{word}={value}" for name in names for word, value in compute.items()]


@pytest.fixture(scope="module")
def world(spread_world: Callable[[str], Any]) -> Any:
    made = spread_world(STAGES)
    text = made.recipe.read_text()
    made.recipe.write_text(text.replace("data:\n", "data:\n  texts: {path: corpus.jsonl, held_out: 0.07}\n", 1))
    return made


@pytest.fixture(scope="module")
def alone(world: Any) -> dict[str, dict[str, torch.Tensor]]:
    """What one process makes of each stage."""
    return world.train("alone", TRAINED, "compute.micro_batch=2")


ZERO = ("1", "2", "3")
SUITE = [("2", "a_pretrain"), ("2", "l_sft"), ("3", "a_sft"), ("3", "p_sft")]
"""Stages that the suite trains with sequence parallelism, by ZeRO stage; `make test-matrix` trains all with all."""


@pytest.fixture(scope="module")
def sharded(request: pytest.FixtureRequest, world: Any) -> tuple[str, dict[str, dict[str, torch.Tensor]]]:
    zero, names = request.param, selected(request, "name")
    again = str(zero == "2").lower()  # recomputed, shards are exchanged again
    made = world.train(f"zero-{zero}", names, *sets(names, **SPREAD, zero=zero, activation_checkpointing=again))
    return f"zero-{zero}", made


@crossed("sharded, name", ZERO, TRAINED, SUITE, indirect=["sharded"])
def test_sequence_shards_take_the_steps_of_unsharded_rows(name: str, world: Any, alone: Any, sharded: Any) -> None:
    store, made = sharded
    start = world.start("base", alone[name])
    moved = world.difference(start, alone[name])
    assert moved > 1e-3
    relative_difference = world.difference(alone[name], made[name]) / moved
    print(f"{name} {store} {relative_difference:.2e} of {moved:.2e}")
    assert relative_difference < RELATIVE
    assert any("eval_loss" in row for row in world.history("alone", name))
    for whole, cut in zip(world.history("alone", name), world.history(store, name), strict=True):
        assert cut == pytest.approx(whole, rel=RELATIVE)


@pytest.mark.whole
def test_sequence_groups_share_the_rows_of_a_batch(world: Any, alone: Any) -> None:
    """Four processes: two groups, which share the batch, of two shards each."""
    made = world.train("groups", ("a_sft",), *sets(("a_sft",), **SPREAD | {"processes": 4}, zero=2))
    difference = world.difference(alone["a_sft"], made["a_sft"])
    difference /= world.difference(world.start("base", alone["a_sft"]), alone["a_sft"])
    print(f"groups {difference:.2e}")
    assert difference < RELATIVE
    for whole, cut in zip(world.history("alone", "a_sft"), world.history("groups", "a_sft"), strict=True):
        same = {key: value for key, value in whole.items() if "entropy" not in key and "accuracy" not in key}
        assert {key: cut[key] for key in same} == pytest.approx(same, rel=RELATIVE)


@pytest.mark.whole
def test_heads_without_groups_and_one_group_for_all_are_sharded(world: Any) -> None:
    """Pythia's configuration has no groups of queries; one group for four heads is copied to both processes."""
    names = ("pythia", "qwen")
    whole = world.train("alone", names, *sets(names, micro_batch=2))
    cut = world.train("heads", names, *sets(names, **SPREAD, zero=2))
    for name in names:
        size = sum(float(tensor.double().square().sum()) for tensor in whole[name].values()) ** 0.5
        assert world.difference(whole[name], cut[name]) / size < 1e-6
        for one, other in zip(world.history("alone", name), world.history("heads", name), strict=True):
            assert other == pytest.approx(one, rel=RELATIVE)
    config = (world.store("heads").artifacts("pythia")[-1].path / "config.json").read_text()
    assert "num_key_value_heads" not in config


WAYS = {
    "sharded": {"processes": 2, "sequence_parallel": 2, "zero": 3},
    "whole": {"processes": 1, "sequence_parallel": 1, "zero": 0},
    "sharded again": {"processes": 2, "sequence_parallel": 2, "zero": 1},
    "data parallel": {"processes": 2, "sequence_parallel": 1, "zero": 2},
}


@pytest.mark.parametrize(
    "ways", [("data parallel", "sharded", "whole"), pytest.param(tuple(WAYS), marks=pytest.mark.whole)], ids=len
)
def test_a_run_goes_on_with_and_without_shards(ways: tuple[str, ...], world: Any) -> None:
    """Each session but the last is stopped after a moment; together they make what one process makes at once."""
    whole = world.train("whole", ("long",))["long"]
    reached, made = 0, {}
    for place, way in enumerate(ways):
        last, spread = place == len(ways) - 1, sets(("long",), **WAYS[way])
        made = world.train(f"elsewhere {len(ways)}", ("long",), *spread, stop_after=None if last else 2)
        begun = [int(match[1]) for note in world.notes if (match := re.match(r"resumes at step (\d+) of", note))]
        if place:
            assert begun and begun[0] > reached, f"{way} did not resume after step {reached}: {world.notes}"
            reached = begun[0]
    relative_difference = world.difference(whole, made["long"]) / world.difference(world.start("base", whole), whole)
    print(f"elsewhere {relative_difference:.2e}")
    assert relative_difference < RELATIVE


@crossed("sharded, name", ZERO, ["a_sft"], SUITE, indirect=["sharded"])
def test_the_manifest_says_what_really_ran(name: str, world: Any, sharded: Any) -> None:
    manifest = world.store(sharded[0]).artifacts(name)[-1].manifest
    ran, stage = manifest.runtime["ran"], int(sharded[0].removeprefix("zero-"))
    assert ran["accelerate"]["sp_size"] == 2 and ran["accelerate"]["sp_backend"] == "deepspeed"
    assert ran["batch"].startswith("2 rows × 4 accumulated × 1 process = 8 rows")
    shown = ran_facts(manifest)  # what `trueup show` prints
    assert (shown["processes"], shown["sequence_parallel"], shown["engine"]) == ("2", "2", f"ZeRO-{stage}")
    assert shown["zero"] == str(stage)
    assert shown.get("weights held", "") == ("50% in each process" if stage == 3 else "")
    assert ("activations" in shown) is (stage == 2) and "launcher" not in shown


@pytest.mark.parametrize(
    ("stage", "change", "said"),
    [
        ("a_sft", {"train.loss_type": "dft"}, "train.loss_type is dft with compute.sequence_parallel"),
        ("a_pretrain", {"train.label_smoothing_factor": 0.1}, "train.label_smoothing_factor is 0.1"),
        ("a_sft", {"compute.processes": 3, "compute.sequence_parallel": 3}, "divides the model's 4 attention heads"),
    ],
)
def test_what_cannot_be_sharded_is_refused_before_anything_runs(
    stage: str, change: dict[str, Any], said: str, world: Any
) -> None:
    spread = [*sets((stage,), **SPREAD, zero=1), *(f"stages.{stage}.{key}={value}" for key, value in change.items())]
    where = world.store("refused")
    with pytest.raises(PipelineError, match=re.escape(said)):
        check_plan(make_plan(load(world.recipe, overrides=spread), where, only=(stage,)), where)


@pytest.mark.parametrize("kind", ["rm", "dpo"])
def test_other_kinds_are_refused(kind: str, world: Any) -> None:
    with pytest.raises(PipelineError, match="only pretrain, sft can"):
        load(world.recipe, overrides=sets((kind,), **SPREAD, zero=1))


@pytest.mark.parametrize(
    ("name", "said"),
    [("bloom", "attends by eager under sequence"), ("falcon", "by 2 processes differ by")],
)
def test_a_model_that_attends_past_the_exchange_is_refused(name: str, said: str, world: Any) -> None:
    """Falcon attends by sdpa, and calls it itself: only trying what its shards compute tells."""
    with pytest.raises(PipelineError, match=said):
        world.train("unfit", (name,), *sets((name,), **SPREAD, zero=1))
    assert not world.store("unfit").artifacts(name)
