"""Models whose files are quantised already: in how many bits, and what can be trained on them.

Torch-free: a plan reads `config.json` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import Problem

TRAINABLE = ("4bit", "8bit")
"""What bitsandbytes has written; an adapter is trained on it."""


def quantization_of_files(config: Mapping[str, Any]) -> str:
    """Return ``4bit`` or ``8bit`` (bitsandbytes), the name of another method, or nothing, for a `config.json`."""
    found = config.get("quantization_config")
    if not isinstance(found, Mapping):
        return ""
    if found.get("load_in_4bit"):
        return "4bit"
    return "8bit" if found.get("load_in_8bit") else str(found.get("quant_method", "unknown"))


def quantized_files_problem(
    ref: str, stored: str, adapter: Any | None, *, takes_adapter: bool = True
) -> Problem | None:
    """Return what speaks against training on such a model: only an adapter can be, and nothing quantises it again.

    Args:
        ref: how the recipe calls the model.
        stored: from `quantization_of_files`.
        adapter: the stage's block; None when all weights are to be trained.
        takes_adapter: whether its kind has adapters.
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


def layout_problem(what: str, compute: Mapping[str, Any]) -> Problem | None:
    """Return what speaks against spreading a model of 4 or 8 bits over processes so: each holds its weights whole.

    Args:
        what: is quantised, and how.
        compute: the stage's, as plain data.
    """
    level, offload = int(compute.get("zero") or 0), ", and compute.offload: optimizer or none"
    asked = {word: int(compute.get(word) or 1) for word in ("tensor_parallel", "pipeline_parallel")}
    word = next((word for word, processes in asked.items() if processes > 1), "")
    if word:
        found, remedy = f"{word} is {asked[word]}", f"set compute.{word}: 1"
    elif level == 3:
        found = "zero is 3"
        remedy = "set compute.zero: 2 or less for this stage" + (offload if compute.get("offload") == "all" else "")
    elif compute.get("fsdp"):
        found, remedy = "fsdp is true", "set compute.fsdp: false, and compute.zero: 2 to share gradients and optimizer"
    else:
        return None
    return Problem(f"{what} and compute.{found}", "quantised weights whole on each process", remedy)
