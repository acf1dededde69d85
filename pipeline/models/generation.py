"""The settings a model generates with (`generation_config.json`): whose they are, and when they count.

A published model says how it wants to be sampled (`temperature`, `repetition_penalty`, several end tokens). A stage
hands that on to what it makes. Our own sampling never goes by it: it is given what it needs, and a hidden penalty
would make the text another one than the probabilities say.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import GenerationConfig

from pipeline.models.contract import end_ids

SETTINGS_FILE = "generation_config.json"


def settings_of(model: Any, tokenizer: Any) -> GenerationConfig | None:
    """Return a model's settings with the special tokens of the tokenizer it was trained with.

    All end tokens stay where the tokenizer's is among them. Else it comes first, and of the others only those stay
    that are special tokens there: another would be a word, and text would end at it.
    """
    known = getattr(model, "generation_config", None)
    if known is None:
        return None
    settings = copy.deepcopy(known)
    eos = [known.eos_token_id] if isinstance(known.eos_token_id, int) else list(known.eos_token_id or [])
    if tokenizer.eos_token_id not in eos:
        special = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
        eos = [tokenizer.eos_token_id, *(token for token in eos if token in special)]
    eos += [token for token in end_ids(tokenizer) if token not in eos]  # the template's end of a turn
    settings.eos_token_id = eos[0] if len(eos) == 1 else eos
    settings.pad_token_id = tokenizer.pad_token_id
    settings.bos_token_id = tokenizer.bos_token_id
    return settings


def save_settings(settings: GenerationConfig, out: Path) -> None:
    """Write settings as they are: published ones break rules that `save_pretrained` holds those of others to."""
    settings.to_json_file(out / SETTINGS_FILE, use_diff=True, keys_to_pop=["compile_config"])


@contextmanager
def only_what_is_given(model: Any) -> Iterator[None]:
    """Keep `generate` from filling up what it is given with the model's own settings."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    own = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = own
