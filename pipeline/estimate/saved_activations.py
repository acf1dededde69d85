"""Bytes of activations that autograd saves for one block's backward pass.

The model types below have closed formulas, in which each term is a saved tensor. Other types are counted with fake
tensors (`pipeline/models/saved_activations.py`). A test requires formula and count to be equal to the byte.

Letters: h hidden size, a width of all query heads, k width of all key heads, i inner width of the MLP, n number of
query heads, m number of key heads.
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
"""Gradients of the MLP's inner width alive at once in its backward pass, by activation function.

A fused operator has two, its input's and its output's. One that is written out in several operators, or whose output is
saved, has more. SiLU alone has two; it has three here because models use it with a gate, which the configuration does
not always name.
"""


@dataclass(frozen=True)
class SavedActivations:
    """Bytes of activations one block saves for its backward pass, with fused attention.

    Attributes:
        fp32: per token, computed in fp32, all weights trained.
        half: per token, computed in 16 bits by autocast (norms and the residual stream stay fp32).
        adapted_fp32: per token with LoRA in fp32; frozen norms do not save their normalised input.
        adapted_half: per token with LoRA in 16 bits.
        rank: per token and unit of LoRA's rank, fp32: the outputs of matrix A of all linear layers.
        dropped_fp32: what dropout adds per token in fp32.
        dropped_half: what dropout adds per token in 16 bits.
        scores: per row and pair of positions, if dropout prevents fused attention on a CPU.
        inner_gradients: gradients of the MLP's inner width alive at once (see the function `inner_gradients`).
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
        """Return the bytes of activations one block saves per token."""
        if adapter_r:
            size = (self.adapted_half if half else self.adapted_fp32) + adapter_r * self.rank / (2 if half else 1)
        else:
            size = self.half if half else self.fp32
        return size + (self.dropped_half if half else self.dropped_fp32) * dropout


def inner_gradients(*, gated: bool, activation: str) -> int:
    """Return how many gradients of its inner width are alive at once in an MLP's backward pass.

    The numbers are counted, not derived. With a gate there are at least three: the product's, the gate's, and the one
    being computed.

    Args:
        gated: whether the MLP has a gate.
        activation: name in transformers' `ACT2FN`; an unknown or empty one is assumed to be written out (Bloom).
    """
    count = INNER_GRADIENTS.get(activation, 3 if gated else 6)
    return max(3, count) if gated else count


def llama_saved(h: int, a: int, k: int, i: int, n: int) -> SavedActivations:
    """Return the saved activations of a block of Llama, Mistral or Qwen2.

    In fp32: both norms save their input, normalised and scaled values (6h) and a factor (2); attention saves query,
    key, value, output (2a + 2k) and log-sum-exp (n); the MLP saves gate, activated gate, up and their product (4i). In
    16 bits the normalised values are saved in both precisions.
    """
    return SavedActivations(
        fp32=4.0 * (6 * h + 2 * a + 2 * k + 4 * i + n + 2),
        half=26.0 * h + 4 * a + 4 * k + 8 * i + 4 * n + 8,
        adapted_fp32=4.0 * (4 * h + 2 * a + 2 * k + 4 * i + n + 2),
        adapted_half=18.0 * h + 6 * a + 4 * k + 8 * i + 4 * n + 8,
        rank=7 * 4.0,
    )


def qwen3_saved(h: int, a: int, k: int, i: int, n: int, m: int) -> SavedActivations:
    """Return the saved activations of a block of Qwen3: Llama's, and those of the norms of query and key."""
    return SavedActivations(
        fp32=4.0 * (6 * h + 4 * a + 4 * k + 4 * i + 2 * n + m + 2),
        half=26.0 * h + 10 * a + 10 * k + 8 * i + 8 * n + 4 * m + 8,
        adapted_fp32=4.0 * (4 * h + 3 * a + 3 * k + 4 * i + 2 * n + m + 2),
        adapted_half=18.0 * h + 10 * a + 8 * k + 8 * i + 8 * n + 4 * m + 8,
        rank=7 * 4.0,
    )


def gpt2_saved(h: int, i: int, n: int, *, attention_dropout: bool) -> SavedActivations:
    """Return the saved activations of a block of GPT-2.

    Its `gelu_new` is written out in several operators, so the MLP saves five inner tensors (20i). Dropout saves its
    masks (8h). With attention dropout a CPU has no fused kernel, so scores, mask and product are saved: 12 bytes for
    each head and pair of positions.
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
    """Return the saved activations of a block of GPT-NeoX: one fused GELU, so two inner tensors of the MLP (8i)."""
    full = 40.0 * h + 8 * i + 4 * n + 16
    half = 22.0 * h + 4 * i + 4 * n + 16
    gradients = inner_gradients(gated=False, activation="gelu")
    return SavedActivations(
        fp32=full, half=half, adapted_fp32=full, adapted_half=half, rank=4 * 4.0, inner_gradients=gradients
    )
