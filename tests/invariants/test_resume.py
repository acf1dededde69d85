"""A stage stopped anywhere and run again makes the same bytes as one that was never stopped.

In this process and at every kind of step; `test_kills.py` does it to real processes without asking them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stopping import StopAfter

LORA = {"adapter": {"r": 2, "dropout": 0.2}}
KINDS: dict[str, dict[str, Any]] = {
    "pretrain": {"data": "corpus.jsonl", "input": "tokenizer", "as": "tokenizer"},
    "sft": {"data": "demos.jsonl", "input": "base", "as": "model"},
    "reward": {"data": "pairs.jsonl", "input": "sft", "as": "model", "config": LORA},
    # 160 pairs in one batch of tokens a side: the stage is also asked after each of the two reference passes, once.
    "dpo": {"data": "pairs.jsonl", "input": "sft", "as": "model", "config": LORA, "asked before": 2},
}
MODEL = {"type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
STEPS = 24


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_twice_gives_the_bytes_of_one_session(
    kind: str, chain: Any, as_input: Any, run_stage: Callable[..., Any], tmp_path: Path
) -> None:
    case = KINDS[kind]
    # 24 steps logged every fourth; 10 to 15 of them are an epoch, so that the second stop falls into the second.
    train = {"max_steps": STEPS, "batch_size": 16, "learning_rate": 1e-3, "logging_steps": 4}
    config = {"train": train, **({"model": MODEL} if kind == "pretrain" else {}), **case.get("config", {})}
    source = chain.recipe.parent / case["data"]

    def run(out: Path, **more: Any) -> Any:
        inputs = {case["as"]: as_input(chain[case["input"]])}
        return run_stage(kind, config, data={"data": source}, inputs=inputs, out=out, pictures=True, **more)

    whole = run(tmp_path / "whole")
    first = run(tmp_path / "cut", stopping=StopAfter(5 + case.get("asked before", 0)), expect="stopped")
    assert "stopped as asked at step 6 of 24" in str(first.outcome.problems[0])
    second = run(tmp_path / "cut", stopping=StopAfter(11), expect="stopped")
    assert "resumes at step 6 of 24" in second.notes
    # Another micro-batch would change rounding, but how often checkpoints are saved changes nothing.
    last = run(tmp_path / "cut", compute={"checkpoint_every_s": 1e-9})
    assert "resumes at step 18 of 24" in last.notes
    assert _facts(last.outcome.result) == _facts(whole.outcome.result)
    assert _hashes(tmp_path / "cut" / "payload") == _hashes(tmp_path / "whole" / "payload")


def test_resumed_with_other_micro_batches_gives_the_same_weights(
    chain: Any, as_input: Any, run_stage: Callable[..., Any], tmp_path: Path
) -> None:
    """A killed run may go on on a smaller machine: how batches are cut is free to change in the middle."""
    from safetensors.torch import load_file
    from torch.testing import assert_close

    train = {"max_steps": 20, "batch_size": 16, "learning_rate": 0.1, "optim": "sgd"}
    data, inputs = {"data": chain.recipe.parent / "demos.jsonl"}, {"model": as_input(chain["base"])}

    def run(out: str, micro_batch: int, **more: Any) -> Any:
        compute = {"micro_batch": micro_batch}
        return run_stage("sft", {"train": train}, data=data, inputs=inputs, compute=compute, out=tmp_path / out, **more)

    run("whole", 16)
    run("cut", 16, stopping=StopAfter(16), expect="stopped")  # in the second epoch: 15 steps are one
    assert "resumes at step 17 of 20" in run("cut", 2).notes
    whole, cut = (load_file(tmp_path / out / "payload" / "model.safetensors") for out in ("whole", "cut"))
    for name, expected in whole.items():
        assert_close(cut[name], expected, atol=1e-5, rtol=0)


def _facts(result: Any) -> dict[str, Any]:
    """Return what a stage reports but for the seconds it took."""
    return {name: value for name, value in vars(result).items() if not name.endswith("_seconds")}
