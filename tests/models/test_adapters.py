from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError

from pipeline.errors import PipelineError
from pipeline.models.load.adapter_config import Adapter
from pipeline.models.load.adapters import attach, lora_config, merge_adapter, without_adapter
from pipeline.models.load.pretrained import load_causal_lm, load_reward_model
from pipeline.models.save.artifact import save_model
from pipeline.models.scoring import sequence_scores

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IDS).logits.clone()


def trained(model: Any) -> Any:
    """Move every trainable weight, as training would: the adapter then matters."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_adapter_off_is_the_reference_and_merged_is_unmerged(
    tiny_specs: dict[str, Any], tokenizer: Any, name: str
) -> None:
    from pipeline.models.load.scratch import build_causal_lm

    plain = build_causal_lm(tiny_specs[name], tokenizer, seed=1)
    reference = logits(plain)
    model = attach(copy.deepcopy(plain), Adapter(r=4), "causal", seed=2)
    assert torch.equal(logits(model), reference)  # a fresh adapter adds exactly zero
    unmerged = logits(trained(model))
    assert (unmerged - reference).abs().max() > 0.1
    with without_adapter(model):
        assert torch.equal(logits(model), reference)
    assert torch.equal(logits(model), unmerged)
    folded = merge_adapter(model)
    assert not isinstance(folded, PeftModel)
    torch.testing.assert_close(logits(folded), unmerged, rtol=1e-4, atol=1e-4)


def test_all_linear_layers_but_the_output_get_one(fresh_llama: Any) -> None:
    model = attach(fresh_llama, Adapter(r=4), "causal", seed=2)
    with_adapter = {
        name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_modules() if ".lora_A." in name
    }
    assert with_adapter == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    # Rank 4: 4 * (in + out) weights per layer. q, o: 32+32; k, v: 32+16; gate, up: 32+64; down: 64+32. Two layers.
    expected = 2 * 4 * (2 * 64 + 2 * 48 + 3 * 96)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


def test_adapter_start_follows_the_seed(fresh_llama: Any) -> None:
    def start(seed: int) -> torch.Tensor:
        model = attach(copy.deepcopy(fresh_llama), Adapter(r=4), "causal", seed=seed)
        return next(p for name, p in model.named_parameters() if "lora_A" in name).data

    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))


def test_alpha_is_twice_the_rank_unless_given() -> None:
    assert lora_config(Adapter(r=8), "causal", None).lora_alpha == 16
    assert lora_config(Adapter(r=8, alpha=5), "causal", None).lora_alpha == 5


@pytest.mark.parametrize("wrong", [{"r": 0}, {"dropout": 1.0}, {"rank": 4}, {"quantize": "2bit"}])
def test_wrong_adapter_block_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Adapter(**wrong)


def test_unknown_target_names_the_layers_there_are(fresh_llama: Any) -> None:
    with pytest.raises(PipelineError, match=r"some of down_proj, gate_proj, k_proj, lm_head"):
        attach(fresh_llama, Adapter(targets=["query"]), "causal", seed=0)
    with pytest.raises(
        PipelineError, match=r"names no layer, or one that takes no adapter; expected some of down_proj"
    ):
        attach(fresh_llama, Adapter(targets=["input_layernorm"]), "causal", seed=0)


def test_artifact_holds_merged_weights_and_the_adapter(
    fresh_llama: Any, tokenizer: Any, tmp_path: Path, folder_input: Any
) -> None:
    save_model(copy.deepcopy(fresh_llama), tokenizer, tmp_path / "base")
    model = trained(attach(load_causal_lm(folder_input(tmp_path / "base")), Adapter(r=4), "causal", seed=2))
    unmerged = logits(model)
    save_model(model, tokenizer, tmp_path / "tuned")
    torch.testing.assert_close(logits(load_causal_lm(folder_input(tmp_path / "tuned"))), unmerged, rtol=1e-4, atol=1e-4)
    on_base = PeftModel.from_pretrained(load_causal_lm(folder_input(tmp_path / "base")), tmp_path / "tuned" / "adapter")
    torch.testing.assert_close(logits(on_base), unmerged, rtol=1e-5, atol=1e-5)
    config = (tmp_path / "tuned" / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    assert str(tmp_path) not in config
    # A second round starts from plain weights: never an adapter on an adapter.
    assert not isinstance(load_causal_lm(folder_input(tmp_path / "tuned")), PeftModel)


def test_same_adapter_gives_the_same_bytes(fresh_llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(
            trained(attach(copy.deepcopy(fresh_llama), Adapter(r=4), "causal", seed=2)), tokenizer, tmp_path / name
        )
    for path in sorted((tmp_path / "a").rglob("*")):
        if path.is_file():
            other = tmp_path / "b" / path.relative_to(tmp_path / "a")
            assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest(), path


def test_reward_adapter_trains_the_head_and_merges(
    fresh_llama: Any, tokenizer: Any, tmp_path: Path, folder_input: Any
) -> None:
    save_model(fresh_llama, tokenizer, tmp_path / "base")
    model = load_reward_model(folder_input(tmp_path / "base"), tokenizer, seed=1)
    model = trained(attach(model, Adapter(r=4), "reward", seed=2))
    assert any("score" in name for name, p in model.named_parameters() if p.requires_grad)
    rows = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14]]
    before = sequence_scores(model, rows, 0)
    save_model(model, tokenizer, tmp_path / "rm")
    after = sequence_scores(load_reward_model(folder_input(tmp_path / "rm"), tokenizer, seed=77), rows, 0)
    assert after == pytest.approx(before, abs=1e-4)
