"""Bytes by part: activations against what autograd keeps, and state by ZeRO stage by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.estimate.memory import HEAP, Memory, Spread, activation_bytes, cache_bytes, heap_bytes, peak, state
from pipeline.estimate.shape import ModelShape, shape_of

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 176, "vocab_size": 101}


def _kept(layers: int, **more: Any) -> int:
    """Return the bytes autograd keeps for the backward pass of 2 rows of 128 tokens, parameters left out."""
    config = AutoConfig.for_model("llama", **SIZES, num_hidden_layers=layers, **more)
    model = AutoModelForCausalLM.from_config(config).train()
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(2, 128, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(input_ids=ids, labels=ids, use_cache=False)
    assert output.loss is not None
    return sum(kept.values())


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_a_block_keeps_the_activations_autograd_keeps(groups: int) -> None:
    shape = shape_of({"type": "llama", **SIZES, "num_hidden_layers": 1, "num_key_value_heads": groups})
    assert shape is not None
    found = _kept(2, num_key_value_heads=groups) - _kept(1, num_key_value_heads=groups)
    assert activation_bytes(shape, 256, Spread()) == pytest.approx(found, rel=0.02)


SHAPE = ModelShape(1000, 1000, 100, 2, 8, 8, 4, 16, 12, gated=True, tied=True, context=0)
FULL = [
    # P = 1000 on 4 processes: 4 bytes of weights and gradients, 8 of moments, 4 more for DeepSpeed's copy;
    # under ZeRO-3 the weights are that copy
    (0, (4000, 4000, 8000)),
    (1, (4000, 4000, 3000)),
    (2, (4000, 1000, 3000)),
    (3, (1000, 1000, 2000)),
]


@pytest.mark.parametrize(("zero", "expected"), FULL)
def test_zero_shards_optimizer_then_gradients_then_weights(zero: int, expected: tuple[int, ...]) -> None:
    assert state(SHAPE, 1000, Spread(processes=4, zero=zero)) == expected


def test_zero_in_16_bits_keeps_an_fp32_copy_beside_the_moments() -> None:
    # ZeRO paper, section 3.1: 2 + 2 + 12 bytes a parameter
    assert state(SHAPE, 1000, Spread(processes=1, zero=1, half=True)) == (2000, 2000, 12000)


def test_an_adapter_alone_has_gradients_and_moments() -> None:
    assert state(SHAPE, 50, Spread()) == (4200, 200, 400)


def test_four_bits_are_half_a_byte_of_each_linear_weight() -> None:
    # 900 linear weights at (4 + 0.127) / 8 bytes, 100 others and 50 of the adapter in fp32
    weights, _, _ = state(SHAPE, 50, Spread(), quantize="4bit")
    assert weights == pytest.approx(900 * 0.515875 + 400 + 200)


def test_offloaded_state_is_not_on_the_device() -> None:
    assert state(SHAPE, 1000, Spread(zero=2, offload="optimizer"))[2] == 0
    assert state(SHAPE, 1000, Spread(zero=3, offload="all"))[0] == 0


def test_a_cpu_offloads_to_the_memory_it_has() -> None:
    for level, what in ((2, "optimizer"), (3, "all")):
        plain = state(SHAPE, 1000, Spread(processes=2, zero=level, on_gpu=False))
        assert state(SHAPE, 1000, Spread(processes=2, zero=level, offload=what, on_gpu=False)) == plain


def test_checkpointing_keeps_the_input_of_each_block_and_one_block() -> None:
    whole = activation_bytes(SHAPE, 10, Spread())
    assert activation_bytes(SHAPE, 10, Spread(checkpointing=True)) == 2 * 8 * 4 * 10 + whole / 2


def test_the_cache_holds_keys_and_values_of_every_layer() -> None:
    assert cache_bytes(SHAPE, 3, 5, half=False) == 2 * 2 * 4 * 15 * 4


def test_activations_and_gradients_are_together_only_where_gradients_accumulate() -> None:
    parts = Memory(weights=10, gradients=10, optimizer=20, activations=30, logits=5, others=1)
    assert peak(parts, accumulates=False) == 66
    assert peak(parts, accumulates=True) == 76
    assert peak(Memory(weights=10, cache=50, logits=5), accumulates=False) == 60


def test_only_a_cpus_heap_keeps_freed_blocks() -> None:
    assert heap_bytes(100, Spread(on_gpu=True)) == 0
    assert heap_bytes(100, Spread(on_gpu=False)) == 100 * HEAP
