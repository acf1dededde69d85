"""The shape of a language model: its parameters by part, and the sizes that determine memory and operations.

Owns the closed formulas of architectures that their configuration describes fully. Others are counted on the meta
device (`pipeline/models/sizing.py`). A test requires formula and count to be equal.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pipeline.errors import Problem
from pipeline.estimate.saved_activations import SavedActivations, gpt2_saved, gpt_neox_saved, llama_saved, qwen3_saved
from pipeline.plain_data import JsonView

LLAMA_LIKE = frozenset({"llama", "mistral", "qwen2", "qwen3"})
FORMULAS = LLAMA_LIKE | {"gpt2", "gpt_neox"}
"""Model types whose parameters are counted by formula."""
_ACTIVATIONS = {"gpt2": ("activation_function", "gelu_new"), "gpt_neox": ("hidden_act", "gelu")}
"""Model type to the configuration field of its activation function, and the function the formula assumes.

Other types use `hidden_act` and SiLU.
"""


SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings"),
    *("n_embd", "n_layer", "n_head", "n_positions", "n_ctx", "d_model", "n_layers", "n_heads", "ffn_dim"),
    *("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"),
)
"""Fields of a configuration that must be integers above 0."""
OPTIONAL_SIZES = ("num_key_value_heads", "head_dim", "n_inner", "sliding_window")
"""Fields of a configuration that must be integers above 0, or null for the architecture's default."""
LARGEST = 2**31
"""Upper bound of a size: no model comes near it, and products of larger sizes would overflow."""


def type_problems(config: JsonView) -> list[Problem]:
    """Return a problem if a `model:` block does not name its architecture."""
    kind = config.get("type")
    if isinstance(kind, str) and kind:
        return []
    statement = "model has no `type`" if kind is None else f"model.type is {json.dumps(kind)[:60]}"
    return [Problem(statement, "the name of a causal model of transformers, such as llama, qwen3, gpt2")]


def size_problems(config: JsonView) -> list[Problem]:
    """Return a problem for each size of a `model:` block that is not a valid integer."""
    problems = []
    for key in (*SIZES, *OPTIONAL_SIZES):
        value = config.get(key)
        if key not in config or (value is None and key in OPTIONAL_SIZES):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < LARGEST:
            shown = "without a value" if value is None else json.dumps(value)[:60]
            problems.append(Problem(f"model.{key} is {shown}", "must be a whole number above 0 that a model can have"))
    return problems


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder.

    Attributes:
        parameters: number of all parameters; a tied head counts once.
        active: parameters used for one token (fewer than all in a mixture of experts).
        embedding: parameters of the input embeddings, positions included.
        layers: number of transformer blocks.
        hidden: width of the residual stream.
        attention: total width of the query heads.
        kv: total width of the key heads.
        inner: inner width of the MLP (total of the experts used for one token).
        vocab: vocabulary size in tokens.
        gated: whether the MLP has a gate beside its up projection.
        tied: whether head and embeddings share one matrix.
        context: context length in tokens; 0 when the configuration names no limit.
        heads: number of query heads.
        kept: activations a block saves for its backward pass.
    """

    parameters: int
    active: int
    embedding: int
    layers: int
    hidden: int
    attention: int
    kv: int
    inner: int
    vocab: int
    gated: bool
    tied: bool
    context: int
    heads: int
    kept: SavedActivations

    @property
    def body(self) -> int:
        """Parameters used in matrix products for one token: all active ones except the embedding lookup."""
        return self.active - self.embedding + (self.vocab * self.hidden if self.tied else 0)

    def adapter(self, r: int, *, layers: int | None = None) -> int:
        """Return the parameters of LoRA with rank ``r`` on every linear layer of the blocks: r·(in + out) each.

        Reference: Hu et al. 2021, arXiv:2106.09685, section 4.1.
        """
        h, a, kv, i = self.hidden, self.attention, self.kv, self.inner
        mlp = (3 if self.gated else 2) * (h + i)
        return r * ((h + a) * 2 + (h + kv) * 2 + mlp) * (self.layers if layers is None else layers)

    @property
    def linear(self) -> int:
        """Parameters of the blocks' linear layers, the ones that quantisation stores in 4 or 8 bits."""
        return self.parameters - self.embedding - (0 if self.tied else self.vocab * self.hidden)


