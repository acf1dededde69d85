"""Whether the layers that `adapter.targets` names are there, and may have an adapter. No torch.

The names are read off the headers of the model's weights, or known from its architecture.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import Problem, listed, nearest
from pipeline.models.adapter_config import Adapter

_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head")
ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo2", "smollm3"), _LLAMA
    ),
    "gpt2": ("c_attn", "c_proj", "c_fc", "wte", "wpe", "lm_head"),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "embed_in", "lm_head"),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "embed_tokens", "embed_positions", "lm_head"),
    "phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "embed_tokens", "lm_head"),
}
"""Layers of a model that is yet to be built, by its `type`."""

OUTPUTS = ("lm_head", "embed_out")
"""Output layers; a reward model has none, and trl's trainers of log-probabilities read them past an adapter."""

PAST_ADAPTER = frozenset({"sft", "dpo", "kto", "grpo", "rloo"})
"""Kinds whose trainer reads the weight of the output layer itself."""

TIED = ("gpt2", "opt", "gemma", "gemma2", "gemma3_text")
"""Types whose embeddings are tied where the configuration says nothing."""

EMBEDDINGS = ("embed_tokens", "wte", "embed_in")
HEADER_BYTES = 64 << 20
"""A header that says it is longer is none."""


def layers_in(folder: Path) -> frozenset[str]:
    """Return the last names of all modules that hold weights in a folder's safetensors; empty if there are none."""
    found: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(length)) if length < HEADER_BYTES else {}
        except (OSError, ValueError):
            return frozenset()
        found |= {name.rsplit(".", 2)[-2] for name in header if name.count(".") > 1 and not name.startswith("__")}
        found |= {name.split(".")[0] for name in header if name.count(".") == 1}
    return frozenset(name for name in found if not name.endswith(("norm", "layernorm", "ln_1", "ln_2", "ln_f")))


def target_problems(
    adapter: Adapter, kind: str, layers: frozenset[str], config: Mapping[str, Any]
) -> Iterator[Problem]:
    """Yield names in `adapter.targets` that no layer has, or that must not have an adapter.

    Args:
        adapter: the recipe's.
        kind: of the stage.
        layers: names that are there; empty when they are not known.
        config: of the model, as far as it is known.
    """
    if isinstance(adapter.targets, str):
        return
    if not adapter.targets:
        yield Problem("adapter.targets is empty", "must name at least one layer", "or leave it at `all-linear`")
    made = str(config.get("model_type") or config.get("type") or "")
    known = layers | frozenset(ARCHITECTURES.get(made, ()))  # files may have an older name than the model
    tied = bool(config.get("tie_word_embeddings", made in TIED))
    for name in adapter.targets:
        last, found = name.rpartition(".")[2], f"adapter.targets names {name}"
        if kind == "reward" and last in OUTPUTS:
            yield Problem(found, "must be a layer of the reward model, which has no output layer", "leave it out")
        elif kind in PAST_ADAPTER and last in OUTPUTS:
            expected = f"must be a layer whose adapter {kind} reads: it takes the output layer's own weight"
            yield Problem(found, expected, "leave it out")
        elif tied and last in (*EMBEDDINGS, *OUTPUTS):
            expected = "must have a weight of its own: input and output embeddings are one here"
            yield Problem(found, expected, "leave it out, or take a model with tie_word_embeddings: false")
        elif known and last not in known:
            words = sorted(known)
            yield Problem(
                f"{found}, and no layer is named so", f"must be some of {listed(words, 20)}", nearest(last, words)
            )
