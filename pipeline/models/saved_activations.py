"""Counts the activations that autograd saves for one decoder layer of any architecture, with fake tensors.

Two models that differ by one layer run forward with fake tensors (shapes without data), and hooks see every tensor that
is saved for the backward pass. The bytes are a polynomial in the row length: a constant (copies of weights), a linear
term (tokens) and a quadratic term (pairs of tokens).

Reference: torch.autograd.graph.saved_tensors_hooks; torch's FakeTensorMode.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from pipeline.estimate.saved_activations import SavedActivations
from pipeline.models.load.kernels import without_mask

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

LENGTHS = (64, 128, 192)
ROWS, RANK = 2, 8


def count_saved_activations(config: PreTrainedConfig) -> SavedActivations:
    """Return the activations that one decoder layer of an architecture saves for its backward pass.

    Args:
        config: transformers' configuration of a causal language model.
    """
    sizes = {
        (half, r, dropout): _bytes_per_layer(config, half=half, r=r, dropout=dropout)
        for half, r, dropout in (
            (False, 0, False),
            (True, 0, False),
            (False, RANK, False),
            (True, RANK, False),
            (False, 2 * RANK, False),
            (False, 0, True),
            (True, 0, True),
        )
    }
    token = {key: size[0] for key, size in sizes.items()}
    rank = (token[False, 2 * RANK, False] - token[False, RANK, False]) / RANK
    return SavedActivations(
        fp32=token[False, 0, False],
        half=token[True, 0, False],
        adapted_fp32=token[False, RANK, False] - RANK * rank,
        adapted_half=token[True, RANK, False] - RANK * rank / 2,
        rank=rank,
        dropped_fp32=token[False, 0, True] - token[False, 0, False],
        dropped_half=token[True, 0, True] - token[True, 0, False],
        scores=max(0.0, sizes[False, 0, True][1] - sizes[False, 0, False][1]),
    )


def _bytes_per_layer(config: PreTrainedConfig, *, half: bool, r: int, dropout: bool) -> tuple[float, float]:
    """Return the bytes a layer saves per token and per pair of tokens, for one row."""
    more, fewer = (_saved_bytes(config, layers, half=half, r=r, dropout=dropout) for layers in (3, 2))
    first, second, third = ((a - b) / ROWS for a, b in zip(more, fewer, strict=True))
    step = LENGTHS[1] - LENGTHS[0]
    pairs = (third - 2 * second + first) / (2 * step**2)
    tokens = (second - first) / step - pairs * (LENGTHS[0] + LENGTHS[1])
    return round(tokens, 3), round(pairs, 3)


def _saved_bytes(config: PreTrainedConfig, layers: int, *, half: bool, r: int, dropout: bool) -> list[int]:
    """Return the bytes saved by a forward pass over ``ROWS`` rows, for each of ``LENGTHS``, without the weights."""
    model = _small_model(config, layers, r=r, dropout=dropout)
    totals = []
    with FakeTensorMode():
        _use_fake_tensors(model)
        own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        saved: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                saved[storage._cdata] = storage.nbytes()
            return tensor

        for length in LENGTHS:
            saved.clear()
            ids = torch.zeros(ROWS, length, dtype=torch.long)
            with (
                torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
                torch.autocast("cpu", torch.bfloat16, enabled=half),
            ):
                output = model(input_ids=ids, use_cache=False)  # keeps the graph, and so the saved tensors, alive
            totals.append(sum(saved.values()))
            del output
    return totals


def _small_model(config: PreTrainedConfig, layers: int, *, r: int, dropout: bool) -> Any:
    """Build a model of few layers on the meta device, with adapters of rank ``r`` if it is not 0."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    text.num_hidden_layers = layers
    kinds = list(getattr(text, "layer_types", None) or [])
    if "full_attention" in kinds:
        kinds = ["full_attention"]
    if kinds:
        text.layer_types = [kinds[i % len(kinds)] for i in range(layers)]
    elif getattr(text, "sliding_window", None):  # a window saves no less, but its mask would copy grouped keys
        text.sliding_window = None
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(short)
        without_mask(model)
        if r:
            lora = LoraConfig(r=r, target_modules="all-linear", task_type="CAUSAL_LM")
            model = get_peft_model(model, lora, low_cpu_mem_usage=True)
    if not dropout:
        _without_dropout(model)
    return model.train()


def _without_dropout(model: nn.Module) -> None:
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)
    for name in ("attention_dropout", "attn_pdrop", "hidden_dropout", "dropout"):
        config: Any = model.config
        if isinstance(getattr(config, name, None), float):
            setattr(config, name, 0.0)


def _use_fake_tensors(model: nn.Module) -> None:
    """Replace weights and buffers by fake CPU tensors; tied weights stay tied."""
    fakes: dict[int, nn.Parameter] = {}
    for part in model.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype)
                own = nn.Parameter(fake, requires_grad=parameter.requires_grad)
                part._parameters[name] = fakes.setdefault(id(parameter), own)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
