"""Peak bytes of a process, by part: weights, gradients, optimizer state, saved activations, logits, buffers.

References: Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, section 3: what each stage shards); Korthikanti et al.
2022 (arXiv:2205.05198, section 4: activations, and what checkpointing saves); Dettmers et al. 2023 (QLoRA,
arXiv:2305.14314, section 3: double quantisation costs 0.127 bit per parameter). Attention is fused by default, so no
score matrix is saved.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from pipeline.estimate.buckets import bucket_sizes
from pipeline.estimate.shape import ModelShape

_QUANTISED = {"4bit": (4 + 0.127) / 8, "8bit": 1.0}
_FP32 = 4
SLACK, SLACK_RECOMPUTED, SLACK_HEADLESS, SLACK_ADAPTED = 1.25, 2.25, 2.75, 5.25
"""Heap fragmentation at the peak, as a multiple of one block's working set: the free memory that glibc does not return.

Tensors below 32 MiB come from glibc's heap. During the backward pass, gradients that stay are allocated between
tensors that are freed, and the next block's tensors do not fit into the gaps, so the heap holds about one block's
working set twice. Recomputed blocks and adapters (two more outputs in each linear layer) fragment it more. So does a
reward model: its peak comes when the saved model is memory-mapped for comparison while the heap has returned nothing.
The factors are measured, not derived, on the processor that needs most (docs/log.md), because a forecast that is too
low lets a run die. With every tensor above 1 MiB mapped by itself (`M_MMAP_THRESHOLD`) there is no fragmentation, but a
step takes a quarter longer.
"""
_TILE_TOKENS, _TILE_VOCAB = 4096, 32_768
"""Positions and vocabulary entries of one tile of logits in trl (`trl.kernels.chunked_logprob`)."""
_TILE_COPIES = 8.25
"""fp32 tiles alive at once in the torch version of a tile's backward pass: logits, scaled logits, logits divided by the
temperature, log-probabilities, probabilities, gradient, one-hot as bytes and as floats, their difference. On a GPU the
Triton kernel has one tile."""


@dataclass(frozen=True)
class ParallelLayout:
    """How state is sharded over processes, and which settings change the saved activations.

    Attributes:
        processes: number of processes N.
        zero: ZeRO stage; FSDP2 counts as 3.
        offload: ``none``, ``optimizer``, ``all``.
        checkpointing: whether activations are recomputed (activation checkpointing).
        half: whether the computation is in 16 bits.
        on_gpu: whether tensors are in GPU memory; a CPU's heap keeps freed blocks.
        dropout: whether the model's dropout is on in training.
        eager: whether attention is eager: its scores are saved.
        fsdp: whether FSDP2 shards the state instead of DeepSpeed.
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
        """Bytes of a number in the precision of the computation."""
        return 2 if self.half else _FP32


