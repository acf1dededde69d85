"""Bytes a process needs at its peak, by part.

References: Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, section 3: what each stage shards); Korthikanti et al.
2022 (arXiv:2205.05198, section 4: activations, and what checkpointing keeps); Dettmers et al. 2023 (QLoRA,
arXiv:2305.14314, section 3: double quantisation costs 0.127 bit a parameter). Attention is fused: no matrix of
scores is kept.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from pipeline.estimate.shape import ModelShape

_QUANTISED = {"4bit": (4 + 0.127) / 8, "8bit": 1.0}
_FP32 = 4
HEAP = 0.55
"""Bytes glibc keeps beyond each byte of activations on a CPU, in freed blocks too small to be given back.

Fitted, not derived: with `MALLOC_MMAP_THRESHOLD_=131072`, which gives every block back, processes need that much less
(docs/log.md).
"""


@dataclass(frozen=True)
class Spread:
    """How state is shared out and what is recomputed.

    Attributes:
        processes: N.
        zero: stage; FSDP counts as 3.
        offload: ``none``, ``optimizer``, ``all``.
        checkpointing: recompute activations.
        half: whether the computation is in 16 bits.
        on_gpu: whether memory is a GPU's; a CPU's heap keeps freed blocks.
    """

    processes: int = 1
    zero: int = 0
    offload: str = "none"
    checkpointing: bool = False
    half: bool = False
    on_gpu: bool = True


@dataclass(frozen=True)
class Memory:
    """Peak bytes of one process by part.

    Attributes:
        weights: of the trained model.
        gradients: held at the peak.
        optimizer: AdamW's two moments, and under ZeRO its fp32 copy of the weights.
        activations: of one micro-batch, kept for the backward pass.
        logits: scores over the vocabulary and what the loss makes of them.
        heap: freed blocks that a CPU's allocator keeps.
        others: reference, reward model and separate value function.
        cache: keys and values of a rollout.
        peak: the largest sum in time; less than all together, for they are not all there at once.
    """

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    heap: float = 0.0
    others: float = 0.0
    cache: float = 0.0
    peak: float = 0.0

    def parts(self) -> dict[str, float]:
        """Return the parts that are not nothing, largest first."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "peak" and getattr(self, f.name)}
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def activation_bytes(shape: ModelShape, tokens: int, spread: Spread, *, adapter_r: int = 0) -> float:
    """Return the bytes of activations a micro-batch of ``tokens`` keeps for its backward pass.

    A block keeps, per token: two norms with input, normalised and scaled value; query, key, value and the output of
    attention; up, gate, activated gate and their product. Beneath an adapter each linear layer's input
    is kept as well by its low-rank half, which is the same tensor.
    """
    size = 2 if spread.half else _FP32
    norms = 6 * shape.hidden * _FP32
    inside = (2 * shape.attention + 2 * shape.kv + (4 if shape.gated else 3) * shape.inner) * size
    block = (norms + inside + adapter_r * 7 * size) * tokens
    if spread.checkpointing:
        return shape.layers * shape.hidden * size * tokens + block
    return shape.layers * block


def logit_bytes(shape: ModelShape, tokens: int, spread: Spread, *, copies: float = 3.0) -> float:
    """Return the bytes of the head's output: logits, log-probabilities and their gradient, in fp32."""
    return shape.vocab * tokens * (copies * _FP32 + (2 if spread.half else 0))


def cache_bytes(shape: ModelShape, rows: int, tokens: int, *, half: bool) -> float:
    """Return the bytes of keys and values of ``rows`` sequences of ``tokens``."""
    return 2.0 * shape.layers * shape.kv * rows * tokens * (2 if half else _FP32)


def heap_bytes(activations: float, spread: Spread) -> float:
    """Return what a CPU's allocator keeps beyond ``activations`` bytes."""
    return 0.0 if spread.on_gpu else HEAP * activations


def state(
    shape: ModelShape, trained: int, spread: Spread, *, quantize: str | None = None
) -> tuple[float, float, float]:
    """Return the bytes of weights, gradients and optimizer of one process.

    Weights that are trained are fp32, under ZeRO in 16 bits 16 bit. DeepSpeed keeps an fp32 copy beside the optimizer's
    moments, at stages 1 and 2 also of weights that are fp32 already.
    """
    adapters = trained if trained < shape.parameters else 0
    zero, n = spread.zero, spread.processes
    mixed = bool(zero) and spread.half
    size = 2 if mixed else _FP32
    frozen = float(size * shape.parameters)
    if quantize:
        frozen = _QUANTISED[quantize] * shape.linear + size * (shape.parameters - shape.linear)
    weights = frozen + size * adapters
    gradients, optimizer = float(size * trained), trained * (12.0 if mixed or 0 < zero < 3 else 8.0)
    if spread.half and not mixed and not quantize:
        weights += 2.0 * shape.linear  # autocast keeps 16-bit copies through a step
    weights /= n if zero >= 3 else 1
    gradients /= n if zero >= 2 else 1
    optimizer /= n if zero >= 1 else 1
    if spread.on_gpu and spread.offload in ("optimizer", "all"):  # a CPU would keep them in the very same memory
        optimizer = 0.0
    if spread.on_gpu and spread.offload == "all":
        weights = 0.0
    return weights, gradients, optimizer


def peak(parts: Memory, *, accumulates: bool) -> float:
    """Return the largest sum in time.

    Weights, optimizer and other models are always there. A backward pass begins with all activations and logits and
    ends with all gradients; gradients are there from the start only where they accumulate. A rollout has its cache.
    """
    always = parts.weights + parts.optimizer + parts.others
    work = parts.activations + parts.logits + parts.heap
    learning = work + parts.gradients if accumulates else max(work, parts.gradients)
    return always + max(learning, parts.cache)
