"""Layers an adapter may name: read off the weights' headers, or known from the architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.models.load.adapter_config import Adapter
from pipeline.models.load.adapter_targets import ARCHITECTURES, layers_in, target_problems

NAMES = ("model.embed_tokens", "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "lm_head")


def test_names_are_read_off_the_headers(tmp_path: Path) -> None:
    tensors = {f"{name}.weight": torch.zeros(1) for name in (*NAMES, "model.norm", "model.layers.0.input_layernorm")}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert layers_in(tmp_path) == {"embed_tokens", "q_proj", "up_proj", "lm_head"}
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 20)
    assert layers_in(tmp_path) == set()  # no weights: nothing is known, and nothing refused
    assert layers_in(tmp_path / "nowhere") == set()


@pytest.mark.parametrize(
    ("targets", "kind", "config", "expected"),
    [
        (["q_prj"], "sft", {"type": "llama"}, "adapter.targets names q_prj, and no layer is named so"),
        (["q_proj", "model.layers.0.self_attn.v_proj"], "sft", {"type": "llama"}, ""),
        (["c_attn"], "dpo", {"model_type": "gpt2"}, ""),
        (["q_proj"], "dpo", {"model_type": "gpt2"}, "must be some of c_attn"),
        (["q_proj"], "dpo", {"model_type": "nobody_knows"}, ""),
        (["lm_head"], "dpo", {"type": "llama"}, "must be a layer whose adapter dpo reads"),
        (["lm_head"], "reward", {"type": "llama"}, "which has no output layer"),
        (["lm_head"], "ppo", {"type": "llama"}, ""),
        (["embed_tokens"], "sft", {"type": "llama", "tie_word_embeddings": True}, "embeddings are one here"),
        (["embed_tokens"], "sft", {"type": "llama"}, ""),
        (["wte"], "ppo", {"type": "gpt2"}, "embeddings are one here"),  # tied where the configuration says nothing
        ([], "sft", {}, "adapter.targets is empty"),
        ("all-linear", "sft", {"type": "gpt2"}, ""),
    ],
)
def test_what_cannot_have_an_adapter_is_said(targets: Any, kind: str, config: dict[str, Any], expected: str) -> None:
    problems = [str(problem) for problem in target_problems(Adapter(targets=targets), kind, frozenset(), config)]
    assert (len(problems) == 1 and expected in problems[0]) if expected else problems == []


def test_names_in_the_files_count_too() -> None:
    layers = frozenset({"mine"})
    assert list(target_problems(Adapter(targets=["mine"]), "sft", layers, {"type": "nobody_knows"})) == []
    assert list(target_problems(Adapter(targets=["q_proj"]), "sft", layers, {"type": "nobody_knows"})) != []


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_the_layers_of_an_architecture_are_those_of_transformers(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    config = AutoConfig.for_model(kind)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_smaller(config))
    layers = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    layer_names = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, layers)}
    assert set(ARCHITECTURES[kind]) == layer_names


def _smaller(config: Any) -> Any:
    for field in ("num_hidden_layers", "n_layer"):
        if hasattr(config, field):
            setattr(config, field, 1)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    return config
