"""What a merge takes, through the command: hub ids, a base in bf16, quantised adapters; and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

STEPS = "{max_steps: 6, batch_size: 16, learning_rate: 2.0e-2}"
SHA = "0123456789abcdef0123456789abcdef01234567"


def _recipe(folder: Path, stages: str) -> Path:
    text = f"name: merging\ndata:\n  demos: {{path: demos.jsonl}}\n  pairs: {{path: pairs.jsonl}}\nstages:\n{stages}"
    (folder / "merging.yaml").write_text(text)
    return folder / "merging.yaml"


def _in_hub_cache(cache: Path, hub_id: str, folder: Path) -> None:
    """Lay a folder out as the hub's own client does after a download, so that it is found without a network."""
    place = cache / f"models--{hub_id.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / SHA)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(SHA)


def _adapter_alone(base: Path, folder: Path, *, named: str, task: str = "CAUSAL_LM") -> None:
    """Write a LoRA adapter of nobody's stage, its matrices random."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(base)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": named, "task_type": task}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def _folder_of(call: Any, ref: str, store: Path) -> Path:
    ended = call("show", ref, "--path", "--store", store, cwd=store)
    assert ended.returncode == 0, ended.stderr
    return Path(ended.stdout.strip())


def test_a_base_and_an_adapter_from_the_hub_are_merged_and_named(
    tmp_path: Path, chain: Any, call: Any, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, world, store = tmp_path / "hub", chain.recipe.parent, tmp_path / "store"
    _adapter_alone(chain["base"].path, tmp_path / "lora", named="someone/other-base")
    _in_hub_cache(cache, "someone/tiny", chain["base"].path)
    _in_hub_cache(cache, "someone/tiny-lora", tmp_path / "lora")
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))  # read as the libraries load: the run is a command of its own
    for rows in ("demos.jsonl", "pairs.jsonl"):
        shutil.copy(world / rows, tmp_path / rows)
    recipe = _recipe(
        tmp_path,
        f"""\
  tuned: {{kind: sft, data: demos, model: someone/tiny, adapter: {{r: 4}}, train: {STEPS}}}
  full: {{kind: merge, model: someone/tiny, adapters: [tuned]}}
  outside: {{kind: merge, model: someone/tiny, adapters: [someone/tiny-lora@{SHA}]}}
""",
    )
    ended = command("run", recipe, "--store", store, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lora = f"someone/tiny-lora@{SHA}"
    assert f"{lora} says it was trained on someone/other-base; it is put on someone/tiny@main" in ended.stdout

    tuned, full = (_weights(_folder_of(call, name, store)) for name in ("tuned", "full"))
    for name, weight in tuned.items():
        torch.testing.assert_close(full[name], weight, atol=1e-6, rtol=0)
    by_hand = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(chain["base"].path), tmp_path / "lora")
    expected = by_hand.merge_and_unload().state_dict()
    for name, weight in _weights(_folder_of(call, "outside", store)).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)

    shown = call("show", "full", "--store", store, cwd=tmp_path).stdout.splitlines()
    start = shown.index("weights")
    assert [" ".join(line.split()) for line in shown[start + 1 : start + 4]] == [
        "base someone/tiny@main",
        "adapter 1 tuned (r 4) on someone/tiny@main",
        "written in fp32",
    ]
    shown = call("show", "outside", "--store", store, cwd=tmp_path).stdout
    assert f"{lora}, from outside" in shown


def test_a_base_kept_in_bf16_is_summed_in_full_precision_and_rounded_once(
    tmp_path: Path, chain: Any, call: Any
) -> None:
    world, store = chain.recipe.parent, tmp_path / "store"
    model = AutoModelForCausalLM.from_pretrained(chain["base"].path, dtype=torch.bfloat16)
    shutil.copytree(chain["base"].path, tmp_path / "half", ignore=shutil.ignore_patterns("model.safetensors"))
    model.save_pretrained(tmp_path / "half")
    assert {weight.dtype for weight in _weights(tmp_path / "half").values()} == {torch.bfloat16}
    shutil.copy(world / "demos.jsonl", tmp_path)
    shutil.copy(world / "pairs.jsonl", tmp_path)
    recipe = _recipe(
        tmp_path,
        f"""\
  tuned: {{kind: sft, data: demos, model: half, adapter: {{r: 4}}, train: {STEPS}}}
  whole: {{kind: merge, model: half, adapters: [tuned]}}
  half_again: {{kind: merge, model: half, adapters: [tuned], dtype: bf16}}
