"""Conversations to tokens: exactly what the assistant says is learnt, its end token included."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
from single_rows import encode_conversation, encode_pair, encode_prompt

from pipeline.errors import PipelineError
from pipeline.labels import IGNORE
from pipeline.training.fitting import context_length

TALK = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "which colour has the cat ?"},
    {"role": "assistant", "content": "it is red ."},
    {"role": "user", "content": "and the dog ?"},
    {"role": "assistant", "content": "the colour is blue ."},
]


def _with_template(tokenizer: Any, template: str) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def _without_markers(tokenizer: Any) -> Any:
    template = tokenizer.chat_template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    assert "generation -%}" not in template
    return _with_template(tokenizer, template)


def test_labels_are_what_the_assistant_says_and_its_end_token(tiny_tokenizer: Any) -> None:
    encoded = encode_conversation(tiny_tokenizer, TALK)
    text = tiny_tokenizer.decode(encoded.ids)
    assert text == (
        "<|system|>be kind<|end|><|user|>which colour has the cat ?<|end|><|assistant|>it is red .<|end|>"
        "<|user|>and the dog ?<|end|><|assistant|>the colour is blue .<|end|>"
    )
    learnt = [token for token in encoded.labels if token != IGNORE]
    assert tiny_tokenizer.decode(learnt) == "it is red .<|end|>the colour is blue .<|end|>"
    assert all(label in (IGNORE, token) for label, token in zip(encoded.labels, encoded.ids, strict=True))
    # The token that opens the assistant's turn is given by the prompt, so it is not learnt.
    assert tiny_tokenizer.convert_tokens_to_ids("<|assistant|>") not in learnt


def test_a_template_without_markers_gives_the_same_labels(tiny_tokenizer: Any) -> None:
    assert encode_conversation(_without_markers(tiny_tokenizer), TALK) == encode_conversation(tiny_tokenizer, TALK)


@pytest.mark.parametrize("spelling", ["{% generation %}", "{%- generation -%}", "{%-  generation %}", "{%generation%}"])
def test_every_spelling_of_the_markers_is_seen(tiny_tokenizer: Any, spelling: str) -> None:
    """A template that rewrites earlier turns can only be masked by its markers, so the fallback would refuse it."""
    template = (
        "{%- for message in messages -%}{%- if message['role'] == 'assistant' -%}"
        "{{- '<|assistant|>' -}}" + spelling + "{{- message['content'] + '<|end|>' -}}{% endgeneration %}"
        "{%- else -%}{{- loop.length ~ message['content'] + '<|end|>' -}}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
    )
    encoded = encode_conversation(_with_template(tiny_tokenizer, template), TALK)
    learnt = [token for token in encoded.labels if token != IGNORE]
    assert tiny_tokenizer.decode(learnt).replace("\n", "") == "it is red .<|end|>the colour is blue .<|end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused_without_markers(tiny_tokenizer: Any) -> None:
    template = (
        "{%- for message in messages -%}{{- loop.length ~ message['content'] + '<|end|>' -}}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
    )
    other = _with_template(tiny_tokenizer, template)
    with pytest.raises(PipelineError, match=r"cannot be masked: the chat template begins an answer otherwise"):
        encode_conversation(other, TALK)
    with pytest.raises(PipelineError, match="is rendered otherwise once the answer follows"):
        encode_pair(other, TALK[:2], TALK[2:3])


def test_a_pair_is_its_prompt_and_a_response_that_ends(tiny_tokenizer: Any) -> None:
    prompt, response = encode_pair(tiny_tokenizer, TALK[:2], TALK[2:3])
    assert prompt == encode_prompt(tiny_tokenizer, TALK[:2])
    whole = tiny_tokenizer.apply_chat_template(TALK[:3], tokenize=True, return_dict=True)["input_ids"]
    assert prompt + response == list(whole)
    assert tiny_tokenizer.decode(prompt).endswith("<|assistant|>")
    assert tiny_tokenizer.decode(response) == "it is red .<|end|>"


def _model(**config: Any) -> Any:
    return SimpleNamespace(config=SimpleNamespace(**config))


def test_rows_are_at_most_as_long_as_the_context() -> None:
    assert context_length(_model(max_position_embeddings=64), None) == 64
    assert context_length(_model(n_positions=128), None) == 128
    assert context_length(_model(max_position_embeddings=64), 32) == 32
    assert context_length(_model(max_position_embeddings=131_072), None) == 2048
    assert context_length(_model(max_position_embeddings=131_072), 4096) == 4096
    assert context_length(_model(), None) == 2048
    with pytest.raises(
        PipelineError, match=r"train.max_length is 65; expected at most the model's context of 64 tokens"
    ):
        context_length(_model(max_position_embeddings=64), 65)
