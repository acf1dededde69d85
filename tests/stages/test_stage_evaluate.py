"""The evaluation: every figure of `report.json` can be recomputed from what the models said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from single_rows import encode_pair, encode_prompt
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.evaluation.comparison import recomputed
from pipeline.evaluation.report.record import read, to_json
from pipeline.evaluation.report.samples import read_samples
from pipeline.evaluation.stats.differences import paired_difference
from pipeline.evaluation.stats.intervals import mean_interval, wilson
from pipeline.recipe import DataSource
from pipeline.stages.evaluate.config import Config


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
    assert (report["schema"], report["baseline"]) == (2, "sft")

    def judged(name: str) -> list[tuple[float, float]]:
        """Score by the tiny world's gold function, written out again."""
        scores = []
        for row, ask in zip(samples, asks, strict=True):
            words = row["answers"][name]["text"].split()
            right = float(ask["answer"] in words)
            scores.append((right - float("away" in words), right))
        return scores

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


def _cells(page: str, heading: str) -> dict[str, dict[str, str]]:
    """Return a table of the page as rows by their first cell."""
    section = page[page.index(heading) :]
    lines = section[section.index("| ") :].split("\n\n")[0].splitlines()
    header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "---" not in line]
    return {row[0].replace("*", "").split(" (base")[0]: dict(zip(header, row, strict=True)) for row in rows}


class _Row:
    """What the samples alone say of one model, next to the baseline's."""

    def __init__(self, rows: list[dict[str, Any]], name: str, *, seed: int) -> None:
        self.mine = [row["answers"][name] for row in rows]
        self.base = [row["answers"]["sft"] for row in rows]
        self.options: dict[str, Any] = {"seed": seed, "resamples": 200}

    def column(self, key: str) -> list[float]:
        return [float(answer[key]) for answer in self.mine]

    def mean(self, key: str, digits: int = 2) -> str:
        interval = mean_interval(self.column(key), **self.options)
        return f"{_mean(self.column(key)):.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"

    def win_rate(self) -> str:
        points = {"win": 1.0, "tie": 0.5, "loss": 0.0}
        won = [points[answer["result"]] for answer in self.mine]
        assert won == [
            (a["gold"] > b["gold"]) + 0.5 * (a["gold"] == b["gold"]) for a, b in zip(self.mine, self.base, strict=True)
        ]
        interval = mean_interval(won, bounds=(0, 1), **self.options)
        return f"{100 * _mean(won):.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"

    def counts(self) -> str:
        results = [answer["result"] for answer in self.mine]
        return " / ".join(str(results.count(word)) for word in ("win", "tie", "loss"))

    def correct(self) -> str:
        right = self.column("correct")
        interval = wilson(sum(right), len(right))
        return f"{100 * _mean(right):.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"

    def delta(self) -> tuple[float, Any]:
        theirs = [float(answer["correct"]) for answer in self.base]
        difference = paired_difference(self.column("correct"), theirs, bounds=(0, 1), **self.options)
        return 100 * (_mean(self.column("correct")) - _mean(theirs)), difference


def test_every_figure_of_the_page_is_computed_again_from_the_samples(
    chain: Any, report: dict[str, Any], samples: list[dict[str, Any]]
) -> None:
    page = (chain["report"].path / "report.md").read_text(encoding="utf-8")
    models, tasks = _cells(page, "## Models"), _cells(page, "## Correct answers by task")
    seed = samples[0]["seed"]
    assert report["seed"] == seed == chain["report"].manifest.seed
    assert list(models) == list(report["models"]) == list(samples[0]["answers"])
    for name, cells in models.items():
        row = _Row(samples, name, seed=seed)
        expected = {
            "gold": row.mean("gold"),
            "reward": row.mean("reward"),
            "correct": row.correct(),
            "tokens": row.mean("length", 1),
            "ended": f"{100 * _mean([answer['stop_reason'] == 'eos' for answer in row.mine]):.1f} %",
        }
        if name == "sft":
            assert all(row.get("result") is None for row in row.mine)
        else:
            value, difference = row.delta()
            sign = "+" if value > 0 else ""
            mark = " ▼" if difference.high < 0 and difference.p_value < 0.05 else ""
            expected["won / tied / lost"], expected["win rate vs sft"] = row.counts(), row.win_rate()
            expected["Δ correct"] = f"{sign}{value:.1f} [{100 * difference.low:.1f}, {100 * difference.high:.1f}]{mark}"
        if "kl" in row.mine[0]:
            expected["KL (nats)"] = row.mean("kl")
            nll = sum(row.column("nll")) / sum(row.column("length"))
            assert report["models"][name]["nll"]["value"] == pytest.approx(nll, rel=1e-6)
            assert cells["NLL by sft"].startswith(f"{nll:.2f} [")
            per_token = sum(row.column("kl")) / sum(row.column("length"))
            assert report["models"][name]["kl_per_token"]["value"] == pytest.approx(per_token, rel=1e-6)
            assert report["models"][name]["kl_k3"]["value"] == pytest.approx(_mean(row.column("kl_k3")), rel=1e-6)
        shown = {title: cells[title].partition(" (gamed")[0].replace("-0.00", "0.00") for title in expected}
        assert shown == {title: text.replace("-0.00", "0.00") for title, text in expected.items()}, name
        for task, counts in tasks.items():
            own = [one for one in samples if one["task"] == task]
            part = _Row(own, name, seed=seed)
            assert counts["prompts"] == str(len(own))
            assert counts[name].startswith(f"{100 * _mean(part.column('correct')):.0f} %")


