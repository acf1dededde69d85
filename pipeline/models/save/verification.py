"""Verifies that the written files of a model are what was trained, by reading them again.

Two things are compared. Every tensor in the files must equal the saved one, bit for bit. And the logits of a few rows
must equal those of the model before its adapter was merged and anything was written; that reveals a wrong merge, a lost
weight tie or a wrong configuration.

Memory does not double. On a CPU the files are memory-mapped, so the system can drop their pages. On a GPU the second
model is copied only if it takes at most half of the free memory; otherwise the tensors are compared, and the logits of
the merged model in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pipeline.errors import ExitCode, PipelineError, Problem
from pipeline.models.agreement import disagreement, rounding_of
from pipeline.models.forward import context_limit, evaluating
from pipeline.models.load.pretrained import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROWS, _TOKENS = 2, 32
"""Training rows that are compared, and the most tokens of each."""

_WORK = 2e10
"""Most weights times tokens of the comparison: a few seconds of one core."""

KEPT = "the last checkpoint is kept; run it again, and report it with the model's type if it comes back"


@dataclass(frozen=True)
class Witness:
    """A model's logits of some rows.

    Attributes:
        rows: token ids.
        logits: logits of each row by itself, on the CPU.
        rounding: fraction of the logits' spread that may be rounding, in the format they were computed in.
    """

    rows: list[list[int]]
    logits: list[Tensor]
    rounding: float


def witness(model: PreTrainedModel | PeftModel, rows: Sequence[Sequence[int]] = ()) -> Witness:
    """Compute a model's logits of some rows, and of one row of tokens spread evenly over its vocabulary.

    Args:
        model: a causal language model or a reward model, with or without an adapter.
        rows: token ids, of which the first few are used.
    """
    vocabulary = plain_of(model).get_input_embeddings().weight.shape[0]
    longest = min(_TOKENS, context_limit(model) or _TOKENS)
    vocabulary_row = [vocabulary * i // longest for i in range(longest)]
    taken = _shortened(model, [vocabulary_row, *([int(token) for token in row[:longest]] for row in rows if len(row))])
    return Witness(taken, _logits(model, taken), rounding_of(model))


def refuse_other(model: PreTrainedModel | PeftModel, trained: Witness, what: str, remedy: str = KEPT) -> None:
    """Compare a model's logits with those of the trained model.

    Raises:
        PipelineError: they differ by more than rounding.
    """
    difference, spread = disagreement(_logits(model, trained.rows), trained.logits)
    if difference > max(trained.rounding, rounding_of(model)) * spread:
        statement = f"the logits of {what} differ by {difference:.2g} from those of the trained model"
        expected = f"at most rounding, of a spread of {spread:.2g}"
        raise PipelineError(Problem(statement, expected, remedy), exit_code=ExitCode.FAILED)


def compare_written(folder: Path, model: PreTrainedModel | PeftModel, trained: Witness) -> None:
    """Read a model's files again and compare them with the trained model.

    Args:
        folder: the written folder.
        model: the saved model, with its adapter merged.
        trained: the trained model's logits, from before the merge.

    Raises:
        PipelineError: the files lack a tensor, or differ from the trained model.
    """
    with quiet():
        read, info = type(model).from_pretrained(folder, dtype="auto", use_safetensors=True, output_loading_info=True)
    if info["missing_keys"]:
        statement = f"the written weights lack {sorted(info['missing_keys'])[0]}"
        raise PipelineError(Problem(statement, "all that was trained", KEPT), exit_code=ExitCode.FAILED)
    _refuse_other_tensors(read.state_dict(), model.state_dict())
    if _has_room(model, read):
        refuse_other(read.to(model.device), trained, "what was written")
    else:
        refuse_other(model, trained, "the weights with the adapter folded in")


def _refuse_other_tensors(read: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    for name, tensor in saved.items():
        if name in read and not _is_same(read[name], tensor):
            statement = f"{name} in the written files is not what was trained"
            raise PipelineError(Problem(statement, "the same numbers", KEPT), exit_code=ExitCode.FAILED)


def _is_same(read: Tensor, saved: Tensor) -> bool:
    """Whether two tensors hold the same values; NaN equals NaN."""
    if read.shape != saved.shape:
        return False
    saved = saved.detach().to("cpu", read.dtype)
    return bool(torch.equal(read, saved)) or bool(((read == saved) | (read.isnan() & saved.isnan())).all())


def plain_of(model: PreTrainedModel | PeftModel) -> Any:
    """Return the model beneath an adapter, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _shortened(model: PreTrainedModel | PeftModel, rows: list[list[int]]) -> list[list[int]]:
    """Return the first rows, cut to fewer tokens for a large model."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    first_rows = rows[: _ROWS + 1]
    most = max(8, int(_WORK / max(1, weights)) // len(first_rows))
    return [row[:most] for row in first_rows]


def _logits(model: PreTrainedModel | PeftModel, rows: list[list[int]]) -> list[Tensor]:
    with evaluating(model), torch.inference_mode(), own_attention(plain_of(model)), _without_autocast(model):
        outputs = [model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits for row in rows]
    return [logits[0].float().cpu() for logits in outputs]


@contextmanager
def _without_autocast(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Compute in the dtype of the weights: accelerate wraps the forward pass of a prepared model in autocast."""
    prepared, plain = vars(model).get("forward"), vars(model).get("_original_forward")
    if plain is not None:
        model.forward = plain
    try:
        with torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        if plain is not None:
            model.forward = prepared


@contextmanager
def own_attention(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Use torch's own attention inside the context, in this process alone.

    FlashAttention supports neither fp32 nor a CPU. Under sequence parallelism DeepSpeed has replaced the attention
    function by an exchange between ranks, and the other ranks do not take part here.
    """
    kernel = str(model.config.get_text_config()._attn_implementation)
    exchange = ALL_ATTENTION_FUNCTIONS.get(kernel)
    is_exchange = "Ulysses" in getattr(exchange, "__qualname__", "")
    if is_exchange:
        del ALL_ATTENTION_FUNCTIONS[kernel]
    if "flash" in kernel:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        if "flash" in kernel:
            model.set_attn_implementation(kernel)
        if is_exchange:
            ALL_ATTENTION_FUNCTIONS[kernel] = exchange


def _has_room(model: PreTrainedModel | PeftModel, read: Any) -> bool:
    """Whether memory suffices for a second copy of the model; on a CPU that copy is memory-mapped."""
    if model.device.type != "cuda":
        return True
    need = sum(tensor.numel() * tensor.element_size() for tensor in read.state_dict().values())
    free, _ = torch.cuda.mem_get_info(model.device)
    return bool(2 * need <= free)
