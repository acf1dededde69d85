"""The evaluation: every figure of `report.json` can be recomputed from what the models said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.stages.evaluate import Config
from pipeline.training.encode import encode_pair, encode_prompt


@pytest.fixture(scope="module")
def report(chain: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((chain["report"].path / "report.json").read_text())
    return made


@pytest.fixture(scope="module")
def samples(chain: Any, read_rows: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_rows(chain["report"].path / "samples.jsonl")
    return rows


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_win_rates_gold_and_correctness_by_hand(
    chain: Any, report: dict[str, Any], samples: list[dict[str, Any]], read_rows: Any
) -> None:
    asks = read_rows(chain.recipe.parent / "asks.jsonl")
    assert [row["prompt"] for row in samples] == [row["prompt"] for row in asks]
    assert list(report["models"]) == ["base", "sft", "sft (greedy)", "dpo"]
    assert (report["schema"], report["baseline"]) == (1, "sft")

    def judged(name: str) -> list[tuple[float, float]]:
        """Score by the tiny world's gold function, written out again."""
        found = []
        for row, ask in zip(samples, asks, strict=True):
            words = row["answers"][name]["text"].split()
            right = float(ask["answer"] in words)
            found.append((right - float("away" in words), right))
        return found

    baseline = [gold for gold, _ in judged("sft")]
    for name, model in report["models"].items():
        gold, right = [g for g, _ in judged(name)], [r for _, r in judged(name)]
        assert model["gold"]["value"] == pytest.approx(_mean(gold), abs=1e-6)
        assert model["correct"]["value"] == pytest.approx(_mean(right), abs=1e-6)
        for task in ("colour", "hue"):
            own = [r for r, ask in zip(right, asks, strict=True) if ask["task"] == task]
            assert model["tasks"][task]["correct"]["value"] == pytest.approx(_mean(own), abs=1e-6)
            assert model["tasks"][task]["correct"]["n"] == len(own) == 12
        if name == "sft":
            assert "win_rate" not in model
        else:
            won = [(g > b) + 0.5 * (g == b) for g, b in zip(gold, baseline, strict=True)]
            assert model["win_rate"]["value"] == pytest.approx(_mean(won), abs=1e-6)
            assert model["win_rate"]["low"] <= model["win_rate"]["value"] <= model["win_rate"]["high"]
            assert model["win_rate"]["n"] == 24


def test_rewards_are_the_reward_models_scores_of_the_texts(
    chain: Any, report: dict[str, Any], samples: list[dict[str, Any]]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chain["rm"].path)
    model = AutoModelForSequenceClassification.from_pretrained(chain["rm"].path).eval()
    for name in report["models"]:
        scores = []
        for row in samples:
            said = {"role": "assistant", "content": row["answers"][name]["text"]}
            before, after = encode_pair(tokenizer, [{"role": "user", "content": row["prompt"]}], [said])
            ids = before + after
            with torch.no_grad():
                scores.append(model(input_ids=torch.tensor([ids])).logits.item())
        assert report["models"][name]["reward"]["value"] == pytest.approx(_mean(scores), abs=1e-4)


def test_greedy_answers_are_the_most_likely_tokens(
    chain: Any, samples: list[dict[str, Any]], load_plain: Callable[[Path], tuple[Any, Any]]
) -> None:
    model, tokenizer = load_plain(chain["sft"].path)
    for row in samples[:6]:
        ids = encode_prompt(tokenizer, [{"role": "user", "content": row["prompt"]}])
        said: list[int] = []
        while len(said) < 16 and tokenizer.eos_token_id not in said:
            with torch.no_grad():
                said.append(int(model(input_ids=torch.tensor([ids + said])).logits[0, -1].argmax()))
        text = tokenizer.decode(said, skip_special_tokens=True).strip()
        assert row["answers"]["sft (greedy)"]["text"] == text


def test_figures_of_the_manifest_are_the_reports(chain: Any, report: dict[str, Any]) -> None:
    manifest = chain["report"].manifest
    for name, model in report["models"].items():
        for figure in ("win_rate", "gold", "reward", "correct", "kl", "length", "eos_rate"):
            if figure in model:
                assert manifest.metrics[f"{name}/{figure}"] == pytest.approx(model[figure]["value"], rel=1e-6)
    assert report["models"]["dpo"]["kl"]["value"] > 0
    assert "kl" not in report["models"]["sft (greedy)"]  # greedy answers are no sample of a distribution
    assert manifest.rows == {"prompts": 24}
    assert manifest.tokens == sum(round(model["length"]["value"] * 24) for model in report["models"].values())


