"""Bytes by part: activations against what autograd keeps, and state by ZeRO stage by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.estimate.buckets import bucket_sizes
from pipeline.estimate.memory import (
    SLACK,
    SLACK_ADAPTED,
    SLACK_HEADLESS,
    SLACK_RECOMPUTED,
    Memory,
    ParallelLayout,
    activation_bytes,
    block_bytes,
    buffer_bytes,
    cache_bytes,
    heap_bytes,
    host_bytes,
    logit_bytes,
    peak,
    state,
    tensor_parallel,
    tiled_logit_bytes,
    transient_bytes,
)
from pipeline.estimate.saved_activations import SavedActivations
from pipeline.estimate.shape import ModelShape, shape_of

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 176, "vocab_size": 101}


def _kept(layers: int, **more: Any) -> int:
    """Return the bytes autograd keeps for the backward pass of 2 rows of 128 tokens, parameters left out."""
    config = AutoConfig.for_model("llama", **SIZES, num_hidden_layers=layers, **more)
    model = AutoModelForCausalLM.from_config(config).train()
    return _saved(model, torch.zeros(2, 128, dtype=torch.long))


def _saved(model: torch.nn.Module, ids: torch.Tensor) -> int:
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(input_ids=ids, labels=ids, use_cache=False)
    assert output.loss is not None
    return sum(kept.values())


@pytest.mark.parametrize("groups", [4, 2, 1])
def test_a_block_keeps_the_activations_autograd_keeps(groups: int) -> None:
    shape = shape_of({"type": "llama", **SIZES, "num_hidden_layers": 1, "num_key_value_heads": groups})
    assert shape is not None
    kept_bytes = _kept(2, num_key_value_heads=groups) - _kept(1, num_key_value_heads=groups)
    assert block_bytes(shape, 2, 128, ParallelLayout()) == kept_bytes


def test_autocast_keeps_a_16_bit_copy_of_every_weight_it_multiplies_by() -> None:
    """Llama of 2 layers with a head of its own: its linear layers and its head, not what is looked up or scales."""
    config = AutoConfig.for_model("llama", **SIZES, num_hidden_layers=2, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config).train()
    shape = shape_of({"type": "llama", **SIZES, "num_hidden_layers": 2})
    assert shape is not None
    sizes = {p.numel() for p in model.parameters() if p.dim() == 2}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bfloat16 and tensor.dim() == 2 and tensor.untyped_storage().nbytes() // 2 in sizes:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.zeros(2, 13, dtype=torch.long)  # 26 tokens: no activation has the size of a weight
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        output = model(input_ids=ids, labels=ids, use_cache=False)
    assert output.loss is not None
    half = ParallelLayout(half=True, on_gpu=False)
    head = logit_bytes(shape, 0, half)
    counted = state(shape, shape.parameters, half)[0] - state(shape, shape.parameters, replace(half, half=False))[0]
    assert head == 2 * 101 * 64
    assert sum(kept.values()) == 2 * 2 * (4 * 64 * 64 + 3 * 64 * 176) + head
    assert counted + head - sum(kept.values()) == 2 * 5 * 64  # five norms are counted with the linear layers


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_block_with_dropout_or_without_fused_attention_keeps_pairs_of_positions(attention: str) -> None:
    sizes: dict[str, Any] = {"n_embd": 64, "n_head": 4, "vocab_size": 101, "n_positions": 128}
    shape = shape_of({"model_type": "gpt2", **sizes, "n_layer": 1, "attn_pdrop": 0.1})
    assert shape is not None
    ids, saved_bytes = torch.zeros(2, 128, dtype=torch.long), []
    for layers in (1, 2):
        config = AutoConfig.for_model("gpt2", **sizes, n_layer=layers, bos_token_id=0, eos_token_id=0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).train()
        saved_bytes.append(_saved(model, ids))
    spread = ParallelLayout(dropout=True, on_gpu=False, eager=attention == "eager")
    assert block_bytes(shape, 2, 128, spread) == saved_bytes[1] - saved_bytes[0]
    fused = ParallelLayout(dropout=True, on_gpu=True)
    assert block_bytes(shape, 2, 128, fused) < saved_bytes[1] - saved_bytes[0]


KEPT = SavedActivations(fp32=400, half=250, adapted_fp32=300, adapted_half=200, rank=28, dropped_fp32=10, scores=2)
SHAPE = ModelShape(1000, 1000, 100, 2, 8, 8, 4, 16, 12, gated=True, tied=True, context=0, heads=2, kept=KEPT)
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
    assert state(SHAPE, 1000, ParallelLayout(processes=4, zero=zero)) == expected


def test_zero_in_16_bits_keeps_an_fp32_copy_beside_the_moments() -> None:
    # ZeRO paper, section 3.1: 2 + 2 + 12 bytes a parameter
    assert state(SHAPE, 1000, ParallelLayout(processes=1, zero=1, half=True)) == (2000, 2000, 12000)


def test_an_adapter_alone_has_gradients_and_moments() -> None:
    assert state(SHAPE, 50, ParallelLayout()) == (4200, 200, 400)


def test_four_bits_are_half_a_byte_of_each_linear_weight() -> None:
    # 900 linear weights at (4 + 0.127) / 8 bytes, 100 others and 50 of the adapter in fp32
    weights, _, _ = state(SHAPE, 50, ParallelLayout(), quantize="4bit")
    assert weights == pytest.approx(900 * 0.515875 + 400 + 200)


def test_offloaded_state_is_in_the_memory_of_the_machine() -> None:
    # 1000 weights on 2 processes in 16 bits: 500 weights stay on the device, sharded; 4 + 8 + 4 bytes of each are in
    # the machine, with ZeRO-3 a gradient of 2 bytes, with `all` the weights too
    half = ParallelLayout(processes=2, zero=3, offload="optimizer", half=True)
    assert state(SHAPE, 1000, half) == (1000, 0, 0)
    assert host_bytes(SHAPE, 1000, half) == 500 * 18
    assert state(SHAPE, 1000, replace(half, offload="all")) == (0, 0, 0)
    assert host_bytes(SHAPE, 1000, replace(half, offload="all")) == 500 * 20
    assert state(SHAPE, 1000, replace(half, zero=2)) == (2000, 0, 0)
    assert host_bytes(SHAPE, 1000, replace(half, zero=2)) == 500 * 16
    assert host_bytes(SHAPE, 1000, replace(half, on_gpu=False)) == 0  # counted as what it is: the same memory
    assert host_bytes(SHAPE, 1000, replace(half, offload="none")) == 0


def test_buckets_are_as_wide_as_the_model_and_gathered_weights_two_blocks() -> None:
    # Llama 7B is 4096 wide: a bucket has 4096² = 16,777,216 elements, two blocks 24 x 4096² weights
    wide = replace(SHAPE, hidden=4096, vocab=32_000, parameters=7 * 10**9)
    half = ParallelLayout(processes=8, half=True)
    buffer_sizes = [buffer_bytes(wide, 7 * 10**9, replace(half, zero=stage)) for stage in (0, 1, 2, 3)]
    assert buffer_sizes == [0, 4 * 4096**2, 2 * 2 * 4096**2, 2 * (1 + 24) * 4096**2]
    # FSDP2 gathers and has no buckets; an embedding larger than two blocks is gathered whole
    assert buffer_bytes(wide, 7 * 10**9, replace(half, zero=3, fsdp=True)) == 2 * 24 * 4096**2
    large = replace(wide, vocab=128_000)
    assert buffer_bytes(large, 7 * 10**9, replace(half, zero=3, fsdp=True)) == 2 * 128_000 * 4096
    # a CPU gives memory when it is written to
    assert buffer_bytes(SHAPE, 1000, ParallelLayout(processes=2, zero=2, on_gpu=False)) == 2 * 4 * 1000


@pytest.mark.parametrize("hidden", [8, 4096, 4097, 30_000])
def test_what_deepspeed_sends_at_once_follows_the_width(hidden: int) -> None:
    for stage in (1, 2, 3):
        sizes = bucket_sizes(stage, hidden)
        bucket = sizes["reduce_bucket_size"]
        assert bucket == {8: 2**22, 4096: 4096**2, 4097: 4097**2 + 1, 30_000: 5e8}[hidden]
        assert (stage == 3) == ("stage3_max_live_parameters" in sizes)
    assert sizes["stage3_prefetch_bucket_size"] == int(0.9 * bucket)
    assert sizes["stage3_max_live_parameters"] == min(10**9, max(2**22, 24 * hidden**2))


def test_a_cpu_offloads_to_the_memory_it_has() -> None:
    for level, what in ((2, "optimizer"), (3, "all")):
        plain = state(SHAPE, 1000, ParallelLayout(processes=2, zero=level, on_gpu=False))
        assert state(SHAPE, 1000, ParallelLayout(processes=2, zero=level, offload=what, on_gpu=False)) == plain


def test_checkpointing_keeps_the_input_of_each_block_and_one_block_going_backward() -> None:
    # 2 blocks and the last norm's three values, each 8 wide in fp32, of 10 tokens; one block as it goes backward is
    # there when the logits are gone, whichever is larger
    spread = ParallelLayout(checkpointing=True)
    assert activation_bytes(SHAPE, 2, 5, spread) == (2 + 3) * 8 * 4 * 10
    parts = Memory(weights=10, gradients=10, activations=30, ending=20, logits=5)
    assert peak(parts, accumulates=False, recomputes=True) == 10 + 30 + 20
    assert peak(replace(parts, logits=25), accumulates=False, recomputes=True) == 10 + 30 + 25
    assert peak(parts, accumulates=True, recomputes=True) == 10 + 30 + 20 + 10
    assert transient_bytes(SHAPE, 10, spread) == 10 * 4 * (3 * 16 + 8)


def test_blocks_below_the_adapters_keep_nothing() -> None:
    # 10 tokens: the last norm's 3 x 8 values in fp32; a block beneath adapters of rank 3 keeps 300 + 3 x 28 per token
    half_of_them = activation_bytes(SHAPE, 2, 5, ParallelLayout(), adapter_r=3, share=0.5)
    assert half_of_them == 10 * (3 * 8 * 4 + 384)


def test_trls_head_makes_logits_by_tiles_of_4096_positions() -> None:
    # 5,000 positions, 12 tokens of vocabulary: one tile of 4,096 x 12; gradients of hidden states, and of the head
    cpu = tiled_logit_bytes(SHAPE, 5000, ParallelLayout(on_gpu=False), trained=True)
    assert cpu == 4096 * 12 * 8.25 * 4 + 5000 * 8 * 4 + 12 * 8 * 4
    gpu = tiled_logit_bytes(SHAPE, 5000, ParallelLayout(half=True), trained=False)
    assert gpu == 4096 * 32768 * 2 + 5000 * 8 * 4


def test_the_cache_holds_keys_and_values_of_every_layer() -> None:
    assert cache_bytes(SHAPE, 3, 5, half=False) == 2 * 2 * 4 * 15 * 4


def test_activations_and_gradients_are_together_only_where_gradients_accumulate() -> None:
    parts = Memory(weights=10, gradients=10, optimizer=20, activations=30, logits=5, others=1)
    assert peak(parts, accumulates=False) == 66
    assert peak(parts, accumulates=True) == 76
    assert peak(Memory(weights=10, cache=50, logits=5), accumulates=False) == 60


def test_a_backward_pass_ends_with_all_gradients_and_one_block() -> None:
    # 10 of weights; it begins with 30 + 5 and ends with 20 of one block and 40 of gradients; 7 of holes all the while
    parts = Memory(weights=10, gradients=40, activations=30, ending=20, logits=5, heap=7)
    assert peak(parts, accumulates=False) == 10 + 60 + 7
    assert peak(parts, accumulates=True) == 10 + 75 + 7


def test_only_a_cpus_heap_keeps_freed_blocks() -> None:
    assert heap_bytes(100, ParallelLayout(on_gpu=True)) == 0
    assert heap_bytes(100, ParallelLayout(on_gpu=False)) == 100 * SLACK
    assert heap_bytes(100, ParallelLayout(on_gpu=False), adapted=True) == 100 * SLACK_ADAPTED
    assert heap_bytes(100, ParallelLayout(on_gpu=False, checkpointing=True)) == 100 * SLACK_RECOMPUTED
    assert heap_bytes(100, ParallelLayout(on_gpu=False), headless=True) == 100 * SLACK_HEADLESS
    assert heap_bytes(100, ParallelLayout(on_gpu=False, checkpointing=True), adapted=True) == 100 * SLACK_ADAPTED


def test_tensor_shards_divide_the_state_but_for_the_replicated_halves_of_an_adapter() -> None:
    full = tensor_parallel(Memory(*state(SHAPE, 1000, ParallelLayout())), SHAPE, 4)
    assert (full.weights, full.gradients, full.optimizer) == (1000, 1000, 2000)
    # r = 1 on 2 layers: q, k, v, gate and up keep r x 8 of the input whole, o and down r x 8 of the output: 112 of 256
    assert SHAPE.adapter(1) == 256
    adapted = tensor_parallel(Memory(*state(SHAPE, 256, ParallelLayout())), SHAPE, 4, adapter_r=1, layers=2)
    assert adapted.gradients == 4 * (112 + 144 / 4)
    assert adapted.optimizer == 8 * (112 + 144 / 4)
    assert adapted.weights == 4 * (112 + (1000 + 144) / 4)
