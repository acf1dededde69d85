"""Which models can be trained with sequence parallelism (Ulysses). No torch.

Before attention the ranks of a group exchange shards of tokens for shards of heads, so each rank attends over all
tokens with some of the heads; after attention they exchange back. All else is computed token by token.

Reference: Jacobs et al. 2023, arXiv:2309.14509.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import Problem
from pipeline.parallel.dims import ParallelDims
from pipeline.plain_data import JsonView

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_HEADS = ("num_attention_heads", "n_head")
_FULL = "full_attention"
_UNFIT = frozenset({"gpt2"})
"""Model types whose attention needs heads as a dimension of their own, which DeepSpeed's exchange flattens."""


def sequence_parallel_problems(config: JsonView, count: int, processes: int) -> list[Problem]:
    """Return why a model's rows cannot be cut into ``count`` shards; a field its configuration lacks is no problem.

    Args:
        config: the model's `config.json`, or the recipe's `model:` block.
        count: `compute.sequence_parallel`.
        processes: all processes of the stage.
    """
    config = config.get("text_config") or config
    word = f"compute.sequence_parallel is {count}"
    problems = []
    kind = str(config.get("model_type") or config.get("type") or "")
    if kind in _UNFIT:
        problems.append(Problem(f"{word} for a model of type {kind}", "1", "use 1, or another architecture"))
    if config.get("router_aux_loss_coef"):
        what = f"{word} for a mixture of experts whose load is balanced over whole rows"
        problems.append(Problem(what, "1, or a router_aux_loss_coef of 0", "use 1"))
    heads = next((int(config[key]) for key in _HEADS if config.get(key)), None)
    groups = int(config.get("num_key_value_heads") or heads or 0)
    if heads is not None and not _divides(heads, groups, count):
        fit = [n for n in range(1, processes + 1) if processes % n == 0 and _divides(heads, groups, n)]
        near = sorted({max([n for n in fit if n < count], default=1), min([n for n in fit if n > count], default=1)})
        grouped = f" in {groups} groups" if groups != heads else ""
        expected = f"a number that divides the model's {heads} attention heads{grouped}"
        problems.append(Problem(word, expected, f"use {' or '.join(str(n) for n in near)}"))
    kinds = sorted({str(kind) for kind in config.get("layer_types") or []} - {_FULL})
    if config.get("sliding_window") and config.get("use_sliding_window") is not False and not config.get("layer_types"):
        kinds = ["sliding_attention"]
    if kinds:
        problems.append(Problem(f"{word} and the model has layers of {', '.join(kinds)}", f"{_FULL} in all", "use 1"))
    return problems


def field_problems(fields: JsonView) -> list[Problem]:
    """Return the trainer's fields that sequence parallelism does not support.

    Args:
        fields: the fields of the trainer that the recipe sets under `train`.
    """
    problems = []
    for word, plain in (("label_smoothing_factor", 0), ("loss_type", "nll")):
        if fields.get(word, plain) != plain:
            statement = f"train.{word} is {fields[word]} with compute.sequence_parallel"
            problems.append(Problem(statement, str(plain), "leave it out: only the model's own loss can be shared"))
    return problems


def model_problems(model: PreTrainedModel | PeftModel, longest: int, dims: ParallelDims, kernel: str) -> list[Problem]:
    """Return why a loaded model cannot be trained from shards of its rows.

    Args:
        model: of transformers.
        longest: tokens of the longest row; rows are padded to a multiple of the number of shards.
        dims: the parallel dimensions of the run.
        kernel: the attention implementation that DeepSpeed wraps.
    """
    count, config = dims.sequence_parallel, model.config.get_text_config()
    fields = {**config.to_dict(), "num_attention_heads": config.num_attention_heads}
    problems = sequence_parallel_problems(fields, count, dims.world_size)
    if model.config._attn_implementation != kernel:
        statement = f"{type(model).__name__} attends by {model.config._attn_implementation} under sequence parallelism"
        problems.append(
            Problem(statement, f"{kernel}, around which DeepSpeed exchanges them", "use another architecture")
        )
    context = getattr(config, "max_position_embeddings", None)
    padded = -(-longest // count) * count
    if context is not None and padded > context:
        statement = f"rows of {longest} tokens shared by {count} processes are padded to {padded}"
        remedy = f"set train.max_length: {context // count * count}"
        problems.append(Problem(statement, f"at most the model's context of {context} tokens", remedy))
    return problems


def _divides(heads: int, groups: int, count: int) -> bool:
    """Return whether each rank gets the same number of full query heads, and full key-value heads or a copy of one."""
    return heads % count == 0 and (groups % count == 0 or count % groups == 0)
