"""How a batch is cut into micro-batches cannot change the result: 16 × 1 = 4 × 4 = 1 × 16, for every objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

MODEL = {"type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "pretrain": ("corpus.jsonl", "tokenizer", "tokenizer", {"model": MODEL}),
    "sft": ("demos.jsonl", "model", "base", {}),
    "reward": ("pairs.jsonl", "model", "sft", {}),
    "dpo": ("pairs.jsonl", "model", "sft", {}),
}


@pytest.mark.parametrize("kind", CASES)
def test_micro_batches_of_1_4_and_16_rows_give_the_same_weights(
    kind: str, chain: Any, as_input: Any, run_stage: Callable[..., Any]
) -> None:
    file, field, parent, extra = CASES[kind]
    # Plain SGD: Adam divides by the size of a gradient, which turns rounding of near-zero gradients into whole steps.
    train = {"max_steps": 5, "batch_size": 16, "learning_rate": 0.1, "optim": "sgd", "logging_steps": 1}
    config = {"train": {**train, "lr_scheduler_type": "constant"}, **extra}
    ran = {
        micro_batch: run_stage(
            kind,
            config,
            data={"data": chain.recipe.parent / file},
            inputs={field: as_input(chain[parent])},
            compute={"micro_batch": micro_batch},
        )
        for micro_batch in (1, 4, 16)
    }
    weights = {size: load_file(each.out / "model.safetensors") for size, each in ran.items()}
    moved = 0.0
    start = None if kind == "pretrain" else load_file(chain[parent].path / "model.safetensors")
    for name, expected in weights[16].items():
        for size in (1, 4):
            torch.testing.assert_close(weights[size][name], expected, atol=1e-5, rtol=0)
        if start is not None and name in start:
            moved = max(moved, (expected - start[name]).abs().max().item())
    assert start is None or moved > 1e-3  # a hundred times what may differ
    losses = {size: [row["loss"] for row in each.history] for size, each in ran.items()}
    assert losses[1] == pytest.approx(losses[16], abs=1e-5)
    assert losses[4] == pytest.approx(losses[16], abs=1e-5)
    assert len(losses[16]) == 5
