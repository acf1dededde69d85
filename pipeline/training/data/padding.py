"""Checks that a model computes the same logits with left padding as without it, because trl scores padded rows.

trl passes a mask for such rows, but no position ids. Architectures with relative positions are not affected. Those that
count positions from the first column, padding included, would score a response at other positions than it was sampled
at, so they get position ids. A recurrent state that absorbs the padding is an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pipeline.errors import PipelineError, Problem
from pipeline.models.agreement import disagreement, rounding_of
from pipeline.models.forward import evaluating
from pipeline.models.generate.steps import left_padded, plain_logits, trial_rows
from pipeline.models.save.verification import own_attention, plain_of
from pipeline.parallel.zero.zero3 import forward_without_engine
from pipeline.plain_data import KeywordArguments
from pipeline.stage import StageContext

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def needs_positions(
    ctx: StageContext, model: PreTrainedModel | PeftModel, prompts: Sequence[Sequence[int]], pad_id: int
) -> bool:
    """Return whether a model needs position ids for rows padded on the left, measured on two rows.

    Args:
        ctx: the stage's context.
        model: the model to train; if its weights are sharded, every process must call this.
        prompts: prompts whose tokens the test rows are made of.
        pad_id: padding token.

    Raises:
        PipelineError: padding changes the logits with and without position ids.
    """
    read, new = trial_rows(model, prompts)
    rows = [[*row, *more] for row, more in zip(read, new, strict=True)]
    ids_BT, mask_BT = left_padded(rows, pad_id, model.device)
    with evaluating(model), forward_without_engine(model), own_attention(plain_of(model)):
        alone = [plain_logits(model, row, 1) for row in rows]
        attempts: list[dict[str, Tensor]] = [{}]
        if "position_ids" in inspect.signature(model.forward).parameters:
            attempts.append({"position_ids": positions_of(mask_BT)})
        for extra in attempts:
            logits = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False, **extra).logits
            padded = [line[-len(row) :] for line, row in zip(logits, rows, strict=True)]
            difference, spread = disagreement(padded, alone)
            if difference <= rounding_of(model) * spread:
                return bool(extra)
    statement = f"padding on the left changes what this {model.config.model_type} model computes: its logits differ by "
    statement += (
        f"{difference:.2g} from those of a row alone, of {spread:.2g} between its likeliest token and its unlikeliest"
    )
    remedy = "use a stage of kind ppo, which pads on the right, or another architecture"
    raise PipelineError(Problem(statement, "no difference beyond rounding", remedy, stage=ctx.name))


def positions_of(mask_BT: Tensor) -> Tensor:
    """Return the position of each token in its own row without left padding; 0 for the padding."""
    return (mask_BT.cumsum(dim=1) - 1).clamp(min=0)


@contextmanager
def with_position_ids(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Inside the context, add `position_ids` derived from the mask to each forward pass of a model."""

    def tell(
        _: object, arguments: tuple[Any, ...], given: KeywordArguments
    ) -> tuple[tuple[Any, ...], KeywordArguments]:
        return arguments, {"position_ids": positions_of(given["attention_mask"]), **given}

    handle = model.register_forward_pre_hook(tell, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