def shape_of(config: JsonView) -> ModelShape | None:
    """Return the shape of a configuration (`config.json`) by formula; None if there is no formula for it."""
    kind = str(config.get("model_type") or config.get("type") or "")
    if kind not in FORMULAS:
        return None
    named, usual = _ACTIVATIONS.get(kind, ("hidden_act", "silu"))
    if config.get(named, usual) != usual:  # another activation function saves other tensors
        return None
    try:
        return _gpt2(config) if kind == "gpt2" else _gpt_neox(config) if kind == "gpt_neox" else _llama(kind, config)
    except KeyError:  # a size left to the architecture's default
        return None
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):  # a user's file whose sizes are not numbers
        return None


def _llama(kind: str, config: JsonView) -> ModelShape | None:
    """Count the parameters of Llama-like models: grouped-query attention, RMSNorm, gated MLP."""
    h, layers, inner, vocab = (
        int(config[k]) for k in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
    )
    heads = int(config["num_attention_heads"])
    if kind in ("qwen2", "qwen3", "mistral") and "num_key_value_heads" not in config:
        return None  # their default is a number, not the number of heads
    if kind == "qwen3" and "head_dim" not in config:
        return None
    groups = int(config.get("num_key_value_heads") or heads)
    width = int(config.get("head_dim") or h // heads)
    attention, kv = heads * width, groups * width
    block = 2 * h * attention + 2 * h * kv + 3 * h * inner + 2 * h
    if kind == "qwen2":
        block += attention + 2 * kv
    elif kind == "qwen3":
        block += 2 * width
    if config.get("attention_bias") and kind != "qwen2":
        block += attention + 2 * kv + h
    if config.get("mlp_bias"):
        block += 2 * inner + h
    tied = bool(config.get("tie_word_embeddings", False))
    total = vocab * h * (1 if tied else 2) + layers * block + h
    context = int(config.get("max_position_embeddings") or 0)
    saved = llama_saved(h, attention, kv, inner, heads)
    if kind == "qwen3":
        saved = qwen3_saved(h, attention, kv, inner, heads, groups)
    sizes = (total, total, vocab * h, layers, h, attention, kv, inner, vocab)
    return ModelShape(*sizes, gated=True, tied=tied, context=context, heads=heads, kept=saved)


def _gpt2(config: JsonView) -> ModelShape:
    """Count the parameters of GPT-2: learned positions, LayerNorm with bias, tied head."""
    h = int(config.get("n_embd") or config["hidden_size"])
    layers = int(config.get("n_layer") or config["num_hidden_layers"])
    context = int(config.get("n_positions") or config.get("max_position_embeddings") or 1024)
    vocab, inner = int(config["vocab_size"]), int(config.get("n_inner") or 4 * h)
    block = 4 * h * h + 4 * h + 2 * h * inner + inner + h + 4 * h
    tied = bool(config.get("tie_word_embeddings", True))
    embedding = (vocab + context) * h
    total = embedding + layers * block + 2 * h + (0 if tied else vocab * h)
    heads = int(config.get("n_head") or config["num_attention_heads"])
    saved = gpt2_saved(h, inner, heads, attention_dropout=float(config.get("attn_pdrop", 0.1)) > 0)
    sizes = (total, total, embedding, layers, h, h, h, inner, vocab)
    return ModelShape(*sizes, gated=False, tied=tied, context=context, heads=heads, kept=saved)


def _gpt_neox(config: JsonView) -> ModelShape | None:
    """Count the parameters of GPT-NeoX (Pythia): fused query-key-value matrix, LayerNorm, biases, untied head."""
    h, layers, inner, vocab = (
        int(config[k]) for k in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
    )
    bias = 4 * h if config.get("attention_bias", True) else 0
    block = 4 * h * h + bias + 2 * h * inner + inner + h + 4 * h
    tied = bool(config.get("tie_word_embeddings", False))
    total = vocab * h * (1 if tied else 2) + layers * block + 2 * h
    context = int(config.get("max_position_embeddings") or 0)
    heads = int(config["num_attention_heads"])
    saved = gpt_neox_saved(h, inner, heads)
    sizes = (total, total, vocab * h, layers, h, h, h, inner, vocab)
    return ModelShape(*sizes, gated=False, tied=tied, context=context, heads=heads, kept=saved)