""",
    )
    ended = call("run", recipe, "--store", store, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    folders = {name: _folder_of(call, name, store) for name in ("tuned", "whole", "half_again")}
    before, whole, rounded = (_weights(each) for each in (tmp_path / "half", folders["whole"], folders["half_again"]))
    lora = load_file(folders["tuned"] / "adapter" / "adapter_model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    a, b = (lora[f"base_model.model.{name}.lora_{each}.weight"] for each in "AB")
    by_hand = before[f"{name}.weight"].float() + 8 / 4 * b @ a  # alpha is 2 r where it is not given
    torch.testing.assert_close(whole[f"{name}.weight"], by_hand, atol=1e-6, rtol=0)
    for key, weight in rounded.items():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, whole[key].bfloat16()), key
    assert json.loads((folders["half_again"] / "config.json").read_text())["dtype"] == "bfloat16"
    shown = call("show", "half_again", "--store", store, cwd=tmp_path).stdout
    assert "written in  bf16" in shown


def test_lineage_and_show_say_how_each_adapter_was_quantised(tmp_path: Path, chain: Any, call: Any) -> None:
    pytest.importorskip("bitsandbytes", reason="needs trueup[quantize]")
    store = tmp_path / "store"
    shutil.copytree(chain.store.root, store, ignore=shutil.ignore_patterns(".runs"))
    for rows in ("demos.jsonl", "pairs.jsonl"):
        shutil.copy(chain.recipe.parent / rows, tmp_path / rows)
    recipe = _recipe(
        tmp_path,
        f"""\
  one: {{kind: sft, data: demos, model: base, adapter: {{r: 4, quantize: 4bit}}, train: {STEPS}}}
  two: {{kind: dpo, data: pairs, model: one, adapter: {{r: 2, quantize: 8bit}}, train: {STEPS}}}
  three: {{kind: sft, data: demos, model: two, adapter: {{r: 2}}, train: {STEPS}}}
  full: {{kind: merge, model: base, adapters: [one, two], dtype: bf16}}
""",
    )
    ended = call("run", recipe, "--store", store, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    prints = {name: chain.store.artifacts(name)[-1].manifest.short for name in ("base",)}
    listed = json.loads(call("lineage", "three", "--json", "--store", store, cwd=tmp_path).stdout)
    assert listed["base"] == f"base@{prints['base']}, trained from nothing"
    kept = [(one["name"], one["r"], one["quantize"], one["merged"]) for one in listed["adapters"]]
    assert kept == [("one", 4, "4bit", False), ("two", 2, "8bit", False), ("three", 2, None, False)]
    tree = call("lineage", "three", "--store", store, cwd=tmp_path).stdout.splitlines()
    ends = {line.split("@")[0].split()[-1]: line for line in tree if "adapter" in line}
    assert ends["three"].endswith("adapter r 2") and ends["two"].endswith("adapter r 2 on weights in 8bit")
    assert ends["one"].endswith("adapter r 4 on weights in 4bit")

    tree = call("lineage", "full", "--store", store, cwd=tmp_path).stdout.splitlines()
    assert tree[0].endswith("one (trained in 4bit) + two (trained in 8bit) folded in, written in bf16")
    shown = call("show", "full", "--store", store, cwd=tmp_path).stdout
    assert f"one (r 4) on base@{prints['base']} in 4bit, folded into unquantised weights" in shown
    assert "written in  bf16" in shown


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("{model: sft, adapters: [rm]}", "adapters: `rm` is of kind reward; expected a stage that makes a model"),
        ("{model: rm, adapters: [tuned]}", "model: `rm` is of kind reward; expected a stage that makes a model"),
        ("{model: reward, adapters: [tuned]}", "model: `reward` is a reward model; expected a language model"),
        ("{model: sft, adapters: [reward/adapter]}", "adapters: `reward/adapter` is the adapter of a reward model"),
        ("{model: base, adapters: [sft]}", "adapters: `sft` holds no adapter: all its weights were trained"),
        ("{model: base, adapters: [tuned]}", "adapters: `tuned` was not trained on `base`"),
        ("{model: sft, adapters: [again, tuned]}", "adapters: `again` was not trained on `sft`"),
        ("{model: sft, adapters: [tuned, tuned]}", "adapters: `tuned` was not trained on `tuned`"),
    ],
)
def test_what_cannot_be_merged_is_said_before_anything_runs(
    stage: str, said: str, tmp_path: Path, chain: Any, call: Any
) -> None:
    for rows in ("demos.jsonl", "pairs.jsonl"):
        shutil.copy(chain.recipe.parent / rows, tmp_path / rows)
    shutil.copytree(chain["rm"].path, tmp_path / "reward", ignore=shutil.ignore_patterns("manifest.json"))
    recipe = _recipe(
        tmp_path,
        f"""\
  tuned: {{kind: sft, data: demos, model: sft, adapter: {{r: 4}}, train: {STEPS}}}
  again: {{kind: sft, data: demos, model: tuned, adapter: {{r: 4}}, train: {STEPS}}}
  full: {{kind: merge, {stage.strip("{}")}}}
