"""Bytes a process needs at its peak, by part.

References: Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, section 3: what each stage shards); Korthikanti et al.
2022 (arXiv:2205.05198, section 4: activations, and what checkpointing keeps); Dettmers et al. 2023 (QLoRA,
arXiv:2305.14314, section 3: double quantisation costs 0.127 bit a parameter). Attention is fused: no matrix of
scores is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from pipeline.estimate.buckets import bucket_sizes
from pipeline.estimate.shape import ModelShape

_QUANTISED = {"4bit": (4 + 0.127) / 8, "8bit": 1.0}
_FP32 = 4
SLACK, SLACK_RECOMPUTED, SLACK_HEADLESS, SLACK_ADAPTED = 1.25, 2.25, 2.75, 5.25
"""Working sets of one block of the model that glibc keeps in holes at the peak.

Tensors below 32 MiB come from its heap. While one block after the other goes backward, gradients that stay are put
between tensors that go, and what the next block needs does not fit between them: it holds about one block's working set
twice. Recomputed blocks and adapters (two more outputs in each linear layer) need more, and so does a reward model: its
peak comes when the written model is mapped to be compared, beside a heap that gave nothing back. Measured, not derived,
and chosen on the processor that needs most (docs/log.md), for a forecast that is too low lets a run die. Were every
tensor from 1 MiB on mapped by itself (`M_MMAP_THRESHOLD`), nothing would be left of it, and a step be a quarter longer.
"""
_TILE_TOKENS, _TILE_VOCAB = 4096, 32_768
"""Positions and tokens of trl's tiles of logits (`trl.kernels.chunked_logprob`)."""
_TILE_COPIES = 8.25
"""fp32 tiles alive at once in the tile's backward pass written in torch: logits, scaled, tempered, log-probabilities,
probabilities, gradient, one-hot as bytes and as floats, their difference. On a GPU a Triton kernel has one."""


@dataclass(frozen=True)
class ParallelLayout:
    """How state is shared out and what is recomputed.

    Attributes:
        processes: N.
        zero: stage; FSDP counts as 3.
        offload: ``none``, ``optimizer``, ``all``.
        checkpointing: recompute activations.
        half: whether the computation is in 16 bits.
        on_gpu: whether memory is a GPU's; a CPU's heap keeps freed blocks.
        dropout: whether the model's dropout is on while it learns.
        eager: whether attention is not fused: its scores are kept.
        fsdp: whether it is FSDP2 that shards, not DeepSpeed.
    """

    processes: int = 1
    zero: int = 0
    offload: str = "none"
    checkpointing: bool = False
    half: bool = False
    on_gpu: bool = True
    dropout: bool = False
    eager: bool = False
    fsdp: bool = False

    @property
    def size(self) -> int:
        """Bytes of a number in the format of the computation."""
        return 2 if self.half else _FP32


@dataclass(frozen=True)
class Memory:
    """Peak bytes of one process by part.

    Attributes:
        weights: of the trained model.
        gradients: held at the peak.
        optimizer: AdamW's two moments, and under ZeRO its fp32 copy of the weights.
        activations: of one micro-batch, there when the backward pass begins.
        ending: of those, what is there when it ends: one block's; not a part of its own.
        logits: scores over the vocabulary and what the loss makes of them.
        heap: freed blocks that a CPU's allocator keeps.
        buffers: DeepSpeed's buckets of gradients, and weights that ZeRO-3 or FSDP2 has gathered.
        others: reference, reward model and separate value function.
        cache: keys and values of a rollout.
        peak: the largest sum in time; less than all together, for they are not all there at once.
    """

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    ending: float = 0.0
    logits: float = 0.0
    heap: float = 0.0
    buffers: float = 0.0
    others: float = 0.0
    cache: float = 0.0
    peak: float = 0.0

    def parts(self) -> dict[str, float]:
        """Return the parts that are not nothing, largest first."""
        found = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("peak", "ending") and getattr(self, f.name)
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def block_bytes(shape: ModelShape, rows: int, length: int, spread: ParallelLayout, *, adapter_r: int = 0) -> float:
    """Return the bytes one block keeps for the backward pass of ``rows`` of ``length`` tokens."""
    per_token = shape.kept.per_token(half=spread.half, adapter_r=adapter_r, dropout=spread.dropout)
    pairs = shape.kept.scores if spread.dropout and not spread.on_gpu else 0.0
    if spread.eager:
        pairs = max(pairs, shape.heads * (6.0 if spread.half else 4.0))
    return rows * length * (per_token + pairs * length)


