"""vLLM as the engine of `sample` and `evaluate`, on whatever it is built for; `make test-vllm` runs this on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from waiting import until

from pipeline.models.generate.engines.vllm import why_no_vllm
from pipeline.models.save.artifact import save_model
from pipeline.stage import ResolvedInput

pytest.importorskip("vllm", reason="vLLM is not installed")

pytestmark = pytest.mark.skipif(bool(why_no_vllm("cpu")), reason=why_no_vllm("cpu"))

HEADS, HIDDEN = 4, 128
"""vLLM's kernels for a CPU want 32 dimensions in each head."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> list[ResolvedInput]:
    """Two checkpoints whose answers differ."""
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tiny_tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=HIDDEN,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=96,
            bos_token_id=None,
            eos_token_id=tiny_tokenizer.eos_token_id,
            pad_token_id=tiny_tokenizer.pad_token_id,
        )
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(3.0)  # so that tokens matter
        folder = tmp_path_factory.mktemp(f"m{seed}")
        save_model(model, tiny_tokenizer, folder)
        made.append(
            ResolvedInput(ref=f"m{seed}", name=f"m{seed}", kind="sft", fingerprint=str(seed) * 64, path=str(folder))
        )
    return made


@pytest.fixture
def stage(run_stage: Callable[..., Any], models: list[ResolvedInput], chain: Any) -> Callable[..., Any]:
    def run(kind: str, responses: Path, **config: Any) -> Any:
        return run_stage(
            kind,
            {"max_new_tokens": 12, **config},
            data={"data": chain.recipe.parent / "asks.jsonl"},
            inputs={"models": models},
            responses=responses,
            compute={"device": "cpu"},
        )

    return run


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _answers(ran: Any, model: str) -> list[str]:
    return [row["answers"][model]["text"] for row in _rows(ran.out / "samples.jsonl")]


def test_greedy_texts_are_those_of_our_own_decoding_for_each_checkpoint(
    stage: Callable[..., Any], tmp_path: Path, chain: Any
) -> None:
    options = {"baseline": "m1", "greedy": ["m1", "m2"], "gold": f"{chain.recipe.parent}/gold.py:gold"}
    ours, theirs = (
        stage("evaluate", tmp_path / name, engine=name, resamples=100, **options) for name in ("batched", "vllm")
    )
    for model in ("m1 (greedy)", "m2 (greedy)"):
        assert _answers(theirs, model) == _answers(ours, model)
        assert len(set(_answers(ours, model))) > 1
    assert _answers(ours, "m1 (greedy)") != _answers(ours, "m2 (greedy)")
    assert _answers(theirs, "m1") != _answers(ours, "m1")  # other random numbers


START = """
import sys
from pipeline.models.generate.engines.vllm import VLLMEngine, _children

if __name__ == "__main__":
    engine = VLLMEngine.of_checkpoint(sys.argv[1], device="cpu", longest=32, dtype="float32")
    print("STARTED", *_children(), flush=True)
    sys.stdin.read()
"""


def test_vllm_ends_with_the_stage_also_if_that_is_killed(models: list[ResolvedInput], tmp_path: Path) -> None:
    (tmp_path / "start.py").write_text(START)
    line = [sys.executable, str(tmp_path / "start.py"), models[0].path]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = next(line for line in process.stdout if line.startswith("STARTED"))
    started = [int(word) for word in said.split()[1:]]
    assert started
    process.kill()
    process.wait()
    until(lambda: not any(psutil.pid_exists(one) for one in started), "the end of all")


def test_samples_are_kept_and_have_log_probabilities_and_numbers_of_their_own(
    stage: Callable[..., Any], tmp_path: Path
) -> None:
    options = {"engine": "vllm", "n": 3, "temperatures": [0.8, 1.2], "top_k": 20, "top_p": 0.9}
    first = stage("sample", tmp_path / "kept", log_probabilities=True, **options)
    again = stage("sample", tmp_path / "kept", log_probabilities=True, **options)
    rows = _rows(first.out / "candidates.jsonl")
    assert (first.out / "candidates.jsonl").read_bytes() == (again.out / "candidates.jsonl").read_bytes()
    assert first.outcome.runtime_report["sampling"]["responses_reused"] == 0
    assert again.outcome.runtime_report["sampling"]["tokens"] == 0
    candidates = [one for row in rows for one in row["candidates"]]
    assert {one["model"] for one in candidates} == {"m1", "m2"}
    assert all(one["log_probability"] < 0 for one in candidates if one["tokens"])
    assert all(len(row["candidates"]) > 4 for row in rows)
