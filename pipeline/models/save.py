"""A model and its tokenizer written as an artifact keeps them: whole weights in safetensors, an adapter beside them.

What was written is read again and compared with the model that was given (`written.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import GenerationConfig

from pipeline.models.adapters import save_adapter_and_merge
from pipeline.models.load import quiet
from pipeline.models.written import compare_written, witness


def save_model(model: Any, tokenizer: Any, out: Path, rows: Sequence[Sequence[int]] = ()) -> None:
    """Write full weights, tokenizer and chat template into ``out``; an adapter is written beside its merged weights.

    A `peft` model is merged and must not be used afterwards.

    Args:
        model: with all its weights.
        tokenizer: saved beside it.
        out: folder that is written.
        rows: token ids of some of the rows it was trained on, for the comparison.

    Raises:
        PipelineError: what was written is not what was trained.
    """
    out.mkdir(parents=True, exist_ok=True)
    trained = witness(model, rows)
    with quiet():
        if isinstance(model, PeftModel):
            model = save_adapter_and_merge(model, out / "adapter")
        _set_generation(model, tokenizer)
        model.save_pretrained(out)
        save_tokenizer(tokenizer, out)
    compare_written(out, model, trained)


def save_tokenizer(tokenizer: Any, out: Path) -> None:
    """Write the tokenizer and its chat template, without the truncation and padding its last call left switched on."""
    out.mkdir(parents=True, exist_ok=True)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    for where_from in ("is_local", "local_files_only", "name_or_path", "_commit_hash"):
        tokenizer.init_kwargs.pop(where_from, None)
    with quiet():
        tokenizer.save_pretrained(out)


def _set_generation(model: Any, tokenizer: Any) -> None:
    model.config.pad_token_id = tokenizer.pad_token_id
    if not hasattr(model, "generation_config") or model.generation_config is None:
        return
    known = model.generation_config.eos_token_id
    eos = [known] if isinstance(known, int) else list(known or [])
    if tokenizer.eos_token_id not in eos:
        eos = [tokenizer.eos_token_id]
    kept = {"eos_token_id": eos[0] if len(eos) == 1 else eos, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id, **kept)
    model.config.eos_token_id = kept["eos_token_id"]