""",
    )
    ended = call("check", recipe, "--store", chain.store.root, cwd=tmp_path)
    assert ended.returncode == 2, ended.stdout
    (line,) = [row for row in ended.stderr.splitlines() if "stage full" in row]
    assert said in line


def test_an_adapter_of_a_reward_model_from_the_hub_is_refused_before_weights_are_read(
    tmp_path: Path, chain: Any, as_input: Any, run_stage: Any
) -> None:
    _adapter_alone(chain["base"].path, tmp_path / "lora", named="x/y", task="SEQ_CLS")
    outside = as_input(chain["base"]).model_copy(
        update={"ref": "x/lora", "name": "lora", "kind": "external", "path": str(tmp_path / "lora"), "manifest": {}}
    )
    given = {"model": as_input(chain["base"]), "adapters": [outside]}
    ran = run_stage("merge", {"adapters": ["x/lora"]}, data={}, inputs=given, expect="failed")
    assert ran.outcome.bad_input
    assert "x/lora is the adapter of a reward model" in str(ran.outcome.problems[0])
    assert "folding" not in str(ran.events)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_base_whose_files_are_quantised_takes_adapters_and_merges_to_the_same_weights(
    bits: str, tmp_path: Path, chain: Any, call: Any
) -> None:
    pytest.importorskip("bitsandbytes", reason="needs trueup[quantize]")
    from transformers import BitsAndBytesConfig

    store = tmp_path / "store"
    shutil.copy(chain.recipe.parent / "demos.jsonl", tmp_path)
    shutil.copy(chain.recipe.parent / "pairs.jsonl", tmp_path)
    shutil.copytree(chain["base"].path, tmp_path / "small", ignore=shutil.ignore_patterns("*.safetensors"))
    heads = {"llm_int8_skip_modules": ["lm_head"], f"load_in_{bits}": True}
    quantised = AutoModelForCausalLM.from_pretrained(
        chain["base"].path, quantization_config=BitsAndBytesConfig(**heads)
    )
    quantised.save_pretrained(tmp_path / "small")
    cut = "processes: 2, tensor_parallel: 2"
    recipe = _recipe(
        tmp_path,
        f"""\
  tuned: {{kind: sft, data: demos, model: small, adapter: {{r: 4}}, train: {STEPS}}}
  full: {{kind: merge, model: small, adapters: [tuned]}}
  whole: {{kind: sft, data: demos, model: small, train: {STEPS}}}
  twice: {{kind: sft, data: demos, model: small, adapter: {{r: 4, quantize: 8bit}}, train: {STEPS}}}
  parts: {{kind: sft, data: demos, model: small, adapter: {{r: 4}}, train: {STEPS}, compute: {{processes: 2, zero: 3}}}}
  cut: {{kind: sft, data: demos, model: small, adapter: {{r: 4}}, train: {STEPS}, compute: {{{cut}}}}}
  more: {{kind: pretrain, data: corpus, init: small, train: {STEPS}}}
""",
    )
    recipe.write_text(recipe.read_text().replace("data:\n", "data:\n  corpus: {path: corpus.jsonl}\n", 1))
    shutil.copy(chain.recipe.parent / "corpus.jsonl", tmp_path)
    refused = call("check", recipe, "--store", store, cwd=tmp_path)
    assert refused.returncode == 2
    assert f"stage whole: `small` is kept quantised ({bits}); expected an adapter" in refused.stderr
    assert f"stage twice: `small` is kept quantised ({bits}), and adapter.quantize is 8bit" in refused.stderr
    assert f"stage parts: `small` is kept quantised ({bits}) and compute.zero is 3" in refused.stderr
    assert f"stage cut: `small` is kept quantised ({bits}) and compute.tensor_parallel is 2" in refused.stderr
    ended = call("run", recipe, "--until", "full", "--store", store, cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    tuned, full = (_weights(_folder_of(call, name, store)) for name in ("tuned", "full"))
    plain = _weights(chain["base"].path)
    assert set(tuned) == set(full) == set(plain)
    for name, weight in tuned.items():
        torch.testing.assert_close(full[name], weight, atol=1e-5, rtol=0)
    assert (tuned["model.layers.0.mlp.up_proj.weight"] - plain["model.layers.0.mlp.up_proj.weight"]).abs().max() > 1e-3
    shown = call("show", "full", "--store", store, cwd=tmp_path).stdout
    assert "tuned (r 4) on small@" in shown and f" in {bits}\n" in shown