def test_answers_are_as_likely_as_one_pass_of_the_baseline_says(
    chain: Any, samples: list[dict[str, Any]], load_plain: Any, response_logprob: Any
) -> None:
    baseline, tokenizer = load_plain(chain["sft"].path)
    for name in ("sft", "dpo"):
        ended = [one for one in samples if one["answers"][name]["stop_reason"] == "eos"][:5]
        assert ended
        for one in ended:
            logprob = response_logprob(baseline, tokenizer, one["prompt"], one["answers"][name]["text"])
            assert one["answers"][name]["nll"] == pytest.approx(-logprob, abs=1e-4)


def test_the_whole_report_is_made_again_from_the_samples(chain: Any) -> None:
    folder = chain["report"].path
    again = recomputed(read(folder / "report.json"), read_samples(folder / "samples.jsonl"))
    assert to_json(again) == (folder / "report.json").read_text(encoding="utf-8")


def test_a_limit_is_a_sample_with_the_answers_of_the_whole(
    chain: Any,
    samples: list[dict[str, Any]],
    as_input: Any,
    run_stage: Callable[..., Any],
    write_jsonl: Any,
    tmp_path: Path,
) -> None:
    # The prompts of the tiny world sorted by task: twelve `colour`, then twelve `hue`.
    rows = [json.loads(line) for line in (chain.recipe.parent / "asks.jsonl").read_text().splitlines()]
    rows.sort(key=lambda row: str(row["task"]))
    data = write_jsonl(tmp_path / "sorted.jsonl", rows)
    config = {"models": ["sft"], "baseline": "sft", "gold": f"{chain.recipe.parent}/gold.py:gold", "max_new_tokens": 16}
    runs = [
        run_stage(
            "evaluate", {**config, "limit": limit}, data={"data": data}, inputs={"models": [as_input(chain["sft"])]}
        )
        for limit in (6, 24)
    ]
    made = [[json.loads(line) for line in (ran.out / "samples.jsonl").read_text().splitlines()] for ran in runs]
    asked = [row["row"] for row in made[0]]
    assert [rows[place]["task"] for place in asked] == ["colour"] * 3 + ["hue"] * 3
    assert asked != [0, 1, 2, 12, 13, 14]
    # A prompt is answered as in the whole report, and its right answer is beside it.
    assert made[0] == [made[1][place] for place in asked]
    assert [row["reference"] for row in made[0]] == [rows[place]["answer"] for place in asked]
    part, whole = (json.loads((ran.out / "report.json").read_text()) for ran in runs)
    assert (part["prompts"], part["available"], part["sampled_by"]) == (6, 24, "task")
    assert (whole["prompts"], whole["available"], whole["sampled_by"]) == (24, 24, "")
    assert "6 of 24 prompts, a sample stratified by task (seed 7)" in (runs[0].out / "report.md").read_text()
    assert runs[0].outcome.result.summary == "sft alone: nothing to compare it with"


def test_stop_reasons_and_lengths(chain: Any, samples: list[dict[str, Any]]) -> None:
    for row in samples:
        for answer in row["answers"].values():
            assert answer["stop_reason"] == ("eos" if answer["length"] < 16 else answer["stop_reason"])
            assert 1 <= answer["length"] <= 16
            assert answer["stop_reason"] in ("eos", "max_new_tokens")


