"""Two processes that hold shards of every large matrix take the steps of one, and what cannot be sharded is refused.

`test_equivalence.py` has every kind on a Llama. Here are a model from nothing, an architecture with shared embeddings
and norms within heads, and rows that are evaluated on while training. `test_resume_elsewhere.py` changes the layout.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.artifacts import Store
from pipeline.errors import PipelineError
from pipeline.parallel.tensor.checks import OPTIMIZERS, dropout_problem, head_problem, optimizer_problem
from pipeline.recipe import load

pytestmark = pytest.mark.xdist_group("tensor")  # what its fixtures train is trained once

TENSOR_PARALLEL = {"processes": 2, "tensor_parallel": 2, "micro_batch": 4}
# The embeddings are the output layer too; two key heads serve four queries; every head has norms of its own.
QWEN = {"type": "qwen3", "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True}
TRAIN = {"max_steps": 5, "batch_size": 16, "max_grad_norm": 0.5, "adam_epsilon": 1e-4, "weight_decay": 0.1}


def _recipe(file: Path, compute: dict[str, Any], *stages: str, **model: Any) -> Path:
    recipe = yaml.safe_load(file.read_text())
    recipe["stages"] = {name: recipe["stages"][name] for name in ("tokenizer", "base", *stages)}
    recipe["stages"]["base"]["model"] |= model
    for name in ("base", *stages):
        recipe["stages"][name]["train"] = {**TRAIN, "learning_rate": 1e-2}
        recipe["stages"][name]["compute"] = compute
    made = file.with_name(f"{compute.get('tensor_parallel', 1)}.yaml")
    made.write_text(yaml.safe_dump(recipe))
    return made


def _files(store: Store, name: str) -> tuple[dict[str, torch.Tensor], list[dict[str, float]], dict[str, Any]]:
    folder = store.artifacts(name)[-1].path
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return load_file(folder / "model.safetensors"), rows, config


def _difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of a tensor relative to its norm."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / one[name].norm()) for name in one)


@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.whole), 2])
def test_shards_of_a_new_model_take_the_steps_of_as_many_processes_as_there_are_groups(
    groups: int, tiny_recipe: Path, tmp_path: Path, call: Callable[..., Any]
) -> None:
    stores = []
    for compute in ({"processes": groups, "micro_batch": 4}, {**TENSOR_PARALLEL, "processes": 2 * groups}):
        recipe = _recipe(tiny_recipe, compute, "sft", **QWEN)
        store = tmp_path / recipe.stem
        ended = call("run", recipe, "--store", store, cwd=recipe.parent)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        stores.append(Store(store))
    assert (
        "tensor parallel: 2 processes share every large matrix and count as one process" in ended.stdout + ended.stderr
    )
    for name in ("base", "sft"):
        (one, rows, config), (two, same, its_config) = (_files(store, name) for store in stores)
        difference = _difference(one, two)
        print(f"{name} {difference:.2e}")
        assert difference < 1e-4
        assert config == its_config
        assert any("eval_loss" in row for row in rows) == (name == "sft")
        for mine, theirs in zip(rows, same, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4)
        ran = stores[1].artifacts(name)[-1].manifest.runtime["ran"]
        assert ran["accelerate"] == {"distributed_type": "MULTI_CPU", "num_processes": 2 * groups, "tp_size": 2}
        assert (ran["tensor_parallel"]["size"], ran["tensor_parallel"]["copies"]) == (2, groups)
        assert f"{groups} process" in ran["batch"]
        assert ran["tensor_parallel"]["share_of_parameters"] < 0.6
        assert ran["seen"]["engine"].startswith("tensor parallelism")
    assert AutoModelForCausalLM.from_pretrained(stores[1].artifacts("sft")[-1].path).config.tie_word_embeddings


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "remedy"),
    [
        (4, 4, 3, "use 2, on as many processes or a multiple"),
        (32, 8, 16, "use 8, on as many processes or a multiple"),
        (7, 7, 2, "use 1"),
    ],
)
def test_heads_that_do_not_divide_name_the_nearest_number(heads: int, kv_heads: int, size: int, remedy: str) -> None:
    problem = head_problem(heads, kv_heads, size)
    assert problem is not None and problem.remedy == remedy


@pytest.mark.parametrize("heads", [(4, 4, 2), (32, 8, 8)])
def test_heads_that_divide_are_no_problem(heads: tuple[int, int, int]) -> None:
    assert head_problem(*heads) is None


def test_only_optimizers_that_step_each_number_by_itself_are_sharded() -> None:
    assert [optimizer_problem(optim, 2) for optim in OPTIMIZERS] == [None] * len(OPTIMIZERS)
    problem = optimizer_problem("adafactor", 2)  # it factors a matrix, of which each process holds a part
    assert problem is not None
    assert problem.found == "train.optim is adafactor with compute.tensor_parallel 2"


def test_an_adapter_without_dropout_is_no_problem() -> None:
    assert dropout_problem(0.0, 2) is None
    problem = dropout_problem(0.1, 2)
    assert problem is not None
    assert problem.found == "adapter.dropout is 0.1 with compute.tensor_parallel 2"


REFUSED = {
    "must divide processes × nodes, which is 3. Set compute.tensor_parallel: 3": {"processes": 3, "tensor_parallel": 2},
    "must be 1 with compute.zero or compute.fsdp": {"processes": 2, "tensor_parallel": 2, "zero": 1},
    "above 1. Set compute.tensor_parallel: 1": {"processes": 4, "tensor_parallel": 2, "pipeline_parallel": 2},
    "1 with Liger": {"processes": 2, "tensor_parallel": 2, "liger": "on"},
    "1 in fp16": {"processes": 2, "tensor_parallel": 2, "precision": "fp16"},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_excludes_tensor_parallelism_is_refused_when_the_recipe_is_read(said: str, tiny_recipe: Path) -> None:
    with pytest.raises(PipelineError, match=f"compute.(tensor|pipeline)_parallel is 2.*{said}"):
        load(_recipe(tiny_recipe, REFUSED[said]))


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_kinds_that_sample_are_refused(kind: str, tiny_recipe: Path) -> None:
    recipe = yaml.safe_load(tiny_recipe.read_text())
    recipe["stages"]["rl"] = {"kind": kind, "data": "asks", "model": "sft", "reward": "rm"}
    recipe["stages"]["rl"]["compute"] = {"processes": 2, "tensor_parallel": 2}
    tiny_recipe.write_text(yaml.safe_dump(recipe))
    with pytest.raises(PipelineError, match=f"compute.tensor_parallel is 2 for a {kind} stage.*only dpo, kto"):
        load(tiny_recipe)


def test_check_knows_heads_and_adapters_that_cannot_be_sharded(tiny_recipe: Path, call: Callable[..., Any]) -> None:
    recipe = yaml.safe_load(tiny_recipe.read_text())
    recipe["compute"] |= {"processes": 3, "tensor_parallel": 3}
    recipe["stages"]["sft"]["train"]["optim"] = "adafactor"
    tiny_recipe.write_text(yaml.safe_dump(recipe))
    ended = call("check", tiny_recipe, cwd=tiny_recipe.parent)
    assert ended.returncode == 2
    told = ended.stdout + ended.stderr
    assert "compute.tensor_parallel 3 for a model with num_attention_heads 4" in told and "Use 2" in told
    assert "adapter.dropout is 0.1 with compute.tensor_parallel 3" in told
    assert "train.optim is adafactor with compute.tensor_parallel 3" in told


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 4}, "compute.tensor_parallel with a gpt2 model"),
        ({"type": "llama", "attention_dropout": 0.1}, "attention_dropout is not 0"),
    ],
)
def test_a_model_without_a_plan_and_dropout_are_refused_before_training(
    model: dict[str, Any], said: str, tiny_recipe: Path, tmp_path: Path, call: Callable[..., Any]
) -> None:
    recipe = yaml.safe_load(tiny_recipe.read_text())
    sizes = {} if model["type"] == "gpt2" else recipe["stages"]["base"]["model"]
    recipe["stages"] = {name: recipe["stages"][name] for name in ("tokenizer", "base")}
    recipe["stages"]["base"] |= {"model": {**sizes, **model}, "compute": TENSOR_PARALLEL}
    tiny_recipe.write_text(yaml.safe_dump(recipe))
    ended = call("run", tiny_recipe, "--store", tmp_path / "store", cwd=tiny_recipe.parent)
    told = ended.stdout + ended.stderr
    assert ended.returncode in (1, 2) and said in told and "Traceback" not in told
