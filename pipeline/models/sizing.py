"""Determines the sizes of any transformers model from its configuration, by building it on the meta device.

A program of its own, so that a plan need not import torch: it reads a configuration from standard input and writes the
sizes to standard output, both as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.estimate.saved_activations import inner_gradients, llama_saved
from pipeline.estimate.shape import ModelShape
from pipeline.models.saved_activations import count_saved_activations
from pipeline.plain_data import JsonView


def shape_on_meta(config: JsonView) -> ModelShape:
    """Build a causal language model on the meta device and count its parameters.

    Args:
        config: content of a `config.json`; `type` may stand for `model_type`. Omitted sizes are the architecture's
            defaults.

    Raises:
        ValueError: transformers has no such architecture.
    """
    fields = {key: value for key, value in config.items() if key not in ("type", "model_type")}
    built = AutoConfig.for_model(str(config.get("model_type") or config.get("type")), **fields)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(built)
    text = built.get_text_config()
    named = dict(model.named_parameters())
    total = sum(p.numel() for p in named.values())
    experts = sum(p.numel() for name, p in named.items() if ".experts." in name)
    count = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None) or 1
    used = getattr(text, "num_experts_per_tok", None) or 1
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    inner = getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * text.hidden_size
    if experts:
        inner = (getattr(text, "moe_intermediate_size", None) or inner) * used
    width_kv = (getattr(text, "num_key_value_heads", None) or heads) * width
    # Routing needs data, which fake tensors do not have: experts count as one MLP of the width that a token uses.
    saved = (
        llama_saved(text.hidden_size, heads * width, width_kv, inner, heads)
        if experts
        else count_saved_activations(built)
    )
    gated = any("gate" in name and "mlp" in name for name in named)
    activation = getattr(text, "hidden_act", None) or getattr(text, "activation_function", None) or ""
    if not experts:
        saved = replace(saved, inner_gradients=inner_gradients(gated=gated, activation=str(activation)))
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    positions = sum(p.numel() for name, p in named.items() if name.split(".")[-2] in ("wpe", "embed_positions"))
    return ModelShape(
        parameters=total,
        active=total - experts + experts * used // count,
        embedding=embedding.numel() + positions,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        attention=heads * width,
        kv=width_kv,
        inner=inner,
        vocab=text.vocab_size,
        gated=gated,
        tied=head is None or head.weight is embedding,
        context=int(getattr(text, "max_position_embeddings", None) or 0),
        heads=heads,
        kept=saved,
    )


if __name__ == "__main__":
    print(json.dumps(asdict(shape_on_meta(json.load(sys.stdin)))))
