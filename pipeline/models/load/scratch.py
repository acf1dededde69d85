"""Builds a model with random weights from the `model:` block of a recipe.

Owns the check of that block against the architecture's configuration class: an unknown field is an error that names the
nearest known one. Any `model_type` of `transformers` with a causal language model works.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pipeline.errors import PipelineError, Problem, listed, nearest
from pipeline.models.load.pretrained import count_predicted_tokens
from pipeline.parallel.zero.zero3 import DeepSpeedConfig, zero3_building
from pipeline.plain_data import JsonView

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FROM_TOKENIZER = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")


def build_causal_lm(
    model_spec: JsonView,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    *,
    attention: str | None = None,
    zero3: DeepSpeedConfig | None = None,
) -> Any:
    """Build a causal language model with random float32 weights.

    Args:
        model_spec: ``{"type": "llama", "hidden_size": 128, …}``: the model type and fields of its configuration.
        tokenizer: gives the vocabulary size and the special token ids.
        seed: seed of the weights; the global random state is left alone.
        attention: `transformers`' name of an attention kernel; its own choice when omitted.
        zero3: ZeRO-3's configuration: each weight is sharded over all ranks once it is drawn. Every rank must call
            this. The weights are the same as on one process.

    Raises:
        PipelineError: unknown type or fields (all at once), or a value the architecture refuses.
    """
    config = model_config(model_spec, tokenizer)
    kernel = {} if attention is None else {"attn_implementation": attention}
    with torch.random.fork_rng(), zero3_building(zero3):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **kernel)
    count_predicted_tokens(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def model_config(model_spec: JsonView, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """Return the checked `transformers` configuration that a `model:` block describes.

    Raises:
        PipelineError: see `build_causal_lm`.
    """
    fields = {key: value for key, value in model_spec.items() if key != "type"}
    model_type = str(model_spec.get("type", ""))
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        known = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        remedy = nearest(model_type, known)
        statement = f"model.type is `{model_type}`" if model_type else "model has no `type`"
        raise PipelineError(Problem(statement, "a causal model of transformers, such as llama, qwen3, gpt2", remedy))
    config_class = CONFIG_MAPPING[model_type]
    known_fields = _known_fields(config_class)
    problems = [_unknown(key, model_type, known_fields) for key in fields if key not in known_fields]
    problems += [
        Problem(f"model.{key} is set", "it comes from the tokenizer", "remove it")
        for key in _FROM_TOKENIZER
        if key in fields
    ]
    if problems:
        raise PipelineError(*problems)
    special = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        return config_class(**fields, **special)
    except (TypeError, ValueError) as error:
        raise PipelineError(Problem(f"model: {_one_line(error)}", f"a valid {model_type} configuration")) from error
    except Exception as error:
        # huggingface_hub's strict dataclasses raise a class of their own, not exported by transformers.
        if "StrictDataclass" not in type(error).__name__:
            raise
        raise PipelineError(Problem(f"model: {_one_line(error)}", f"a valid {model_type} configuration")) from error


def _known_fields(config_class: type[PreTrainedConfig]) -> set[str]:
    own = {item.name for item in dataclasses.fields(config_class)}
    return own | set(config_class.attribute_map) | {"rope_theta", "attn_implementation"}


def _unknown(key: str, model_type: str, known: set[str]) -> Problem:
    remedy = nearest(key, known) or f"known: {listed(sorted(known))}"
    return Problem(f"unknown field model.{key}", f"a field of the {model_type} configuration", remedy)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