@dataclass(frozen=True)
class Memory:
    """Peak bytes of one process by part.

    Attributes:
        weights: weights of the trained model.
        gradients: gradients at the peak.
        optimizer: AdamW's two moments, and under ZeRO the optimizer's fp32 copy of the weights.
        activations: saved activations of one micro-batch when the backward pass begins.
        ending: activations and transient tensors when the backward pass ends, those of one block; not a separate part.
        logits: scores over the vocabulary and the tensors the loss derives from them.
        heap: freed blocks that a CPU's allocator does not return.
        buffers: DeepSpeed's gradient buckets, and weights that ZeRO-3 or FSDP2 has gathered.
        others: reference, reward models and separate value model.
        cache: KV cache of a rollout.
        peak: the largest sum at any time; less than the sum of all parts, which are not allocated at the same time.
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
        """Return the parts that are not 0, the largest first."""
        parts = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in ("peak", "ending") and getattr(self, f.name)
        }
        return dict(sorted(parts.items(), key=lambda item: -item[1]))


def block_bytes(shape: ModelShape, rows: int, length: int, layout: ParallelLayout, *, adapter_r: int = 0) -> float:
    """Return the bytes of activations one block saves for the backward pass of ``rows`` of ``length`` tokens."""
    per_token = shape.kept.per_token(half=layout.half, adapter_r=adapter_r, dropout=layout.dropout)
    pairs = shape.kept.scores if layout.dropout and not layout.on_gpu else 0.0
    if layout.eager:
        pairs = max(pairs, shape.heads * (6.0 if layout.half else 4.0))
    return rows * length * (per_token + pairs * length)


def transient_bytes(shape: ModelShape, tokens: int, layout: ParallelLayout) -> float:
    """Return the bytes of a block's gradients of activations in its backward pass: inside the MLP, and its output's."""
    return tokens * layout.size * (float(shape.kept.inner_gradients) * shape.inner + shape.hidden)


def activation_bytes(
    shape: ModelShape, rows: int, length: int, layout: ParallelLayout, *, adapter_r: int = 0, share: float = 1.0
) -> float:
    """Return the bytes of saved activations when the backward pass begins.

    Args:
        shape: shape of the model.
        rows: rows of a micro-batch.
        length: tokens of its longest row.
        layout: with activation checkpointing only each block's input is saved, in fp32.
        adapter_r: rank of the adapters; 0 when all weights are trained.
        share: share of the blocks, from the top, that are trained; the blocks below save nothing.
    """
    outside = 3.0 * _FP32 * shape.hidden * rows * length  # the last norm
    if layout.checkpointing:
        return shape.layers * _FP32 * shape.hidden * rows * length + outside
    return shape.layers * share * block_bytes(shape, rows, length, layout, adapter_r=adapter_r) + outside


def logit_bytes(
    shape: ModelShape, tokens: int, layout: ParallelLayout, *, copies: float = 3.0, learns: bool = True
) -> float:
    """Return the bytes of the head's output: logits, log-probabilities and their gradient, in fp32.

    Args:
        shape: shape of the model.
        tokens: number of positions whose logits exist at the same time.
        layout: layout and precision of the computation.
        copies: fp32 tensors of the logits' size.
        learns: whether the model is trained: then its head is fp32, and autocast caches a 16-bit copy of it.
    """
    head = 2.0 * shape.vocab * shape.hidden if learns and layout.half and not layout.zero else 0.0
    return shape.vocab * tokens * (copies * _FP32 + (2 if layout.half else 0)) + head


def tiled_logit_bytes(shape: ModelShape, tokens: int, layout: ParallelLayout, *, trained: bool) -> float:
    """Return the bytes of trl's head, which computes logits tile by tile.

    Args:
        shape: shape of the model.
        tokens: tokens of a micro-batch.
        layout: layout and precision of the computation.
        trained: whether the head is trained: its fp32 gradient exists at the same time as all saved activations.
    """
    positions = min(tokens, _TILE_TOKENS)
    if layout.on_gpu:
        tile = float(positions * _TILE_VOCAB * layout.size)
    else:
        tile = positions * min(shape.vocab, _TILE_VOCAB) * (_TILE_COPIES * _FP32 + (2 if layout.half else 0))
    return tile + _FP32 * shape.hidden * (tokens + (shape.vocab if trained else 0))


def cache_bytes(shape: ModelShape, rows: int, tokens: int, *, half: bool) -> float:
    """Return the bytes of the KV cache of ``rows`` sequences of ``tokens`` each."""
    return 2.0 * shape.layers * shape.kv * rows * tokens * (2 if half else _FP32)


def heap_bytes(ending: float, layout: ParallelLayout, *, adapted: bool = False, headless: bool = False) -> float:
    """Return the bytes of freed blocks that a CPU's allocator does not return; 0 on a GPU.

    Args:
        ending: bytes of one block's working set in its backward pass.
        layout: says whether tensors are in GPU memory, whose allocator reuses freed blocks before it grows.
        adapted: whether linear layers have adapters.
        headless: whether the model computes no logits (a reward model).
    """
    more = ((layout.checkpointing, SLACK_RECOMPUTED), (headless, SLACK_HEADLESS), (adapted, SLACK_ADAPTED))
    slack = max([SLACK, *(value for applies, value in more if applies)])
    return 0.0 if layout.on_gpu else slack * ending


def quantised_bytes(shape: ModelShape, size: int, quantize: str | None) -> float:
    """Return the bytes of all weights: linear layers quantised to ``4bit`` or ``8bit``, others ``size`` bytes each."""
    if not quantize:
        return float(size * shape.parameters)
    return _QUANTISED[quantize] * shape.linear + size * (shape.parameters - shape.linear)


def state(
    shape: ModelShape, trained: int, layout: ParallelLayout, *, quantize: str | None = None
) -> tuple[float, float, float]:
    """Return the bytes of weights, gradients and optimizer state of one process.

    Trained weights are fp32, or 16 bits under ZeRO with a 16-bit computation. DeepSpeed has an fp32 copy beside the
    optimizer's moments; stages 1 and 2 copy fp32 weights too. With offload, optimizer state and gradients are in host
    memory (`host_bytes`), with ``all`` the weights too. Tensors in transit are counted in `buffer_bytes`.
    """
    adapters = trained if trained < shape.parameters else 0
    zero, n = layout.zero, layout.processes
    mixed = bool(zero) and layout.half
    size = 2 if mixed else _FP32
    weights = quantised_bytes(shape, size, quantize) + size * adapters
    gradients, optimizer = float(size * trained), trained * (12.0 if mixed or 0 < zero < 3 else 8.0)
    if layout.half and not mixed and not quantize:
        weights += 2.0 * shape.linear  # autocast caches 16-bit copies during a step
    weights /= n if zero >= 3 else 1
    gradients /= n if zero >= 2 else 1
    optimizer /= n if zero >= 1 else 1
    if layout.offload != "none" and layout.on_gpu:  # on a CPU, host and device memory are the same
        optimizer = gradients = 0.0
        weights = 0.0 if layout.offload == "all" else weights
    return weights, gradients, optimizer


def buffer_bytes(shape: ModelShape, trained: int, layout: ParallelLayout) -> float:
    """Return the bytes of DeepSpeed's buckets and of temporarily gathered weights.

    ZeRO-1 has one fp32 gradient bucket, ZeRO-2 two (`overlap_comm`), ZeRO-3 one and the gathered weights; FSDP2 gathers
    the current and the next block. On a CPU, only the written pages of a bucket take memory, so a bucket takes no more
    than the trained parameters.

    Args:
        shape: shape of the model.
        trained: number of trained parameters.
        layout: layout and precision of the computation.
    """
    if not layout.zero:
        return 0.0
    size = 2 if layout.half else _FP32
    sizes = bucket_sizes(layout.zero, shape.hidden)
    bucket = sizes["reduce_bucket_size"]
    bucket = bucket if layout.on_gpu else min(bucket, trained)
    if layout.zero < 3:
        return float(bucket * (_FP32 if layout.zero == 1 else 2 * size))
    live = sizes["stage3_max_live_parameters"] if layout.processes > 1 or layout.offload == "all" else 0
    live = (
        min(shape.parameters, max(live, shape.vocab * shape.hidden)) if live else 0
    )  # at least the largest matrix is gathered
    return float(size * (live + (0 if layout.fsdp else bucket)))


def host_bytes(shape: ModelShape, trained: int, layout: ParallelLayout) -> float:
    """Return the bytes of one process in host memory when GPU state is offloaded; 0 otherwise.

    For each trained weight DeepSpeed has an fp32 copy, two moments and an fp32 gradient there: 16 bytes. ZeRO-3 adds
    the gradient in the precision of the computation; ``all`` adds the weights.
    """
    if layout.offload == "none" or not layout.on_gpu:
        return 0.0
    size = 2 if layout.half else _FP32
    total = trained * (16.0 + (size if layout.zero >= 3 else 0))
    if layout.offload == "all":
        total += size * (shape.parameters + (trained if trained < shape.parameters else 0))
    return total / layout.processes


def tensor_parallel(parts: Memory, shape: ModelShape, tp_size: int, *, adapter_r: int = 0, layers: int = 0) -> Memory:
    """Return the memory of a process that holds one of ``tp_size`` shards of every large matrix.

    With LoRA, matrix A of a column-parallel layer and matrix B of a row-parallel layer are replicated in every process:
    a matrix of r x hidden for each linear layer of a block.
    """
    replicated = _FP32 * adapter_r * (7 if shape.gated else 6) * shape.hidden * layers

    def share(size: float, full: float) -> float:
        return full + max(0.0, size - full) / tp_size

    return replace(
        parts,
        weights=share(parts.weights, replicated),
        gradients=share(parts.gradients, replicated),
        optimizer=share(parts.optimizer, 2 * replicated),
    )


def peak(parts: Memory, *, accumulates: bool, recomputes: bool = False) -> float:
    """Return the largest number of bytes allocated at any time.

    Weights, optimizer state, buffers and other models are always allocated. The backward pass begins with all saved
    activations and the logits, and ends with all gradients and one block's working set. With gradient accumulation, the
    gradients are allocated from its beginning. With activation checkpointing, a block is recomputed after the logits
    are freed. A rollout adds its KV cache.
    """
    always = parts.weights + parts.optimizer + parts.others + parts.buffers
    first = max(parts.logits, parts.ending) if recomputes else parts.logits
    begins = parts.activations + first + (parts.gradients if accumulates else 0.0)
    ends = parts.ending + parts.gradients
    return always + max(max(begins, ends) + parts.heap, parts.cache)
