"""The pretraining stage: the loss falls from chance, rows are made as the mode says, weights can be gone on from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.stage import ResolvedInput
from pipeline.stages.pretrain.config import Config
from pipeline.stages.pretrain.documents import cut_documents


def _history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_falls_from_chance(chain: Any) -> None:
    manifest = chain["base"].manifest
    losses = [row["loss"] for row in _history(chain["base"].path) if "loss" in row]
    # An untrained model gives each of 359 entries the same chance: ln 359 = 5.88. The first value averages 3 steps.
    assert abs(losses[0] - math.log(359)) < 0.6
    assert losses[-1] < 1.2
    # The curve is kept to eight digits.
    assert manifest.metrics["loss"] == pytest.approx(losses[-1], rel=1e-7)
    assert manifest.best["loss"] == pytest.approx(min(losses), rel=1e-7)


def test_a_saved_model_predicts_its_corpus_as_well_as_its_last_loss_says(chain: Any) -> None:
    folder = chain["base"].path
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    texts = [json.loads(line)["text"] for line in (chain.recipe.parent / "corpus.jsonl").read_text().splitlines()]
    total = count = 0.0
    with torch.no_grad():
        for text in texts[:60]:
            ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    assert total / count < chain["base"].manifest.metrics["loss"] + 0.15


def test_figures_of_the_manifest_by_hand(chain: Any) -> None:
    manifest = chain["base"].manifest
    # Embeddings and output layer 2 × 359 × 32; a layer: attention 4 × 32², MLP 3 × 32 × 64, norms 2 × 32; last norm.
    assert manifest.metrics["parameters"] == 2 * 359 * 32 + 2 * (4 * 32**2 + 3 * 32 * 64 + 2 * 32) + 32
    tokenizer = AutoTokenizer.from_pretrained(chain["base"].path)
    texts = [json.loads(line)["text"] for line in (chain.recipe.parent / "corpus.jsonl").read_text().splitlines()]
    lengths = [len(tokenizer(text)["input_ids"]) + 1 for text in texts]
    # 240 rows are 15 batches of 16 without a rest: 60 steps see every row four times.
    assert max(lengths) <= 64
    assert manifest.tokens == 4 * sum(lengths)
    assert manifest.tokens_per_s == pytest.approx(manifest.tokens / manifest.trainer_seconds, rel=0.01)
    assert manifest.lineage == {"base": "scratch", "adapters": []}
    assert (manifest.peak_memory_mib > 100, manifest.seconds > 0) == (True, True)


class _Letters:
    """One token per character, by its code."""

    eos_token_id = 0
    all_special_tokens: tuple[str, ...] = ()

    def __init__(self, start: str = "") -> None:
        self.start = start

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in (self.start if add_special_tokens else "") + text]}


def test_rows_by_hand() -> None:
    a, b, c, end = 97, 98, 99, 0
    rows = cut_documents(_Letters(), ["abcab", "c", "ab\0", ""], 4, "rows")
    # The end token closes every document once; a rest of one token predicts nothing and is left out.
    assert [row["input_ids"] for row in rows] == [[a, b, c, a], [b, end], [c, end], [a, b, end]]
    packed = cut_documents(_Letters(), ["abcab", "c", "ab\0"], 4, "packed")
    assert [row["input_ids"] for row in packed] == [[a, b, c, a], [b, end, c, end], [a, b, end]]
    assert cut_documents(_Letters(), [], 4, "packed") == []
    # A tokenizer that writes a start token before a text writes it here, before each document and once.
    started = cut_documents(_Letters("^"), ["abcab", "^c"], 4, "rows")
    assert [row["input_ids"] for row in started] == [[94, a, b, c], [a, b, end], [94, c, end]]


def test_goes_on_from_weights_and_measures_held_out_text(
    chain: Any, as_input: Any, run_stage: Callable[..., Any]
) -> None:
    from pipeline.recipe import DataSource

    source = DataSource(path=str(chain.recipe.parent / "corpus.jsonl"), held_out=0.2)
    train = {"max_steps": 8, "batch_size": 16, "learning_rate": 1e-3, "mode": "packed", "order": "file"}
    ran = run_stage("pretrain", {"train": train}, data={"data": source}, inputs={"init": as_input(chain["base"])})
    assert ran.history[0]["loss"] < 1.5  # not the 5.88 of a new model
    evaluated = [row["eval_loss"] for row in ran.history if "eval_loss" in row]
    assert len(evaluated) == 4  # a quarter of the steps each
    assert ran.outcome.result.best["eval_loss"] == pytest.approx(min(evaluated), rel=1e-7)
    assert ran.outcome.result.rows["train"] + ran.outcome.result.rows["held_out"] == 240
    assert 30 <= ran.outcome.result.rows["held_out"] <= 66  # a fifth, by text: equal texts stay together
    assert ran.outcome.result.lineage["parent"] == chain["base"].manifest.fingerprint
    assert ran.outcome.result.lineage["base"] == "scratch"


def test_a_field_the_architecture_does_not_have_is_bad_input(
    chain: Any, as_input: Any, run_stage: Callable[..., Any]
) -> None:
    ran = run_stage(
        "pretrain",
        {"model": {"type": "llama", "hiden_size": 32}, "train": {"max_steps": 1}},
        data={"data": chain.recipe.parent / "corpus.jsonl"},
        inputs={"tokenizer": as_input(chain["tokenizer"])},
        expect="failed",
    )
    assert ran.outcome.bad_input
    assert "model.hiden_size" in str(ran.outcome.problems[0]) and "hidden_size" in str(ran.outcome.problems[0])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"model": {"type": "llama"}, "init": "x", "tokenizer": "t"},
            "both `model` and `init`; expected exactly one of them",
        ),
        ({"tokenizer": "t"}, "neither `model` nor `init`; expected exactly one of them"),
        ({"model": {"type": "llama"}}, "no `tokenizer`; expected a tokenizer for the new model. Add `tokenizer: NAME`"),
    ],
)
def test_contradictions_are_named(fields: dict[str, Any], problem: str) -> None:
    assert [str(contradiction) for contradiction in Config(data="d", **fields).check()] == [problem]


def test_weights_to_go_on_from_get_a_row_for_every_token(
    chain: Any, as_input: Any, run_stage: Callable[..., Any], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chain["base"].path)
    tokenizer.add_tokens(["<|new|>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "more")
    more = ResolvedInput(ref="more", name="more", kind="tokenizer", fingerprint="f" * 64, path=str(tmp_path / "more"))
    (tmp_path / "texts.jsonl").write_text('{"text": "<|new|> it is red ."}\n' * 8)
    config = {"control_tokens": "parsed", "train": {"max_steps": 1, "batch_size": 8}}
    inputs = {"init": as_input(chain["base"]), "tokenizer": more}
    ran = run_stage("pretrain", config, data={"data": tmp_path / "texts.jsonl"}, inputs=inputs)
    assert any(note.startswith("the embedding grows from") for note in ran.notes)
    assert AutoModelForCausalLM.from_pretrained(ran.out).config.vocab_size == len(tokenizer)
