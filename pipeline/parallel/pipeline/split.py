"""Which models can be split into pipeline stages, and where. Imports no torch, because `trueup check` uses it.

An architecture is listed only if a test shows that its stages, run one after another, compute what the full model
computes (`tests/parallel/test_stage_module.py`). An architecture that scales embeddings or logits outside its layers
could be split without an error, and would then compute something else.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import Problem, counted, listed
from pipeline.plain_data import JsonView

WORD = "compute.pipeline_parallel"
REMEDY = "use compute.zero: 3 instead"


@dataclass(frozen=True)
class ModuleNames:
    """Attribute names of the modules that an architecture's model in transformers consists of.

    Attributes:
        inner: decoder, an attribute of the causal model.
        embedding: token embedding, an attribute of the decoder, as are the next four.
        layers: list of decoder layers.
        norm: final norm.
        positions: learned position embedding that is added to the token embedding; only on the first stage.
        dropout: embedding dropout; only on the first stage.
        head: output layer, an attribute of the causal model.
    """

    inner: str = "model"
    embedding: str = "embed_tokens"
    layers: str = "layers"
    norm: str = "norm"
    positions: str | None = None
    dropout: str | None = None
    head: str = "lm_head"


LLAMA = ModuleNames()
MODULE_NAMES: Mapping[str, ModuleNames] = {
    "gpt2": ModuleNames("transformer", "wte", "h", "ln_f", positions="wpe", dropout="drop"),
    "gpt_neox": ModuleNames("gpt_neox", "embed_in", "layers", "final_layer_norm", dropout="emb_dropout"),
    "llama": LLAMA,
    "mistral": LLAMA,
    "olmo2": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
}


def bounds(layers: int, stages: int) -> list[tuple[int, int]]:
    """Return the half-open layer range of each stage; stages differ by at most one layer."""
    edges = [layers * i // stages for i in range(stages + 1)]
    return list(itertools.pairwise(edges))


def split_problem(config: JsonView, stages: int) -> Problem | None:
    """Return why a model cannot be split into ``stages`` stages; None if it can, or the configuration does not tell.

    Args:
        config: the model's configuration as plain data: `model_type`, number of layers, `layer_types`.
        stages: stages per pipeline.
    """
    kind = str(config.get("model_type", ""))
    if kind and kind not in MODULE_NAMES:
        known = listed(sorted(MODULE_NAMES), len(MODULE_NAMES))
        return Problem(f"{WORD} with a {kind} model", f"one of {known}", REMEDY)
    kinds = sorted(set(config.get("layer_types") or ()))
    if len(kinds) > 1:
        statement = f"{WORD} with layers of {len(kinds)} kinds ({', '.join(kinds)})"
        return Problem(statement, "layers of one kind", REMEDY)
    count = config.get("num_hidden_layers", config.get("n_layer"))
    if count is not None and int(count) < stages:
        return Problem(f"{WORD} {stages} for {counted(count, 'layer')}", f"at most {count}", f"use {count}")
    return None


def pipeline_bubble_problem(batch_size: int, replicas: int, stages: int) -> Problem | None:
    """Return the problem of a batch with fewer rows per pipeline than stages; None if it has enough."""
    if batch_size // replicas >= stages:
        return None
    of = f"a pipeline of {stages} processes" if replicas == 1 else f"{replicas} pipelines of {stages} processes"
    each = "" if replicas == 1 else " for each"
    expected = f"at least {stages} rows{each}, one on its way through each process"
    return Problem(f"train.batch_size {batch_size} for {of}", expected, f"use {stages * replicas} or more")
