"""Which models can be trained with the tokens of a row in shards on several processes. No torch.

Ulysses, Jacobs et al. 2023, arXiv:2309.14509: before attention the processes of a group exchange shards of tokens for
shards of heads, so each attends over all tokens with some of the heads, and back after it. All else is computed token
by token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import Problem

_HEADS = ("num_attention_heads", "n_head")
_FULL = "full_attention"
_UNFIT = frozenset({"gpt2"})
"""Model types whose attention wants heads apart, which DeepSpeed's exchange puts together."""


def sequence_parallel_problems(config: Mapping[str, Any], count: int, processes: int) -> list[Problem]:
    """Return why a model's rows cannot lie in ``count`` shards; what its configuration leaves open is no problem yet.

    Args:
        config: of the model, as its `config.json` or the recipe's `model:` has it.
        count: `compute.sequence_parallel`.
        processes: in all.
    """
    config = config.get("text_config") or config
    word = f"compute.sequence_parallel is {count}"
    found = []
    kind = str(config.get("model_type") or config.get("type") or "")
    if kind in _UNFIT:
        found.append(Problem(f"{word} for a model of type {kind}", "1", "use 1, or another architecture"))
    if config.get("router_aux_loss_coef"):
        what = f"{word} for a mixture of experts whose load is balanced over whole rows"
        found.append(Problem(what, "1, or a router_aux_loss_coef of 0", "use 1"))
    heads = next((int(config[key]) for key in _HEADS if config.get(key)), None)
    groups = int(config.get("num_key_value_heads") or heads or 0)
    if heads is not None and not _divides(heads, groups, count):
        fit = [n for n in range(1, processes + 1) if processes % n == 0 and _divides(heads, groups, n)]
        near = sorted({max([n for n in fit if n < count], default=1), min([n for n in fit if n > count], default=1)})
        grouped = f" in {groups} groups" if groups != heads else ""
        expected = f"a number that divides the model's {heads} attention heads{grouped}"
        found.append(Problem(word, expected, f"use {' or '.join(str(n) for n in near)}"))
    kinds = sorted({str(kind) for kind in config.get("layer_types") or []} - {_FULL})
    if config.get("sliding_window") and config.get("use_sliding_window") is not False and not config.get("layer_types"):
        kinds = ["sliding_attention"]
    if kinds:
        found.append(Problem(f"{word} and the model has layers of {', '.join(kinds)}", f"{_FULL} in all", "use 1"))
    return found


def _divides(heads: int, groups: int, count: int) -> bool:
    """Return whether each process gets whole heads: as many, and its keys and values or a copy of one."""
    return heads % count == 0 and (groups % count == 0 or count % groups == 0)
