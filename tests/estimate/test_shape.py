"""Parameters by formula are those of the model transformers builds."""

from typing import Any

import pytest

from pipeline.estimate.shape import FORMULAS, shape_of
from pipeline.models.sizing import shape_on_meta

SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 101}
MLP = {**SIZES, "intermediate_size": 80, "max_position_embeddings": 64}
CONFIGS: list[dict[str, Any]] = [
    {"model_type": "llama", **MLP},
    {"model_type": "llama", **MLP, "num_key_value_heads": 2, "tie_word_embeddings": True, "attention_bias": True},
    {"model_type": "llama", **MLP, "head_dim": 20, "mlp_bias": True},
    {"model_type": "mistral", **MLP, "num_key_value_heads": 2, "head_dim": 12},
    {"model_type": "qwen2", **MLP, "num_key_value_heads": 1},
    {"model_type": "qwen2", **MLP, "num_key_value_heads": 2, "tie_word_embeddings": True},
    {"model_type": "qwen3", **MLP, "num_key_value_heads": 2, "head_dim": 16},
    {"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 101},
    {"model_type": "gpt_neox", **MLP},
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c["model_type"])
def test_the_formula_counts_what_is_built(config: dict[str, Any]) -> None:
    assert shape_of(config) == shape_on_meta(config)


def test_every_formula_is_held_to_a_model() -> None:
    assert {config["model_type"] for config in CONFIGS} == FORMULAS


def test_what_the_configuration_leaves_open_is_not_guessed() -> None:
    assert shape_of({"model_type": "llama", "hidden_size": 48}) is None
    assert shape_of({"model_type": "qwen3", **MLP}) is None
    assert shape_of({"model_type": "mamba", **MLP}) is None


@pytest.mark.parametrize("config", CONFIGS)
def test_another_activation_keeps_other_values_so_no_formula_is_used(config: dict[str, object]) -> None:
    named = "activation_function" if config["model_type"] == "gpt2" else "hidden_act"
    assert shape_of({**config, named: "relu"}) is None


def test_llama_3_8b_has_its_published_parameters() -> None:
    shape = shape_of(
        {
            "model_type": "llama",
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "vocab_size": 128256,
        }
    )
    assert shape is not None
    assert shape.parameters == 8_030_261_248  # the model card says 8.03 B


def test_only_experts_a_token_meets_are_active() -> None:
    shape = shape_on_meta(
        {"model_type": "mixtral", **MLP, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    )
    experts = 3 * 4 * 3 * 48 * 80  # layers, experts, matrices
    assert shape.parameters - shape.active == experts // 2
