"""Generation configs (`generation_config.json`): passed on to the trained model, ignored by our own sampling.

A published model's generation config says how to sample from it (`temperature`, `repetition_penalty`, several end
tokens). A stage copies it to the model it writes. Our own sampling never uses it: every option is given explicitly, and
a hidden penalty would make samples disagree with the model's probabilities.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from peft import PeftModel
from transformers import GenerationConfig

from pipeline.models.tokenizer.contract import end_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SETTINGS_FILE = "generation_config.json"


def settings_of(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig | None:
    """Return a model's generation config with the special tokens of the tokenizer it was trained with.

    If the tokenizer's end token is among the config's end tokens, all of them stay. Otherwise it comes first, and only
    those stay that are special tokens of the tokenizer: any other would be an ordinary word that ends the text.
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
    """Write a generation config without validation: published ones break rules that `save_pretrained` enforces."""
    settings.to_json_file(out / SETTINGS_FILE, use_diff=True, keys_to_pop=["compile_config"])


@contextmanager
def without_generation_config(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Keep `generate` from taking options it is not given from the model's own generation config."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    own = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = own