def transient_bytes(shape: ModelShape, tokens: int, spread: ParallelLayout) -> float:
    """Return the bytes a block's backward pass makes beyond what is kept: gradients inside the MLP and its output's."""
    return tokens * spread.size * (float(shape.kept.inner_gradients) * shape.inner + shape.hidden)


def activation_bytes(
    shape: ModelShape, rows: int, length: int, spread: ParallelLayout, *, adapter_r: int = 0, share: float = 1.0
) -> float:
    """Return the bytes of activations that are there when the backward pass begins.

    Args:
        shape: of the model.
        rows: of a micro-batch.
        length: of its longest row, in tokens.
        spread: whether a block is recomputed: then its input is kept, in fp32.
        adapter_r: rank of the adapters; 0 where all weights are trained.
        share: of the blocks, from the top, that learn: those below keep nothing.
    """
    outside = 3.0 * _FP32 * shape.hidden * rows * length  # the last norm
    if spread.checkpointing:
        return shape.layers * _FP32 * shape.hidden * rows * length + outside
    return shape.layers * share * block_bytes(shape, rows, length, spread, adapter_r=adapter_r) + outside


def logit_bytes(
    shape: ModelShape, tokens: int, spread: ParallelLayout, *, copies: float = 3.0, learns: bool = True
) -> float:
    """Return the bytes of the head's output: logits, log-probabilities and their gradient, in fp32.

    Args:
        shape: of the model.
        tokens: whose logits are there at once.
        spread: of the computation.
        copies: values of each logit, in fp32.
        learns: whether the model does: then its head is fp32, and autocast keeps a 16-bit copy of it.
    """
    head = 2.0 * shape.vocab * shape.hidden if learns and spread.half and not spread.zero else 0.0
    return shape.vocab * tokens * (copies * _FP32 + (2 if spread.half else 0)) + head


def tiled_logit_bytes(shape: ModelShape, tokens: int, spread: ParallelLayout, *, trained: bool) -> float:
    """Return the bytes of trl's head, which makes logits tile by tile.

    Args:
        shape: of the model.
        tokens: of a micro-batch.
        spread: of the computation.
        trained: whether the head's weights are: their gradient, in fp32, is there while all activations are.
    """
    positions = min(tokens, _TILE_TOKENS)
    if spread.on_gpu:
        tile = float(positions * _TILE_VOCAB * spread.size)
    else:
        tile = positions * min(shape.vocab, _TILE_VOCAB) * (_TILE_COPIES * _FP32 + (2 if spread.half else 0))
    return tile + _FP32 * shape.hidden * (tokens + (shape.vocab if trained else 0))


def cache_bytes(shape: ModelShape, rows: int, tokens: int, *, half: bool) -> float:
    """Return the bytes of keys and values of ``rows`` sequences of ``tokens``."""
    return 2.0 * shape.layers * shape.kv * rows * tokens * (2 if half else _FP32)


def heap_bytes(ending: float, spread: ParallelLayout, *, adapted: bool = False, headless: bool = False) -> float:
    """Return what a CPU's allocator keeps in freed blocks of memory.

    Args:
        ending: bytes one block of the model works with in its backward pass.
        spread: whether memory is a GPU's, whose allocator is asked again before it grows.
        adapted: whether linear layers carry adapters.
        headless: whether no logits are made.
    """
    more = ((spread.checkpointing, SLACK_RECOMPUTED), (headless, SLACK_HEADLESS), (adapted, SLACK_ADAPTED))
    slack = max([SLACK, *(value for applies, value in more if applies)])
    return 0.0 if spread.on_gpu else slack * ending


def quantised_bytes(shape: ModelShape, size: int, quantize: str | None) -> float:
    """Return the bytes of a whole model's weights, of ``size`` bytes each, its linear layers ``4bit`` or ``8bit``."""
    if not quantize:
        return float(size * shape.parameters)
    return _QUANTISED[quantize] * shape.linear + size * (shape.parameters - shape.linear)


