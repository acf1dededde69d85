"""Packs conversations into rows, and checks on the model itself, before training, that they do not see one another.

`transformers` separates packed sequences by their position ids if the architecture allows it: attention masks can be
derived from positions, but learned position offsets, ALiBi and recurrent states ignore them. There is no list of
architectures: the second of two packed conversations must have the same logits as alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from torch import Tensor
from trl import pack_dataset

from pipeline.errors import PipelineError, Problem
from pipeline.labels import IGNORE
from pipeline.models.agreement import disagreement, rounding_of
from pipeline.models.cpu.precision import computing_in
from pipeline.models.forward import evaluating
from pipeline.parallel.zero.zero3 import forward_without_engine
from pipeline.plain_data import KeywordArguments
from pipeline.stage import StageContext
from pipeline.training.arguments import attention_name, device_of, precision_of
from pipeline.training.data.encoding import EncodedRow

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from peft import PeftModel
    from transformers import PreTrainedModel

_TOKENS = 48
"""Most tokens of each of the two conversations that are compared."""

_FINER = 0.1
"""Fraction of the usual rounding that is accepted: packed or alone, the same kernels multiply the same numbers."""

Collate = Callable[[Sequence[EncodedRow]], KeywordArguments]


def packed(rows: Sequence[EncodedRow], length: int) -> list[EncodedRow]:
    """Pack encoded conversations into rows of at most ``length`` tokens, the longest first.

    `seq_lengths` of a row holds the lengths of its conversations.

    Reference: best-fit decreasing, Ding et al. 2024, arXiv:2404.10830; the code is trl's.
    """
    # The first token of a conversation must not be predicted from the conversation before it.
    heads = [{**row, "labels": [IGNORE, *row["labels"][1:]]} for row in rows]
    joined: list[EncodedRow] = pack_dataset(Dataset.from_list(heads), length, "bfd").to_list()
    return joined


def refuse_unpackable(
    ctx: StageContext, model: PreTrainedModel | PeftModel, rows: Sequence[EncodedRow], collate: Collate
) -> None:
    """Check that a conversation packed after another one has the same logits as alone.

    Args:
        ctx: the stage's context.
        model: the model to train; if its weights are sharded, every process must call this.
        rows: packed rows with `seq_lengths`; the first one with two conversations is checked.
        collate: the trainer's collator.

    Raises:
        PipelineError: the conversations see one another.
    """
    row = next((row for row in rows if len(row["seq_lengths"]) > 1), None)
    if row is None:  # no row has two conversations
        return
    length, other = row["seq_lengths"][:2]
    first, second = row["input_ids"][:length][:_TOKENS], row["input_ids"][length : length + other][:_TOKENS]
    kind = model.config.model_type
    with evaluating(model), forward_without_engine(model), _computing(ctx, model):
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


def _refusal(ctx: StageContext, statement: str) -> PipelineError:
    return PipelineError(Problem(statement, "no difference beyond rounding", "set train.mode: rows", stage=ctx.name))


def _logits(model: PreTrainedModel | PeftModel, conversations: list[list[int]], collate: Collate) -> Tensor:
    """Return the logits of a packed row, (T, V)."""
    ids = [token for one in conversations for token in one]
    batch = collate([{"input_ids": ids, "labels": ids, "seq_lengths": [len(one) for one in conversations]}])
    inputs = {key: value.to(model.device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    del inputs["labels"]
    logits_TV: Tensor = model(**inputs, use_cache=False).logits[0]
    return logits_TV


def _computing(ctx: StageContext, model: PreTrainedModel | PeftModel) -> AbstractContextManager[Any]:
    """Return a context that computes in the dtype of the weights, or in half precision for FlashAttention."""
    is_flash = "flash" in attention_name(ctx)
    if is_flash and model.device.type == "cpu":  # DeepSpeed and FSDP move a model only when they prepare it
        model.to(device_of(ctx))
    return computing_in(precision_of(ctx) if is_flash else "fp32", model.device)
