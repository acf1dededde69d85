from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.models.load.scratch import build_causal_lm


def test_tokenizer_sets_vocabulary_and_special_ids(any_model: Any, tokenizer: Any) -> None:
    config = any_model.config
    assert (config.vocab_size, config.eos_token_id, config.pad_token_id, config.bos_token_id) == (
        len(tokenizer),
        1,
        0,
        None,
    )
    assert any_model.get_input_embeddings().weight.shape[0] == len(tokenizer)


def test_weights_follow_the_seed_alone(tokenizer: Any, tiny_specs: dict[str, Any]) -> None:
    def weights(seed: int) -> torch.Tensor:
        return torch.cat([w.flatten() for w in build_causal_lm(tiny_specs["llama"], tokenizer, seed).parameters()])

    first = weights(5)
    state = torch.get_rng_state()
    torch.rand(7)
    assert torch.equal(weights(5), first)
    assert not torch.equal(weights(6), first)
    torch.set_rng_state(state)
    weights(5)
    assert torch.equal(torch.get_rng_state(), state)


def test_all_wrong_fields_are_told_at_once(tokenizer: Any) -> None:
    with pytest.raises(PipelineError) as caught:
        build_causal_lm({"type": "llama", "hidden_sise": 32, "num_layer": 2, "vocab_size": 9}, tokenizer, 0)
    assert [str(problem) for problem in caught.value.problems] == [
        "unknown field model.hidden_sise; expected a field of the llama configuration. Did you mean `hidden_size`?",
        "unknown field model.num_layer; expected a field of the llama configuration. Did you mean `num_hidden_layers`?",
        "model.vocab_size is set; it comes from the tokenizer. Remove it",
    ]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"type": "lama"}, "Did you mean `llama`?"),
        ({}, "model has no `type`"),
        ({"type": "bert_japanese"}, "model.type is `bert_japanese`; expected a causal model of transformers"),
        ({"type": "llama", "hidden_size": "wide"}, "expected int, got str"),
        ({"type": "llama", "hidden_size": 30, "num_attention_heads": 4}, "not a multiple"),
    ],
)
def test_bad_model_block_is_one_line(tokenizer: Any, spec: dict[str, Any], says: str) -> None:
    with pytest.raises(PipelineError) as caught:
        build_causal_lm(spec, tokenizer, 0)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_alias_of_a_field_works(tokenizer: Any) -> None:
    # GPT-2 calls its width n_embd; hidden_size is the name all architectures share.
    model = build_causal_lm({"type": "gpt2", "hidden_size": 16, "n_head": 2, "n_layer": 1}, tokenizer, 0)
    assert model.config.n_embd == 16