def test_a_judge_at_chance_is_told_in_report_and_on_the_terminal(
    chain: Any, as_input: Any, run_stage: Callable[..., Any]
) -> None:
    judge = as_input(chain["rm"])
    card = {"test_accuracy": 0.0, "test_accuracy_low": 0.0, "test_accuracy_high": 0.354, "test_pairs": 7.0}
    judge = judge.model_copy(update={"manifest": {**judge.manifest, "metrics": card}})
    ran = run_stage(
        "evaluate",
        {"models": ["sft"], "baseline": "sft", "greedy": [], "limit": 4, "max_new_tokens": 4},
        data={"data": chain.recipe.parent / "asks.jsonl"},
        inputs={"models": [as_input(chain["sft"])], "reward": judge},
    )
    text = "the reward model rm is at or below chance: right on 0.0 % [0.0, 35.4] of 7 held-out pairs."
    assert any(note.startswith(f"warning: {text}") for note in ran.notes)
    assert json.loads((ran.out / "report.json").read_text())["warnings"][0].startswith(text)
    assert text in (ran.out / "report.md").read_text().replace("\\", "")


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


def test_the_best_of_n_of_the_baseline_is_chosen_by_the_reward_model(
    chain: Any, as_input: Any, run_stage: Callable[..., Any], tmp_path: Path
) -> None:
    """The report is that without further answers, and has the curve; a smaller n is answered from those kept."""
    (tmp_path / "gold.py").write_text((chain.recipe.parent / "gold.py").read_text())

    def ran(n: int | None) -> Any:
        fields = {"models": ["sft", "dpo"], "baseline": "sft", "gold": "gold.py:gold", "max_new_tokens": 12}
        return run_stage(
            "evaluate",
            {**fields, "greedy": [], "limit": 10, **({"best_of_n": n} if n else {})},
            data={"data": chain.recipe.parent / "asks.jsonl"},
            inputs={"models": [as_input(chain[name]) for name in ("sft", "dpo")], "reward": as_input(chain["rm"])},
            responses=tmp_path / "kept",
        )

    plain, three = (read(ran(n).out / "report.json") for n in (None, 3))
    best = three.best_of_n
    assert best is not None and plain.best_of_n is None
    assert to_json(three.model_copy(update={"best_of_n": None})) == to_json(plain)
    assert best.chosen_by == "reward" and [point.n for point in best.points] == [1, 2, 3]
    rewards = [point.reward.value for point in best.points if point.reward]
    assert rewards[0] < rewards[1] < rewards[2] and all(point.gold for point in best.points)
    again = ran(2)
    assert again.outcome.result.tokens > 0 and again.outcome.result.trainer_seconds == 0.0  # nothing was sampled


def test_a_prompt_that_a_template_refuses_is_named_by_its_place_or_skipped(
    chain: Any, as_input: Any, run_stage: Callable[..., Any], write_jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """The tiny world's template knows no turns of tools."""
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    refused = {"prompt": [{"role": "user", "content": "hue of day ?"}, call, {"role": "tool", "content": "red"}]}
    file = write_jsonl(tmp_path / "some.jsonl", [{"prompt": "hue of day ?"}, refused, {"prompt": "hue of sea ?"}])
    (tmp_path / "flat.py").write_text("def score(completions, **columns):\n    return [1.0] * len(completions)\n")

    def ran(bad_row: str, expect: str) -> Any:
        return run_stage(
            "evaluate",
            {"models": ["sft"], "baseline": "sft", "gold": "flat.py:score", "greedy": [], "max_new_tokens": 4},
            data={"data": DataSource(path=str(file), on_bad_row=bad_row)},
            inputs={"models": [as_input(chain["sft"])]},
            expect=expect,
        )

    (problem,) = ran("stop", "failed").outcome.problems
    assert (problem.where, "unknown role tool" in problem.found) == (f"{file}:2", True)
    skipped = ran("skip", "done")
    rows = [json.loads(line) for line in (skipped.out / "samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["hue of day ?", "hue of sea ?"]
    (kept,) = (skipped.out / "rejects" / "data.jsonl").read_text().splitlines()
    assert json.loads(kept)["where"] == f"{file}:2"


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
    assert str(ran.outcome.problems[0]) == "reward function mine.py:score returned 1 value; expected one per row (24)"


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
        (
            {"baseline": "sft", "gold": "g.py:g", "variants": {"x": {"stage": "a", "settings": {"b": 1}}}},
            "variants `x`; expected one of models: sft, dpo",
        ),
        (
            {
                "baseline": "big",
                "gold": "g.py:g",
                "endpoints": {"big": {"url": "http://h/v1", "model": "m"}},
                "best_of_n": 4,
            },
            "best_of_n is 4, and the baseline big is no checkpoint; expected a baseline among `models`. Leave it out",
        ),
        ({"baseline": "sft", "gold": "g.py:g", "greedy": ["x"]}, "greedy `x`; expected one of models: sft, dpo"),
    ],
)
def test_contradictions_are_named(fields: dict[str, Any], problem: str) -> None:
    contradictions = Config(data="d", models=["sft", "dpo"], **fields).check()
    assert [str(contradiction) for contradiction in contradictions] == [problem]
