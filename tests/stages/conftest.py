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

Gain = Callable[[str, str], float]
Learn = Callable[..., Any]


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
def gain_over_sft(chain: Any, load_plain: Callable[[Path], tuple[Any, Any]]) -> Callable[[Path], Gain]:
    """Return, for a model's folder, how much log p(response | prompt) gained on the chain's `sft`."""

    def over(folder: Path) -> Gain:
        policy, tokenizer = load_plain(folder)
        start, _ = load_plain(chain["sft"].path)

        def gain(prompt: str, response: str) -> float:
            new, old = (_response_logprob(model, tokenizer, prompt, response) for model in (policy, start))
            return new - old

        return gain

    return over


@pytest.fixture
def learn(
    tmp_path: Path, chain: Any, as_input: Any, run_stage: Callable[..., Any], write_jsonl: Callable[..., Path]
) -> Learn:
    """Run a kind on rows, from the chain's `sft` or another parent.

    ``rows`` is a list of them, a file, a `DataSource`, or the name of a file of the tiny world; ``model`` the name of a
    stage of the chain, or an input.
    """

    def run(kind: str, config: dict[str, Any], rows: Any, *, model: Any = "sft", **options: Any) -> Any:
        if isinstance(rows, str):
            rows = chain.recipe.parent / f"{rows}.jsonl"
        if isinstance(rows, list):
            rows = write_jsonl(tmp_path / f"rows-{len(list(tmp_path.glob('rows-*')))}.jsonl", rows)
        parent = as_input(chain[model]) if isinstance(model, str) else model
        return run_stage(kind, config, data={"data": rows}, inputs={"model": parent}, **options)

    return run


@pytest.fixture(scope="session")
def tiny_rows(chain: Any, read_rows: Callable[[Path], list[dict[str, Any]]]) -> Callable[[str], list[dict[str, Any]]]:
    """Return the rows of a file of the tiny world."""
    return lambda name: read_rows(chain.recipe.parent / f"{name}.jsonl")


@pytest.fixture
def pairs_too_long(tiny_rows: Callable[[str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Ten of the tiny pairs, the third and the eighth longer than the model's context."""
    rows = tiny_rows("pairs")[:10]
    rows[2]["rejected"] = rows[7]["chosen"] = "the colour is red . " * 20
    return rows


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
