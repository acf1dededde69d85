"""Models whose files are already quantised: in how many bits, and what can be trained on them.

Torch-free, because a plan reads only `config.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import Problem
from pipeline.parallel.dims import ParallelSettings
from pipeline.plain_data import JsonView

TRAINABLE = ("4bit", "8bit")
"""Formats of bitsandbytes, on which an adapter can be trained."""


def quantization_of_files(config: JsonView) -> str:
    """Return how a `config.json` says files are quantised.

    ``4bit`` or ``8bit`` for bitsandbytes, the name of another method, or an empty string if they are not.
    """
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return ""
    if quantization.get("load_in_4bit"):
        return "4bit"
    return "8bit" if quantization.get("load_in_8bit") else str(quantization.get("quant_method", "unknown"))


def quantized_files_problem(
    ref: str, stored: str, adapter: Any | None, *, takes_adapter: bool = True
) -> Problem | None:
    """Return why a stage cannot train a model with quantised files; None if it can.

    Only an adapter can be trained on quantised weights, and they cannot be quantised again.

    Args:
        ref: name of the model in the recipe.
        stored: quantisation of the files, from `quantization_of_files`.
        adapter: the stage's `adapter:` block; None when all weights are to be trained.
        takes_adapter: whether stages of this kind support adapters.
    """
    if not stored:
        return None
    statement = f"`{ref}` is kept quantised ({stored})"
    if stored not in TRAINABLE and takes_adapter:
        return Problem(
            statement, "weights in fp32, bf16 or fp16, or in bitsandbytes' 4 or 8 bits", "name another copy of it"
        )
    if adapter is None:
        if not takes_adapter:
            return Problem(statement, "weights that are trained, in fp32, bf16 or fp16", "name another copy of it")
        return Problem(statement, "an adapter: quantised weights are not trained", "add `adapter: {r: 16}`")
    if adapter.quantize is not None:
        return Problem(
            f"{statement}, and adapter.quantize is {adapter.quantize}", "one of the two", "remove the latter"
        )
    return None


def layout_problem(what: str, settings: ParallelSettings) -> Problem | None:
    """Return why a quantised model cannot be sharded as `compute` asks; None if it is not to be sharded.

    Each process must hold the full quantised weights.

    Args:
        what: the quantised model, for the message.
        settings: the stage's `compute` block, or its parallel dimensions.
    """
    offload = ", and compute.offload: optimizer or none" if settings.offload == "all" else ""
    asked = {"tensor_parallel": settings.tensor_parallel, "pipeline_parallel": settings.pipeline_parallel}
    word = next((word for word, processes in asked.items() if processes > 1), "")
    if word:
        setting, remedy = f"{word} is {asked[word]}", f"set compute.{word}: 1"
    elif settings.zero == 3:
        setting, remedy = "zero is 3", f"set compute.zero: 2 or less for this stage{offload}"
    elif settings.fsdp:
        setting, remedy = (
            "fsdp is true",
            "set compute.fsdp: false, and compute.zero: 2 to share gradients and optimizer",
        )
    else:
        return None
    return Problem(f"{what} and compute.{setting}", "quantised weights whole on each process", remedy)
