"""Writes a model and its tokenizer as an artifact: full weights in safetensors, and an adapter next to them.

The written files are read again and compared with the trained model (`written.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel
from transformers import GenerationConfig

from pipeline.models.forward import context_limit
from pipeline.models.generate.generation_config import save_settings, settings_of
from pipeline.models.load.adapters import Base, save_adapter_and_merge
from pipeline.models.load.pretrained import quiet
from pipeline.models.save.verification import compare_written, witness

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    rows: Sequence[Sequence[int]] = (),
    *,
    base: Base | None = None,
) -> None:
    """Write full weights, tokenizer and chat template into ``out``; an adapter is also written by itself.

    A `peft` model is merged and must not be used afterwards.

    Args:
        model: the trained model, with full weights.
        tokenizer: the tokenizer it was trained with.
        out: folder to write to.
        rows: token ids of some training rows, for the comparison.
        base: base model that the adapter records.

    Raises:
        PipelineError: the written model differs from the trained one.
    """
    out.mkdir(parents=True, exist_ok=True)
    trained = witness(model, rows)
    with quiet():
        if isinstance(model, PeftModel):
            model = save_adapter_and_merge(model, out / "adapter", base)
        model.config.pad_token_id = tokenizer.pad_token_id
        settings = settings_of(model, tokenizer)
        if settings is not None:
            model.config.eos_token_id = settings.eos_token_id
            model.generation_config = GenerationConfig()
        model.save_pretrained(out)
        if settings is not None:
            model.generation_config = settings
            if model.can_generate():
                save_settings(settings, out)
        save_tokenizer(tokenizer, out, context=context_limit(model))
    compare_written(out, model, trained)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, out: Path, *, context: int | None = None) -> None:
    """Write the tokenizer and its chat template, without the truncation and padding that its last call enabled.

    Args:
        tokenizer: tokenizer to write.
        out: folder to write to.
        context: the model's context in tokens, written as `model_max_length` if the tokenizer's is larger.
    """
    out.mkdir(parents=True, exist_ok=True)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    for machine_specific in ("is_local", "local_files_only", "name_or_path", "_commit_hash"):
        tokenizer.init_kwargs.pop(machine_specific, None)
    if context is not None and tokenizer.model_max_length > context:
        tokenizer.model_max_length = context
    with quiet():
        tokenizer.save_pretrained(out)
