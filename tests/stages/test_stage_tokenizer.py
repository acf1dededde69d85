"""The tokenizer stage: learns entries, loses no text, keeps special tokens whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pipeline.labels import IGNORE
from pipeline.models.tokenizer.chat_format import SPECIAL_TOKENS
from pipeline.training.data.encoding import encode_messages


@pytest.fixture(scope="module")
def tokenizer(chain: Any) -> Any:
    return AutoTokenizer.from_pretrained(chain["tokenizer"].path)


def test_figures_of_the_manifest_by_hand(chain: Any, tokenizer: Any) -> None:
    import json

    manifest = chain["tokenizer"].manifest
    texts = [json.loads(line)["text"] for line in (chain.recipe.parent / "corpus.jsonl").read_text().splitlines()]
    tokens = sum(len(tokenizer(text)["input_ids"]) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    assert manifest.metrics == {"vocab_size": len(tokenizer), "bytes_per_token": round(size / tokens, 3)}
    # 256 bytes and 5 special tokens leave 99 merges, enough for the few words there are.
    assert len(tokenizer) <= 360
    assert manifest.metrics["bytes_per_token"] > 3
    assert manifest.tokens == tokens
    assert manifest.rows == {"train": 240}


@given(text=st.text(max_size=80))
def test_any_text_comes_back(tokenizer: Any, text: str) -> None:
    special = any(token in text for token in SPECIAL_TOKENS)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert special or tokenizer.decode(ids) == text


def test_special_tokens_come_first_and_are_never_split(tokenizer: Any) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer("a<|end|>b", add_special_tokens=False)["input_ids"].count(1) == 1


def test_special_tokens_written_in_the_corpus_are_not_learnt(
    run_stage: Callable[..., Any], write_jsonl: Any, tmp_path: Path
) -> None:
    source = write_jsonl(tmp_path / "c.jsonl", [{"text": "say <|end|> or <|mark|> now"}] * 50)
    config = {"vocab_size": 320, "special_tokens": ["<|mark|>"]}
    made = AutoTokenizer.from_pretrained(run_stage("tokenizer", config, data={"data": source}).out)
    assert made.convert_tokens_to_ids("<|mark|>") == 5
    learnt = [entry for entry, index in made.get_vocab().items() if index > 5 + 256]
    assert learnt
    assert not [entry for entry in learnt if "|" in entry or "end" in entry or "mark" in entry]


def test_the_recipes_template_is_stored(run_stage: Callable[..., Any], chain: Any) -> None:
    template = (
        "{%- for message in messages -%}{%- if message['role'] == 'assistant' -%}{{- 'A:' -}}"
        "{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}"
        "{%- else -%}{{- 'Q:' + message['content'] -}}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- 'A:' -}}{%- endif -%}"
    )
    data = {"data": chain.recipe.parent / "corpus.jsonl"}
    config = {"vocab_size": 300, "chat_template": template}
    made = AutoTokenizer.from_pretrained(run_stage("tokenizer", config, data=data).out)
    asked = [{"role": "user", "content": "hi"}]
    assert made.apply_chat_template(asked, tokenize=False, add_generation_prompt=True) == "Q:hiA:"


def test_the_end_is_learnt_where_the_template_writes_none(run_stage: Callable[..., Any], chain: Any) -> None:
    template = "{%- for message in messages -%}{{- message['role'] + message['content'] -}}{%- endfor -%}"
    data = {"data": chain.recipe.parent / "corpus.jsonl"}
    config = {"vocab_size": 300, "chat_template": template}
    made = AutoTokenizer.from_pretrained(run_stage("tokenizer", config, data=data).out)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    (row,) = encode_messages(made, [{"messages": turns}]).rows
    assert made.decode(row["input_ids"]) == "userhiassistantyes<|end|>"
    learnt = [label for label in row["labels"] if label != IGNORE]
    assert made.decode(learnt).endswith("yes<|end|>")
    assert learnt[-1] == made.eos_token_id
