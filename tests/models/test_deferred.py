"""A model built without its weights gets those it would have had, bit for bit, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.models.deferred import Deferred
from pipeline.parallel.cutting import ANATOMY

SHAPE = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}


def _built(kind: str, tied: bool) -> Any:
    more = {"num_key_value_heads": 2, "intermediate_size": 96} if kind != "gpt2" else {}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, vocab_size=61, tie_word_embeddings=tied, **special, **SHAPE, **more)
    torch.manual_seed(11)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", sorted(ANATOMY))
def test_weights_are_those_of_a_model_built_at_once(kind: str, tied: bool) -> None:
    whole = _built(kind, tied)
    after = torch.rand(3)
    with Deferred() as later:
        made = _built(kind, tied)
    assert torch.equal(torch.rand(3), after)  # as many numbers were drawn
    assert all(p.is_meta for p in made.parameters() if p.dim() > 1)
    for name, buffer in whole.named_buffers():
        assert torch.equal(made.get_buffer(name), buffer), name
    later.fill(made)
    for name, parameter in whole.named_parameters():
        assert torch.equal(made.get_parameter(name), parameter), name
    assert (made.get_input_embeddings().weight is made.get_output_embeddings().weight) is tied
    ids = torch.arange(3, 13)[None]
    assert torch.equal(made.eval()(input_ids=ids).logits, whole.eval()(input_ids=ids).logits)


def test_only_what_is_asked_for_gets_memory() -> None:
    with Deferred() as later:
        made = _built("llama", tied=False)
    later.fill(made.model.layers[1])
    assert not any(p.is_meta for p in made.model.layers[1].parameters())
    assert all(p.is_meta for p in made.model.layers[0].parameters() if p.dim() > 1)
    whole = _built("llama", tied=False)
    for name, parameter in whole.model.layers[1].named_parameters():
        assert torch.equal(made.model.layers[1].get_parameter(name), parameter)
