"""Conversations packed into rows, and whether they stay apart: measured on the model that trains, before it does.

`transformers` keeps packed sequences apart by their positions, where the architecture lets it: masks that are made of
positions do, learned position offsets, ALiBi and the state of a recurrent layer do not. No list of architectures is
kept here: the second of two packed conversations must have the logits it has alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pipeline.errors import PipelineError, Problem
from pipeline.models.agreement import disagreement, rounding_of
from pipeline.models.forward import evaluating
from pipeline.models.labels import IGNORE
from pipeline.models.precision import computing_in
from pipeline.parallel.zero.zero3 import computing_alone
from pipeline.stage import StageContext
from pipeline.training.arguments import device_of, precision_of

_TOKENS = 48
"""Of each of the two conversations at most so many are compared."""

_FINER = 0.1
"""Share of the usual rounding that is let pass: packed or alone, the same kernels multiply the same numbers."""

Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]


def packed(rows: Sequence[dict[str, list[int]]], length: int) -> list[dict[str, list[int]]]:
    """Join encoded conversations to rows of at most ``length`` tokens, the longest first; `seq_lengths` says where.

    Reference: best-fit decreasing, Ding et al. 2024, arXiv:2404.10830; the code is trl's.
    """
    from datasets import Dataset
    from trl import pack_dataset

    # What a conversation's first token is must not be learnt from the conversation before it.
    heads = [{**row, "labels": [IGNORE, *row["labels"][1:]]} for row in rows]
    joined: list[dict[str, list[int]]] = pack_dataset(Dataset.from_list(heads), length, "bfd").to_list()
    return joined


def refuse_unpackable(ctx: StageContext, model: Any, rows: Sequence[dict[str, Any]], collate: Collate) -> None:
    """Compare a conversation packed behind another with the same conversation alone.

    Args:
        ctx: of the stage.
        model: about to train; its weights may be sharded, then every process calls this.
        rows: packed, with `seq_lengths`; the first that holds two conversations is looked at.
        collate: makes the trainer's batches.

    Raises:
        PipelineError: the conversations see one another.
    """
    row = next((row for row in rows if len(row["seq_lengths"]) > 1), None)
    if row is None:  # no row holds two
        return
    length, other = row["seq_lengths"][:2]
    first, second = row["input_ids"][:length][:_TOKENS], row["input_ids"][length : length + other][:_TOKENS]
    kind = model.config.model_type
    with evaluating(model), computing_alone(model), _computing(ctx, model):
        try:
            packed = _logits(model, [first, second], collate)[len(first) :]
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise _refusal(ctx, f"this {kind} model takes no packed rows ({reason})") from error
        alone = _logits(model, [second], collate)
        tolerance = rounding_of(model)
    difference, spread = disagreement([packed], [alone])
    if difference > _FINER * tolerance * spread:
        raise _refusal(
            ctx,
            f"conversations packed into one row see one another in this {kind} model: the logits of the second one "
            f"differ by {difference:.2g} from those it has alone, of {spread:.2g} between its likeliest token and its "
            "unlikeliest",
        )


def _refusal(ctx: StageContext, found: str) -> PipelineError:
    return PipelineError(Problem(found, "no difference beyond rounding", "set train.mode: rows", stage=ctx.name))


def _logits(model: Any, conversations: list[list[int]], collate: Collate) -> Tensor:
    """Return the logits of a packed row, (T, V)."""
    ids = [token for one in conversations for token in one]
    batch = collate([{"input_ids": ids, "labels": ids, "seq_lengths": [len(one) for one in conversations]}])
    inputs = {key: value.to(model.device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    del inputs["labels"]
    logits_TV: Tensor = model(**inputs, use_cache=False).logits[0]
    return logits_TV


def _computing(ctx: StageContext, model: Any) -> Any:
    """Compute in the format of the weights; FlashAttention has half precision only, and no CPU."""
    is_flash = "flash" in str(ctx.runtime_report.get("attention", ""))
    if is_flash and model.device.type == "cpu":  # DeepSpeed and FSDP would move it once they prepare it
        model.to(device_of(ctx))
    return computing_in(precision_of(ctx) if is_flash else "fp32", model.device)
