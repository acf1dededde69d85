"""What tests of stages measure models by."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from single_rows import encode_pair
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="session")
def read_rows() -> Callable[[Path], list[dict[str, Any]]]:
    """Return the rows of a JSON Lines file."""
    return lambda path: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def load_plain() -> Callable[[Path], tuple[Any, Any]]:
    """Load model and tokenizer of a folder with transformers alone, as anyone would."""

    def load(folder: Path) -> tuple[Any, Any]:
        return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    return load


def _response_logprob(model: Any, tokenizer: Any, prompt: str, response: str) -> float:
    before, after = encode_pair(
        tokenizer, [{"role": "user", "content": prompt}], [{"role": "assistant", "content": response}]
    )
    ids = torch.tensor([before + after])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0, :-1].double(), dim=-1)
    # The token at position t is predicted at t - 1; the response starts after the prompt.
    picked = logprobs[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
    return float(picked[len(before) - 1 :].sum())


@pytest.fixture(scope="session")
def response_logprob() -> Callable[[Any, Any, str, str], float]:
    """Return log p(response | prompt) by one plain forward pass of one row, without padding."""
    return _response_logprob


@pytest.fixture(scope="session")
def probe_logits() -> Callable[[Any], torch.Tensor]:
    """Return a model's logits on fixed token ids."""

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(input_ids=torch.arange(5, 55).reshape(2, 25)).logits

    return logits


@pytest.fixture(scope="session")
def swapped_pairs(
    tmp_path_factory: pytest.TempPathFactory, chain: Any, write_jsonl: Callable[..., Path]
) -> dict[str, Path]:
    """Return the tiny pairs as they are, and with chosen and rejected exchanged."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [json.loads(line) for line in (chain.recipe.parent / "pairs.jsonl").read_text().splitlines()]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    return {"as they are": chain.recipe.parent / "pairs.jsonl", "swapped": write_jsonl(folder / "s.jsonl", swapped)}
