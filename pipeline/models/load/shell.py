"""A checkpoint without its weights, for what is computed elsewhere: its configuration, context and end tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from pipeline.models.load.pretrained import explained, quiet, refuse_unsafe, source_of
from pipeline.stage import ResolvedInput

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_shell(model_input: ResolvedInput, trust_remote_code: bool = False) -> PreTrainedModel:
    """Return a causal language model on torch's meta device, with the checkpoint's generation config.

    Raises:
        PipelineError: no safetensors, an adapter alone, no configuration, or code not allowed.
    """
    source = source_of(model_input)
    refuse_unsafe(source)
    with quiet(), explained(source, "model"), torch.device("meta"):
        config = AutoConfig.from_pretrained(source.place, revision=source.revision, trust_remote_code=trust_remote_code)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    try:
        model.generation_config = GenerationConfig.from_pretrained(source.place, revision=source.revision)
    except OSError:  # it has none: the defaults of its configuration stay
        return model
    return model