def state(
    shape: ModelShape, trained: int, spread: ParallelLayout, *, quantize: str | None = None
) -> tuple[float, float, float]:
    """Return the bytes of weights, gradients and optimizer of one process.

    Weights that are trained are fp32, under ZeRO in 16 bits 16 bit. DeepSpeed keeps an fp32 copy beside the optimizer's
    moments, at stages 1 and 2 also of weights that are fp32 already. Offloaded, optimizer and gradients are in the
    machine's memory (`host_bytes`), with ``all`` the weights too; what is on its way is in `buffer_bytes`.
    """
    adapters = trained if trained < shape.parameters else 0
    zero, n = spread.zero, spread.processes
    mixed = bool(zero) and spread.half
    size = 2 if mixed else _FP32
    weights = quantised_bytes(shape, size, quantize) + size * adapters
    gradients, optimizer = float(size * trained), trained * (12.0 if mixed or 0 < zero < 3 else 8.0)
    if spread.half and not mixed and not quantize:
        weights += 2.0 * shape.linear  # autocast keeps 16-bit copies through a step
    weights /= n if zero >= 3 else 1
    gradients /= n if zero >= 2 else 1
    optimizer /= n if zero >= 1 else 1
    if spread.offload != "none" and spread.on_gpu:  # on a CPU both are the same memory
        optimizer = gradients = 0.0
        weights = 0.0 if spread.offload == "all" else weights
    return weights, gradients, optimizer


def buffer_bytes(shape: ModelShape, trained: int, spread: ParallelLayout) -> float:
    """Return the bytes of DeepSpeed's buckets, and of weights that are gathered from all processes for a while.

    ZeRO-1 has one bucket of gradients in fp32, ZeRO-2 two (`overlap_comm`), ZeRO-3 one and the gathered weights; FSDP2
    gathers a block and the next. On a CPU a bucket is memory only as far as it is written to, so no larger than what is
    trained.

    Args:
        shape: of the model.
        trained: parameters.
        spread: of the computation.
    """
    if not spread.zero:
        return 0.0
    size = 2 if spread.half else _FP32
    sizes = bucket_sizes(spread.zero, shape.hidden)
    bucket = sizes["reduce_bucket_size"]
    bucket = bucket if spread.on_gpu else min(bucket, trained)
    if spread.zero < 3:
        return float(bucket * (_FP32 if spread.zero == 1 else 2 * size))
    live = sizes["stage3_max_live_parameters"] if spread.processes > 1 or spread.offload == "all" else 0
    live = min(shape.parameters, max(live, shape.vocab * shape.hidden)) if live else 0  # the largest matrix is whole
    return float(size * (live + (0 if spread.fsdp else bucket)))


def host_bytes(shape: ModelShape, trained: int, spread: ParallelLayout) -> float:
    """Return the bytes one process keeps in the memory of its machine where a GPU's state is offloaded.

    For each trained weight DeepSpeed has there its fp32 copy, two moments and an fp32 gradient: 16
    bytes. ZeRO-3 has also the gradient in the format of the computation; with ``all`` the weights too.
    """
    if spread.offload == "none" or not spread.on_gpu:
        return 0.0
    size = 2 if spread.half else _FP32
    held = trained * (16.0 + (size if spread.zero >= 3 else 0))
    if spread.offload == "all":
        held += size * (shape.parameters + (trained if trained < shape.parameters else 0))
    return held / spread.processes


def tensor_parallel(parts: Memory, shape: ModelShape, tp_size: int, *, adapter_r: int = 0, layers: int = 0) -> Memory:
    """Return the memory of a process that holds one of ``tp_size`` shards of every large matrix.

    Beneath an adapter the whole input half of a layer cut by columns, and output half of one cut by rows, stays in
    every process: a matrix of r x hidden for each linear layer of a block.
    """
    whole = _FP32 * adapter_r * (7 if shape.gated else 6) * shape.hidden * layers

    def share(size: float, kept: float) -> float:
        return kept + max(0.0, size - kept) / tp_size

    return replace(
        parts,
        weights=share(parts.weights, whole),
        gradients=share(parts.gradients, whole),
        optimizer=share(parts.optimizer, 2 * whole),
    )


def peak(parts: Memory, *, accumulates: bool, recomputes: bool = False) -> float:
    """Return the largest sum in time.

    Weights, optimizer, buffers and other models are always there. A backward pass begins with all activations and
    logits and ends with all gradients and one block; gradients are there from the start only where they accumulate. Of
    activations that are recomputed, a block's are there when the logits are gone. A rollout has its cache.
    """
    always = parts.weights + parts.optimizer + parts.others + parts.buffers
    first = max(parts.logits, parts.ending) if recomputes else parts.logits
    begins = parts.activations + first + (parts.gradients if accumulates else 0.0)
    ends = parts.ending + parts.gradients
    return always + max(max(begins, ends) + parts.heap, parts.cache)
