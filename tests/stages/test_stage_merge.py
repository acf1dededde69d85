"""Merge: each adapter once, in order; QLoRA trains and keeps its adapter through the save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

TRAIN = {"max_steps": 6, "batch_size": 16, "learning_rate": 2e-2}


@pytest.fixture
def generations(chain: Any, as_input: Any, run_stage: Callable[..., Any]) -> dict[str, Any]:
    """Return base, an SFT adapter on it, and a DPO adapter on that, as inputs of a stage."""
    folder, made = chain.recipe.parent, {"base": as_input(chain["base"])}
    for kind, parent, rows in (("sft", "base", "demos.jsonl"), ("dpo", "sft", "pairs.jsonl")):
        config = {"adapter": {"r": 4}, "train": TRAIN}
        ran = run_stage(kind, config, data={"data": folder / rows}, inputs={"model": made[parent]}, name=kind)
        lineage = {"lineage": dict(ran.outcome.result.lineage)}
        made[kind] = ran.source.model_copy(
            update={"name": kind, "manifest": lineage, "fingerprint": f"{kind}-fingerprint"}
        )
    return made


def test_base_and_its_adapters_in_order_are_the_last_artifact(
    generations: dict[str, Any], run_stage: Callable[..., Any], load_plain: Any, probe_logits: Any
) -> None:
    base, sft, dpo = (generations[name] for name in ("base", "sft", "dpo"))
    ran = run_stage("merge", {"adapters": ["sft", "dpo"]}, data={}, inputs={"model": base, "adapters": [sft, dpo]})
    made, tokenizer = load_plain(ran.out)
    there, known = load_plain(dpo.path)
    torch.testing.assert_close(probe_logits(made), probe_logits(there), atol=1e-4, rtol=0)
    assert (probe_logits(made) - probe_logits(load_plain(sft.path)[0])).abs().max() > 0.05
    assert tokenizer.chat_template == known.chat_template
    lineage = ran.outcome.result.lineage
    assert [one["name"] for one in lineage["adapters"]] == ["sft", "dpo"]
    assert lineage["adapters"] == [{**one, "merged": True} for one in dpo.manifest["lineage"]["adapters"]]


@pytest.mark.parametrize(
    ("model", "adapters", "message"),
    [
        ("sft", ["sft"], "is in the weights of sft"),
        ("base", ["sft", "sft"], "is in the weights of base"),
        ("base", ["dpo"], "dpo was not trained on base"),
        ("base", ["dpo", "sft"], "dpo was not trained on base"),
    ],
)
def test_never_twice_never_out_of_order(
    model: str, adapters: list[str], message: str, generations: dict[str, Any], run_stage: Callable[..., Any]
) -> None:
    given = {"model": generations[model], "adapters": [generations[name] for name in adapters]}
    ran = run_stage("merge", {"adapters": adapters}, data={}, inputs=given, expect="failed")
    assert ran.outcome.bad_input
    assert message in str(ran.outcome.problems[0])


@pytest.mark.parametrize(("kind", "bits"), [(k, b) for k in ("sft", "reward", "dpo", "kto") for b in ("4bit", "8bit")])
def test_qlora_trains_on_a_cpu(kind: str, bits: str, chain: Any, as_input: Any, run_stage: Callable[..., Any]) -> None:
    pytest.importorskip("bitsandbytes", reason="needs trueup[quantize]")
    data = chain.recipe.parent / ("demos.jsonl" if kind == "sft" else "pairs.jsonl")
    config = {"adapter": {"r": 4, "quantize": bits}, "train": {**TRAIN, "logging_steps": 1, "learning_rate": 1e-2}}
    ran = run_stage(kind, config, data={"data": data}, inputs={"model": as_input(chain["sft"])})
    losses = [row["loss"] for row in ran.history if "loss" in row]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_qlora_ppo_samples_and_trains_on_a_cpu(
    bits: str, tmp_path: Path, chain: Any, as_input: Any, run_stage: Callable[..., Any]
) -> None:
    pytest.importorskip("bitsandbytes", reason="needs trueup[quantize]")
    rewards = tmp_path / "r.py"
    rewards.write_text("def words(completions, **columns):\n    return [float(len(t)) for t in completions]\n")
    train = {"iterations": 2, "rollout_batch": 8, "epochs": 1, "max_new_tokens": 6, "learning_rate": 1e-2}
    config = {"reward_functions": [f"{rewards}:words"], "reward": [], "train": train}
    config["adapter"] = {"r": 4, "quantize": bits}
    data = {"data": chain.recipe.parent / "asks.jsonl"}
    ran = run_stage("ppo", config, data=data, inputs={"model": as_input(chain["sft"])})
    assert len(ran.history) == 3


def test_an_adapter_is_not_rounded_away_with_its_quantised_base() -> None:
    pytest.importorskip("bitsandbytes", reason="needs trueup[quantize]")
    import tempfile

    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from pipeline.models.load.adapters import merge_adapter
    from pipeline.models.load.pretrained import load_causal_lm
    from pipeline.stage import ResolvedInput

    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(LlamaConfig(vocab_size=300, **shape)).save_pretrained(folder)
        source = ResolvedInput(ref="m", name="m", kind="external", fingerprint="f", path=folder)
        model = load_causal_lm(source, quantize="4bit")
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    tuned: PeftModel = get_peft_model(model, lora).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = tuned(input_ids=ids).logits
        after = merge_adapter(tuned)(input_ids=ids).logits
    torch.testing.assert_close(after, before, atol=1e-4, rtol=0)
