"""Which models can be cut into the parts of a pipeline, and where. Imports no torch: `trueup check` asks it.

An architecture is listed once its stages, run one after another, were seen to compute what the whole model computes
(`tests/parallel/test_stage_module.py`). One that scales its embeddings or its logits outside its layers would be split
without an error, into another model.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import Problem, listed

WORD = "compute.pipeline_parallel"
REMEDY = "use compute.zero: 3 instead"


@dataclass(frozen=True)
class ModuleNames:
    """Names of attributes in transformers' model of an architecture.

    Attributes:
        inner: the decoder in the causal model.
        embedding: of tokens, in the decoder; likewise the next ones.
        layers: list of decoder layers.
        norm: after the last layer.
        positions: table of positions that the decoder adds to what comes in; the first part's.
        dropout: of what comes in; the first part's.
        head: output layer, in the causal model.
    """

    inner: str = "model"
    embedding: str = "embed_tokens"
    layers: str = "layers"
    norm: str = "norm"
    positions: str | None = None
    dropout: str | None = None
    head: str = "lm_head"


LLAMA = ModuleNames()
ANATOMY: Mapping[str, ModuleNames] = {
    "gpt2": ModuleNames("transformer", "wte", "h", "ln_f", positions="wpe", dropout="drop"),
    "gpt_neox": ModuleNames("gpt_neox", "embed_in", "layers", "final_layer_norm", dropout="emb_dropout"),
    "llama": LLAMA,
    "mistral": LLAMA,
    "olmo2": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
}


def bounds(layers: int, stages: int) -> list[tuple[int, int]]:
    """Return the first layer of each part and the one after its last; parts differ by at most one layer."""
    edges = [layers * i // stages for i in range(stages + 1)]
    return list(itertools.pairwise(edges))


def split_problem(config: Mapping[str, Any], stages: int) -> Problem | None:
    """Return why a model cannot be cut into so many parts; None if it can, or nothing is known against it.

    Args:
        config: of the model, as plain data: `model_type`, number of layers, `layer_types`.
        stages: parts.
    """
    kind = str(config.get("model_type", ""))
    if kind and kind not in ANATOMY:
        return Problem(f"{WORD} with a {kind} model", f"one of {listed(sorted(ANATOMY), len(ANATOMY))}", REMEDY)
    kinds = sorted(set(config.get("layer_types") or ()))
    if len(kinds) > 1:
        statement = f"{WORD} with layers of {len(kinds)} kinds ({', '.join(kinds)})"
        return Problem(statement, "layers of one kind", REMEDY)
    count = config.get("num_hidden_layers", config.get("n_layer"))
    if count is not None and int(count) < stages:
        return Problem(f"{WORD} {stages} for {count} layers", f"at most {count}", f"use {count}")
    return None


def pipeline_bubble_problem(batch_size: int, replicas: int, stages: int) -> Problem | None:
    """Return why a batch cannot keep a pipeline's processes busy; None if it can."""
    if batch_size // replicas >= stages:
        return None
    of = f"a pipeline of {stages} processes" if replicas == 1 else f"{replicas} pipelines of {stages} processes"
    each = "" if replicas == 1 else " for each"
    expected = f"at least {stages} rows{each}, one on its way through each process"
    return Problem(f"train.batch_size {batch_size} for {of}", expected, f"use {stages * replicas} or more")
