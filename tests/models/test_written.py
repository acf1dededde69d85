"""What a stage wrote, compared with what it trained; and adapters on weights that two layers share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import tiny_causal_lm
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pipeline.errors import ExitCode, PipelineError
from pipeline.models.load.adapter_config import Adapter
from pipeline.models.load.adapters import attach, load_and_merge, merge_adapter
from pipeline.models.load.pretrained import load_reward_model
from pipeline.models.load.scratch import build_causal_lm
from pipeline.models.save.artifact import save_model
from pipeline.stage import ResolvedInput

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
ROWS = [[5, 6, 7, 8], [11, 12, 13]]


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IDS).logits.clone()


def moved(model: Any, by: float = 0.3) -> Any:
    """Move every trainable weight, as training would."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=by)
    return model


def spoil(model: Any, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Let a model write something else than it holds, as a library with a fault would."""
    write = model.save_pretrained

    def write_spoilt(folder: Path, **options: Any) -> None:
        write(folder, **options)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    model.save_pretrained = write_spoilt


def test_one_row_of_the_embedding_that_is_not_written_is_noticed(
    fresh_llama: Any, tokenizer: Any, tmp_path: Path
) -> None:
    def lose(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"][301] = 0.0  # a token that no row of the comparison holds

    spoil(fresh_llama, lose)
    with pytest.raises(
        PipelineError, match=r"embed_tokens\.weight in the written files is not what was trained"
    ) as caught:
        save_model(fresh_llama, tokenizer, tmp_path, ROWS)
    assert caught.value.exit_code == ExitCode.FAILED


def test_a_tensor_that_is_not_written_is_noticed(fresh_llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    def lose(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]

    spoil(fresh_llama, lose)
    with pytest.raises(PipelineError, match=r"the written weights lack model\.norm\.weight"):
        save_model(fresh_llama, tokenizer, tmp_path, ROWS)


def test_a_configuration_that_says_something_else_is_noticed(fresh_llama: Any, tokenizer: Any, tmp_path: Path) -> None:
    fresh_llama.model.layers[1].self_attn.scaling *= 3.0  # the weights alone would not show it
    with pytest.raises(PipelineError, match="the logits of what was written differ by"):
        save_model(fresh_llama, tokenizer, tmp_path, ROWS)


def test_a_merge_into_a_weight_that_two_layers_share_is_noticed(
    fresh_llama: Any, tokenizer: Any, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    shared = moved(get_peft_model(fresh_llama, LoraConfig(target_modules=["embed_tokens"])))  # not untied
    with pytest.raises(PipelineError, match="the logits of what was written differ by"):
        save_model(shared, tokenizer, tmp_path, ROWS)


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "q_proj"], "all-linear"])
def test_what_is_written_is_the_base_with_its_adapter(
    tiny_specs: dict[str, Any], tokenizer: Any, tmp_path: Path, targets: Any
) -> None:
    plain = build_causal_lm(tiny_specs["llama"], tokenizer, seed=1)
    plain.save_pretrained(tmp_path / "base")
    assert plain.config.tie_word_embeddings
    model = moved(attach(plain, Adapter(r=4, targets=targets), "causal", seed=2))
    trained = logits(model)
    save_model(model, tokenizer, tmp_path / "out", ROWS)
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    put_on = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")
    torch.testing.assert_close(logits(written), trained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(put_on), trained, rtol=1e-4, atol=1e-4)
    is_untied = targets != "all-linear"
    assert written.config.tie_word_embeddings is not is_untied
    assert torch.equal(written.lm_head.weight, written.model.embed_tokens.weight) is not is_untied


def test_an_adapter_on_a_tied_embedding_folds_into_its_base(
    tiny_specs: dict[str, Any], tokenizer: Any, tmp_path: Path
) -> None:
    plain = build_causal_lm(tiny_specs["llama"], tokenizer, seed=1)
    model = moved(attach(plain, Adapter(r=4, targets=["embed_tokens"]), "causal", seed=2))
    trained = logits(model)
    save_model(model, tokenizer, tmp_path, ROWS)
    adapter = ResolvedInput(ref="a", name="a", kind="external", fingerprint="f", path=str(tmp_path))
    base = build_causal_lm(tiny_specs["llama"], tokenizer, seed=1)
    torch.testing.assert_close(logits(load_and_merge(base, adapter)), trained, rtol=1e-4, atol=1e-4)


def test_a_fresh_adapter_on_a_tied_embedding_changes_nothing(fresh_llama: Any) -> None:
    before = logits(fresh_llama)
    model = attach(fresh_llama, Adapter(r=4, targets=["embed_tokens"]), "causal", seed=2)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(merge_adapter(model)), before, rtol=1e-5, atol=1e-5)


def test_a_reward_model_is_compared_by_its_scores(
    fresh_llama: Any, tokenizer: Any, tmp_path: Path, folder_input: Any
) -> None:
    save_model(fresh_llama, tokenizer, tmp_path / "base", ROWS)
    model = load_reward_model(folder_input(tmp_path / "base"), tokenizer)
    save_model(moved(attach(model, Adapter(r=4), "reward", seed=2)), tokenizer, tmp_path / "out", ROWS)
    again = load_reward_model(folder_input(tmp_path / "out"), tokenizer)
    spoil(again, lambda tensors: tensors["score.weight"].mul_(1.01))
    with pytest.raises(PipelineError, match=r"score.weight in the written files"):
        save_model(again, tokenizer, tmp_path / "spoilt", ROWS)


@pytest.mark.parametrize("kind", ["gpt_oss", "qwen2_moe", "mamba2", "rwkv", "recurrent_gemma", "bamba", "opt", "bloom"])
def test_other_architectures_are_written_as_they_are(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    model = moved(tiny_causal_lm(kind), by=0.01)
    save_model(model, tokenizer, tmp_path, ROWS)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))
    name = next(name for name, weight in model.named_parameters() if weight.dim() == 1)
    spoil(model, lambda tensors: tensors[name].add_(0.01))
    with pytest.raises(PipelineError, match=f"{re.escape(name)} in the written files"):
        save_model(model, tokenizer, tmp_path / "spoilt", ROWS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_written_as_it_is(fresh_llama: Any, tokenizer: Any, tmp_path: Path, dtype: Any) -> None:
    model = fresh_llama.to(dtype)
    save_model(model, tokenizer, tmp_path, ROWS)
    written = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert written.dtype == dtype
    held = model.state_dict()
    assert all(torch.equal(weight, held[name]) for name, weight in written.state_dict().items())
