"""The engines of the sampler: one greedy text, what is kept of each is its own, and what vLLM cannot do is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from architectures import tiny_causal_lm
from stopping import StopAfter

from pipeline.models.generate.decode import GenerationSettings
from pipeline.models.generate.engines.batched import BatchedEngine
from pipeline.models.generate.engines.generate import GenerateEngine
from pipeline.models.generate.sampling import Sampling
from pipeline.models.load.kernels import has

EVALUATION: dict[str, Any] = {"baseline": "base", "max_new_tokens": 12, "resamples": 100, "models": ["base", "sft"]}


@pytest.fixture
def evaluate(chain: Any, as_input: Any, run_stage: Callable[..., Any]) -> Callable[..., Any]:
    """Evaluate two models of the chain; what they say is kept in a folder."""

    def run(responses: Path, *, engine: str, **more: Any) -> Any:
        options = {key: more.pop(key) for key in list(more) if key in ("stopping", "expect")}
        return run_stage(
            "evaluate",
            {**EVALUATION, "gold": f"{chain.recipe.parent}/gold.py:gold", "engine": engine, **more},
            data={"data": chain.recipe.parent / "asks.jsonl"},
            inputs={"models": [as_input(chain[name]) for name in ("base", "sft")]},
            responses=responses,
            **options,
        )

    return run


def _answers(ran: Any, model: str) -> list[str]:
    rows = [json.loads(line) for line in (ran.out / "samples.jsonl").read_text().splitlines()]
    return [row["answers"][model]["text"] for row in rows]


def _sampling(ran: Any) -> dict[str, Any]:
    report: dict[str, Any] = ran.outcome.runtime_report["sampling"]
    return report


def test_greedy_texts_are_those_of_our_own_decoding_and_sampled_ones_are_others(
    evaluate: Callable[..., Any], tmp_path: Path
) -> None:
    greedy = {"greedy": ["base", "sft"]}
    ours, theirs = (evaluate(tmp_path / name, engine=name, **greedy) for name in ("batched", "generate"))
    for model in ("base (greedy)", "sft (greedy)"):
        assert _answers(theirs, model) == _answers(ours, model)
    assert len(set(_answers(ours, "base (greedy)"))) > 1
    assert _answers(theirs, "sft") != _answers(ours, "sft")  # other random numbers
    assert _answers(theirs, "sft") == _answers(evaluate(tmp_path / "again", engine="generate", **greedy), "sft")


def test_what_one_engine_said_is_not_taken_for_another_s(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    def reused(engine: str) -> int:
        return int(_sampling(evaluate(tmp_path / "kept", engine=engine))["responses_reused"])

    assert [reused(engine) for engine in ("batched", "generate", "batched", "generate")] == [0, 0, 72, 72]


def test_a_stopped_evaluation_goes_on_with_what_generate_sampled(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    whole = evaluate(tmp_path / "fresh", engine="generate")
    evaluate(tmp_path / "kept", engine="generate", stopping=StopAfter(2), expect="stopped")
    resumed = evaluate(tmp_path / "kept", engine="generate")
    assert 0 < _sampling(resumed)["tokens"] < _sampling(whole)["tokens"]
    for name in ("report.json", "samples.jsonl"):
        assert (resumed.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_each_batch_of_generate_draws_random_numbers_of_its_own() -> None:
    model, settings = tiny_causal_lm("llama"), GenerationSettings(8, [], 0, Sampling(), seed=3)

    def sampled(rows: range) -> list[list[int]]:
        return GenerateEngine()(model, [[5, 6, 7]] * 4, settings, rows).responses

    assert sampled(range(4)) == sampled(range(4)) != sampled(range(4, 8))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rows_with_less_room_end_where_the_context_does(kind: str) -> None:
    """GPT-2 has a vector for each position and fails behind the last one."""
    model = tiny_causal_lm(kind)
    limit = int(model.config.max_position_embeddings)
    prompts = [[5 + i % 20 for i in range(length)] for length in (limit - 1, 4, limit - 3, 7, limit - 3)]
    settings = GenerationSettings(8, [], 0, Sampling(greedy=True))

    def lengths(engine: Any) -> Sequence[int]:
        return [len(response) for response in engine(model, prompts, settings, range(5)).responses]

    assert lengths(GenerateEngine()) == lengths(BatchedEngine()) == [1, 8, 3, 8, 3]
    ours = BatchedEngine()(model, prompts, settings, range(5))
    assert GenerateEngine()(model, prompts, settings, range(5)) == ours


@pytest.mark.skipif(has("vllm"), reason="vLLM is installed here: test_vllm_sampler samples with it")
def test_a_stage_that_runs_where_vllm_is_missing_says_so(evaluate: Callable[..., Any], tmp_path: Path) -> None:
    ran = evaluate(tmp_path / "kept", engine="vllm", expect="failed")
    said = " ".join(str(problem) for problem in ran.outcome.problems)
    assert "engine is vllm, but vLLM is not installed" in said and "engine: batched" in said