def test_a_model_against_itself_is_even_at_no_divergence(
    chain: Any, as_input: Any, run_stage: Callable[..., Any]
) -> None:
    twin = as_input(chain["sft"]).model_copy(update={"ref": "twin", "name": "twin"})
    ran = run_stage(
        "evaluate",
        {
            "models": ["sft", "twin"],
            "baseline": "sft",
            "gold": f"{chain.recipe.parent}/gold.py:gold",
            "greedy": [],
            "max_new_tokens": 12,
            "resamples": 100,
        },
        data={"data": chain.recipe.parent / "asks.jsonl"},
        inputs={"models": [as_input(chain["sft"]), twin]},
    )
    made = json.loads((ran.out / "report.json").read_text())["models"]["twin"]
    assert (made["win_rate"]["value"], made["win_rate"]["n"]) == (0.5, 24)
    assert made["win_rate"]["low"] + made["win_rate"]["high"] == pytest.approx(1)
    assert made["kl"]["value"] == pytest.approx(0, abs=1e-5)
    assert (made["win_counts"]["wins"], made["win_counts"]["ties"]) == (0, 24)


def test_without_gold_the_reward_model_judges(chain: Any, as_input: Any, run_stage: Callable[..., Any]) -> None:
    ran = run_stage(
        "evaluate",
        {"models": ["sft", "base"], "baseline": "sft", "greedy": [], "limit": 10, "max_new_tokens": 12},
        data={"data": chain.recipe.parent / "asks.jsonl"},
        inputs={"models": [as_input(chain[name]) for name in ("sft", "base")], "reward": as_input(chain["rm"])},
    )
    made = json.loads((ran.out / "report.json").read_text())
    rows = [json.loads(line) for line in (ran.out / "samples.jsonl").read_text().splitlines()]
    assert (made["judge"], made["prompts"], len(rows)) == ("reward", 10, 10)
    scores = [(row["answers"]["base"]["score"], row["answers"]["sft"]["score"]) for row in rows]
    won = [(a > b) + 0.5 * (a == b) for a, b in scores]
    assert made["models"]["base"]["win_rate"]["value"] == pytest.approx(_mean(won), abs=1e-6)


def test_a_function_that_breaks_is_named(
    chain: Any, as_input: Any, run_stage: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def score(completions, **columns):\n    return [1.0]\n")
    ran = run_stage(
        "evaluate",
        {"models": ["sft"], "baseline": "sft", "gold": "mine.py:score", "greedy": [], "max_new_tokens": 4},
        data={"data": chain.recipe.parent / "asks.jsonl"},
        inputs={"models": [as_input(chain["sft"])]},
        expect="failed",
    )
    assert str(ran.outcome.problems[0]) == "reward function mine.py:score returned 1 values; expected one per row (24)"


def test_stops_between_batches_of_answers_when_asked(chain: Any, as_input: Any, run_stage: Callable[..., Any]) -> None:
    ran = run_stage(
        "evaluate",
        {"models": ["sft"], "baseline": "sft", "gold": "gold.py:gold", "max_new_tokens": 4},
        data={"data": chain.recipe.parent / "asks.jsonl"},
        inputs={"models": [as_input(chain["sft"])]},
        stopping=lambda: True,
        expect="stopped",
    )
    assert [str(problem) for problem in ran.outcome.problems] == ["stage evaluate: stopped as asked"]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"baseline": "sf", "gold": "g.py:g"}, "baseline `sf`; expected one of models: sft, dpo. Did you mean `sft`?"),
        ({"baseline": "sft"}, "no judge; expected `gold` or `reward`. Name a reward model or a Python function"),
        (
            {"baseline": "sft", "gold": "g.py:g", "judge": "reward"},
            "judge is reward; expected a `reward` to judge with. Add `reward:`",
        ),
        ({"baseline": "sft", "gold": "g.py:g", "greedy": ["x"]}, "greedy `x`; expected one of models: sft, dpo"),
    ],
)
def test_contradictions_are_named(fields: dict[str, Any], problem: str) -> None:
    assert [str(found) for found in Config(data="d", models=["sft", "dpo"], **fields).check()] == [problem]
