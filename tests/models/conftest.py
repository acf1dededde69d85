"""Tiny real tokenizers and models, made in the test: no file, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.models.load.scratch import build_causal_lm
from pipeline.models.tokenizer.chat_format import SPECIAL_TOKENS, chat_tokenizer
from pipeline.stage import ResolvedInput

TINY = {
    "llama": {
        "type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
    },
    "gpt2": {"type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.3},
    "qwen3": {
        "type": "qwen3",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
    },
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE tokenizer of 320 tokens with the default chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["the cat sat on the mat", "what is the opposite of hot", "say hello to the world", "one plus two is three"]
    backend.train_from_iterator(text * 20, trainer)
    return chat_tokenizer(backend, context_tokens=128)


@pytest.fixture(scope="session", params=["llama", "gpt2", "qwen3"])
def any_model(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    """A tiny model of each architecture with random weights, in evaluation mode."""
    return build_causal_lm(TINY[request.param], tokenizer, seed=1).eval()


@pytest.fixture(scope="session")
def llama(tokenizer: Any) -> Any:
    """A tiny llama with random weights, in evaluation mode; tests must not change it."""
    return build_causal_lm(TINY["llama"], tokenizer, seed=1).eval()


@pytest.fixture
def fresh_llama(tokenizer: Any) -> Any:
    """A tiny llama a test may change."""
    return build_causal_lm(TINY["llama"], tokenizer, seed=1).eval()


@pytest.fixture(scope="session")
def tiny_specs() -> dict[str, dict[str, Any]]:
    """The `model:` blocks of the tiny models."""
    return json.loads(json.dumps(TINY))


@pytest.fixture(scope="session")
def folder_input() -> Any:
    """Make the input a stage gets for a local folder."""

    def make(path: Path | str) -> ResolvedInput:
        return ResolvedInput(ref=str(path), name="m", kind="external", fingerprint="f", path=str(path))

    return make
