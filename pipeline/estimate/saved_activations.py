"""What autograd keeps of one block for its backward pass, in bytes: counted, never guessed.

For the model types below by closed formula, each term a tensor that is kept; others are counted with tensors that hold
nothing (`pipeline/models/saved_activations.py`), and a test holds formula and count equal to the byte.

Letters: h hidden, a all query heads together, k all key heads together, i inside the MLP, n query heads, m key heads.
"""

from __future__ import annotations

from dataclasses import dataclass

INNER_GRADIENTS = {
    **dict.fromkeys(("gelu", "gelu_10", "gelu_pytorch_tanh", "hardswish", "leaky_relu", "mish", "relu6"), 2),
    **dict.fromkeys(("prelu", "relu", "sigmoid", "silu", "swish", "tanh"), 3),
    **dict.fromkeys(("quick_gelu", "relu2", "sqrtsoftplus"), 4),
    "gelu_fast": 5,
    **dict.fromkeys(("gelu_accurate", "gelu_new", "gelu_python_tanh", "laplace", "xielu"), 6),
    "gelu_python": 7,
}
"""Gradients of its inner width that the backward pass of an MLP holds at once, by its activation: two on both sides of
one operator, more where it is written out or what it returned is kept. SiLU alone holds two. It has three here, for
models have it with a gate, which is not always found by its name."""


@dataclass(frozen=True)
class SavedActivations:
    """Bytes one block keeps for its backward pass, with fused attention.

    Attributes:
        fp32: per token, computed in fp32, all weights trained.
        half: the same, computed in 16 bits by autocast (norms and the residual stream stay fp32).
        adapted_fp32: per token beneath adapters; frozen norms do not keep what they normalised.
        adapted_half: the same in 16 bits.
        rank: per token and rank of an adapter, fp32: what its lower half makes of each linear layer's input.
        dropped_fp32: what dropout adds per token in fp32.
        dropped_half: the same in 16 bits.
        scores: per row and pair of positions where dropout keeps a CPU's attention from being fused.
        inner_gradients: of the MLP's inner width, that its backward pass holds at once (`inner_gradients`).
    """

    fp32: float
    half: float
    adapted_fp32: float
    adapted_half: float
    rank: float
    dropped_fp32: float = 0.0
    dropped_half: float = 0.0
    scores: float = 0.0
    inner_gradients: int = 3

    def per_token(self, *, half: bool, adapter_r: int = 0, dropout: bool = False) -> float:
        """Return the bytes per token of a block."""
        if adapter_r:
            found = (self.adapted_half if half else self.adapted_fp32) + adapter_r * self.rank / (2 if half else 1)
        else:
            found = self.half if half else self.fp32
        return found + (self.dropped_half if half else self.dropped_fp32) * dropout


def inner_gradients(*, gated: bool, activation: str) -> int:
    """Return how many gradients of its inner width an MLP's backward pass holds at once: counted, like what is kept.

    With a gate at least three: of the product, of the gate, and one on its way.

    Args:
        gated: whether the MLP has a gate.
        activation: as `ACT2FN` of transformers names it; a configuration without one has it written out (Bloom).
    """
    made = INNER_GRADIENTS.get(activation, 3 if gated else 6)
    return max(3, made) if gated else made


def llama_saved(h: int, a: int, k: int, i: int, n: int) -> SavedActivations:
    """Return what a block of Llama, Mistral or Qwen2 keeps.

    fp32: both norms keep input, normalised and scaled value (6h) and a factor (2); query, key, value, the output of
    attention (2a + 2k) and its log-sums (n); gate, activated gate, up and their product (4i). In 16 bits the
    normalised values are kept in both formats.
    """
    return SavedActivations(
        fp32=4.0 * (6 * h + 2 * a + 2 * k + 4 * i + n + 2),
        half=26.0 * h + 4 * a + 4 * k + 8 * i + 4 * n + 8,
        adapted_fp32=4.0 * (4 * h + 2 * a + 2 * k + 4 * i + n + 2),
        adapted_half=18.0 * h + 6 * a + 4 * k + 8 * i + 4 * n + 8,
        rank=7 * 4.0,
    )


def qwen3_saved(h: int, a: int, k: int, i: int, n: int, m: int) -> SavedActivations:
    """Return what a block of Qwen3 keeps: Llama's, and the norms of query and key with a factor for each head."""
    return SavedActivations(
        fp32=4.0 * (6 * h + 4 * a + 4 * k + 4 * i + 2 * n + m + 2),
        half=26.0 * h + 10 * a + 10 * k + 8 * i + 8 * n + 4 * m + 8,
        adapted_fp32=4.0 * (4 * h + 3 * a + 3 * k + 4 * i + 2 * n + m + 2),
        adapted_half=18.0 * h + 10 * a + 8 * k + 8 * i + 8 * n + 4 * m + 8,
        rank=7 * 4.0,
    )


def gpt2_saved(h: int, i: int, n: int, *, attention_dropout: bool) -> SavedActivations:
    """Return what a block of GPT-2 keeps.

    Its `gelu_new` is written out, so five values inside the MLP are kept (20i). Dropout keeps its noise (8h); on
    attention it unfuses a CPU's kernel: scores, their noise and the product, 12 bytes for each head and pair.
    """
    unfused = 4 * n if attention_dropout else 0
    return SavedActivations(
        fp32=32.0 * h + 20 * i + 4 * n + 16,
        half=20.0 * h + 10 * i + 4 * n + 16,
        adapted_fp32=32.0 * h + 20 * i + 4 * n + 16,
        adapted_half=22.0 * h + 10 * i + 4 * n + 16,
        rank=4 * 4.0,
        dropped_fp32=8.0 * h - unfused,
        dropped_half=10.0 * h - unfused,
        scores=12.0 * n if attention_dropout else 0.0,
        inner_gradients=inner_gradients(gated=False, activation="gelu_new"),
    )


def gpt_neox_saved(h: int, i: int, n: int) -> SavedActivations:
    """Return what a block of GPT-NeoX keeps: one fused GELU, so two values inside the MLP (8i)."""
    full = 40.0 * h + 8 * i + 4 * n + 16
    half = 22.0 * h + 4 * i + 4 * n + 16
    gradients = inner_gradients(gated=False, activation="gelu")
    return SavedActivations(
        fp32=full, half=half, adapted_fp32=full, adapted_half=half, rank=4 * 4.0, inner_gradients=gradients
    )
