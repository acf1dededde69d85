"""Checks that the layers in `adapter.targets` exist and may have an adapter. No torch.

Layer names come from the headers of the model's safetensors files, or from a table of architectures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.errors import Problem, listed, nearest
from pipeline.models.load.adapter_config import Adapter
from pipeline.plain_data import JsonView
from pipeline.stage import kind_of

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
"""Layer names by `model_type`, for a model that the recipe builds from scratch."""

OUTPUTS = ("lm_head", "embed_out")
"""Output layers. A reward model has none; a loss that reads their weight directly bypasses an adapter on them."""

TIED = ("gpt2", "opt", "gemma", "gemma2", "gemma3_text")
"""Model types whose embeddings are tied unless the configuration says otherwise."""

EMBEDDINGS = ("embed_tokens", "wte", "embed_in")
HEADER_BYTES = 64 << 20
"""Longest safetensors header that is read; a longer length marks a broken file."""


def layers_in(folder: Path) -> frozenset[str]:
    """Return the last names of all modules that hold weights in a folder's safetensors; empty if there are none."""
    modules: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(length)) if length < HEADER_BYTES else {}
        except (OSError, ValueError):
            return frozenset()
        modules |= {name.rsplit(".", 2)[-2] for name in header if name.count(".") > 1 and not name.startswith("__")}
        modules |= {name.split(".")[0] for name in header if name.count(".") == 1}
    return frozenset(name for name in modules if not name.endswith(("norm", "layernorm", "ln_1", "ln_2", "ln_f")))


def target_problems(adapter: Adapter, kind: str, layers: frozenset[str], config: JsonView) -> Iterator[Problem]:
    """Yield a problem for each name in `adapter.targets` that no layer has, or whose layer must not have an adapter.

    Args:
        adapter: the recipe's `adapter:` block.
        kind: kind of the stage.
        layers: layer names of the model; empty when they are not known.
        config: the model's configuration, as far as it is known.
    """
    if isinstance(adapter.targets, str):
        return
    if not adapter.targets:
        yield Problem("adapter.targets is empty", "must name at least one layer", "or leave it at `all-linear`")
    model_type = str(config.get("model_type") or config.get("type") or "")
    # Files may use older layer names than the model class.
    known = layers | frozenset(ARCHITECTURES.get(model_type, ()))
    workload = kind_of(kind).workload
    head = workload.head if workload is not None else "module"
    tied = bool(config.get("tie_word_embeddings", model_type in TIED))
    for name in adapter.targets:
        last, statement = name.rpartition(".")[2], f"adapter.targets names {name}"
        if head == "none" and last in OUTPUTS:
            yield Problem(statement, "must be a layer of the reward model, which has no output layer", "leave it out")
        elif head == "weight" and last in OUTPUTS:
            expected = f"must be a layer whose adapter {kind} reads: it takes the output layer's own weight"
            yield Problem(statement, expected, "leave it out")
        elif tied and last in (*EMBEDDINGS, *OUTPUTS):
            expected = "must have a weight of its own: input and output embeddings are one here"
            yield Problem(statement, expected, "leave it out, or take a model with tie_word_embeddings: false")
        elif known and last not in known:
            words = sorted(known)
            yield Problem(
                f"{statement}, and no layer is named so", f"must be some of {listed(words, 20)}", nearest(last, words)
            )
