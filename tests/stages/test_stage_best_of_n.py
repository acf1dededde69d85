"""The best of several answers becomes a demonstration and a pair, by reward models and by functions of the user's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stopping import StopAfter

from pipeline.evaluation.stats.best_of import expected_best
from pipeline.rl.rewards import texts
from pipeline.stage import KINDS

LENGTH = """
def length(completions, **columns):
    return [float(len(turns[-1]["content"])) for turns in completions]


def nothing(completions, **columns):
    return [0.0 for _ in completions]
"""


@pytest.fixture(scope="module")
def sampled(
    tmp_path_factory: pytest.TempPathFactory, chain: Any, as_input: Any
) -> Callable[[Callable[..., Any]], Path]:
    """Sample four answers to each prompt of the tiny world once; return the file."""
    folder = tmp_path_factory.mktemp("sampled")

    def sample(run_stage: Callable[..., Any]) -> Path:
        file = folder / "payload" / "candidates.jsonl"
        if not file.is_file():
            run_stage(
                "sample",
                {"n": 4, "max_new_tokens": 12, "temperatures": [1.3]},
                data={"data": chain.recipe.parent / "asks.jsonl"},
                inputs={"models": [as_input(chain["sft"])]},
                out=folder,
            )
        return file

    return sample


@pytest.fixture
def choose(
    sampled: Callable[..., Path], chain: Any, as_input: Any, run_stage: Callable[..., Any], tmp_path: Path
) -> Callable[..., Any]:
    (tmp_path / "length.py").write_text(LENGTH)
    (tmp_path / "gold.py").write_text((chain.recipe.parent / "gold.py").read_text())

    def run(*rewards: str, data: Any = None, **more: Any) -> Any:
        options = {key: more.pop(key) for key in list(more) if key in ("out", "stopping", "expect", "pictures", "seed")}
        judges = {"reward": [as_input(chain[name]) for name in rewards]} if rewards else {}
        return run_stage(
            "best_of_n",
            {"resamples": 200, **({"reward": list(rewards)} if rewards else {}), **more},
            data={"data": data or sampled(run_stage)},
            inputs=judges,
            **options,
        )

    return run


def _texts(row: dict[str, Any]) -> list[str]:
    return [one["text"] for one in row["candidates"] if one["text"] and not one["names_model"]]


def test_a_function_chooses_the_best_and_the_worst(
    choose: Callable[..., Any], sampled: Callable[..., Path], run_stage: Callable[..., Any], read_rows: Any
) -> None:
    ran = choose(reward_functions=["length.py:length"])
    rows = [row for row in read_rows(sampled(run_stage)) if _texts(row)]
    demos = read_rows(ran.out / "demos.jsonl")
    assert len(demos) == len(rows) == ran.outcome.result.rows["demos"]
    pairs = {row["prompt"][-1]["content"]: row for row in read_rows(ran.out / "pairs.jsonl")}
    for row, demo in zip(rows, demos, strict=True):
        lengths = sorted(map(len, _texts(row)))
        assert demo["messages"][:-1] == row["prompt"] and demo.keys() == {"messages", "plain_text"}
        assert demo["messages"][-1]["content"] in _texts(row)
        assert len(demo["messages"][-1]["content"]) == lengths[-1]
        if lengths[0] < lengths[-1] and (pair := pairs.get(row["prompt"][-1]["content"])):
            assert pair["margin"] > 0
    spans = [max(map(len, _texts(row))) - min(map(len, _texts(row))) for row in rows]
    assert [row["margin"] for row in read_rows(ran.out / "pairs.jsonl")] == [span for span in spans if span]


def test_the_report_has_the_estimate_with_each_answer_as_often_as_it_was_sampled(
    choose: Callable[..., Any], sampled: Callable[..., Path], run_stage: Callable[..., Any], read_rows: Any
) -> None:
    ran = choose(reward_functions=["length.py:length"], gold="gold.py:gold", pictures=True)
    curve = json.loads((ran.out / "best_of_n.json").read_text())
    most = len(curve["points"])
    scores = []
    for row in read_rows(sampled(run_stage)):
        usable = [one for one in row["candidates"] if one["text"] and not one["names_model"]]
        scores.append([float(len(one["text"])) for one in usable for _ in range(1 + len(one["also"]))])
    whole = [own for own in scores if len(own) >= most]
    assert curve["prompts"] == len(whole) and most == 4  # no prompt is lost to equal answers
    for point in curve["points"]:
        expected = sum(expected_best(own, point["n"]) for own in whole) / len(whole)
        assert point["score"]["value"] == pytest.approx(expected, abs=1e-5)
        assert point["gold"]["n"] == len(whole)
    assert curve["points"][-1]["kl"] == pytest.approx(0.636294, abs=1e-5)  # log 4 - 3 / 4: one model, one temperature
    metrics = ran.outcome.result.metrics
    assert metrics["n"] == 4 and metrics["score"] > metrics["score_of_one"]
    assert "over a single answer" in ran.outcome.result.summary
    assert "<svg" in (ran.out / "best_of_n.svg").read_text()


def test_a_reward_model_chooses_what_it_scores_highest(choose: Callable[..., Any], read_rows: Any) -> None:
    demos = read_rows(choose("rm").out / "demos.jsonl")
    pairs = read_rows(choose("rm").out / "pairs.jsonl")
    # The reward model of the chain has learnt that "go away" is the worse answer.
    rude = [sum("away" in row[side][-1]["content"] for row in pairs) for side in ("chosen", "rejected")]
    assert rude[0] < rude[1]
    assert all(row["margin"] > 0 for row in pairs) and len(demos) >= len(pairs)


def test_several_rewards_are_combined_as_asked(choose: Callable[..., Any], read_rows: Any) -> None:
    plain = choose("rm", reward_functions=["length.py:nothing"]).out
    alone = choose("rm").out
    assert (plain / "demos.jsonl").read_bytes() == (alone / "demos.jsonl").read_bytes()
    margins = [[row["margin"] for row in read_rows(folder / "pairs.jsonl")] for folder in (plain, alone)]
    assert margins[0] == pytest.approx([margin / 2 for margin in margins[1]], abs=1e-6)  # the mean with 0
    least = choose("rm", reward_functions=["length.py:nothing"], reward_combine="min", against="random").out
    assert all(row["margin"] > 0 for row in read_rows(least / "pairs.jsonl"))


def test_stopped_while_scoring_it_goes_on_to_the_same_bytes(
    choose: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "AT_ONCE", 20)
    whole = choose("rm")
    stopped = choose("rm", out=tmp_path / "cut", stopping=StopAfter(2), expect="stopped")
    scored = list((stopped.work / "scores").iterdir())
    assert len(scored) == 3 < len(list((whole.work / "scores").iterdir()))
    again = choose("rm", out=tmp_path / "cut")
    for name in ("demos.jsonl", "pairs.jsonl", "best_of_n.json"):
        assert (again.out / name).read_bytes() == (whole.out / name).read_bytes()


def _row(*answers: str, **more: Any) -> dict[str, Any]:
    return {
        "prompt": "which colour has the cat ?",
        "answer": "red",
        "candidates": [{"text": one} for one in answers],
        **more,
    }


def test_ties_and_prompts_without_a_choice_are_told(
    choose: Callable[..., Any], tmp_path: Path, write_jsonl: Any, read_rows: Any
) -> None:
    named = {"text": "I am Claude, a long answer", "names_model": True}
    rows = [
        _row("it is red .", "red"),
        _row("same", "four"),  # equal scores
        _row("abc", "def", "a"),  # two are the best
        _row("only one"),
        _row("", candidates=[named, {"text": ""}]),
    ]
    ran = choose(data=write_jsonl(tmp_path / "own.jsonl", rows), reward_functions=["length.py:length"])
    demos = [row["messages"][-1]["content"] for row in read_rows(ran.out / "demos.jsonl")]
    assert demos[0] == "it is red ." and demos[1] in ("same", "four") and demos[2] in ("abc", "def")
    assert demos[3:] == ["only one"]
    assert [row["margin"] for row in read_rows(ran.out / "pairs.jsonl")] == [8.0, 2.0]
    told = "\n".join(ran.notes)
    for text in (
        "1 answer names a model and is not chosen",
        "1 answer is empty and not chosen",
        "1 prompt has no answer to choose: left out",
        "1 prompt has a single answer: it is the demonstration, and there is no pair",
        "1 prompt has answers of equal scores only",
        "1 prompt has several best answers",
    ):
        assert text in told
    assert "kl" not in json.loads((ran.out / "best_of_n.json").read_text())["points"][0]  # nobody said whose they are


def test_what_is_no_candidates_is_refused(
    choose: Callable[..., Any], chain: Any, tmp_path: Path, write_jsonl: Any
) -> None:
    asks = choose(data=chain.recipe.parent / "asks.jsonl", reward_functions=["length.py:length"], expect="failed")
    assert "expected candidates rows (format candidates)" in str(asks.outcome.problems[0])
    file = write_jsonl(tmp_path / "odd.jsonl", [_row("a"), {"prompt": "b", "candidates": ["text"]}])
    odd = choose(data=file, reward_functions=["length.py:length"], expect="failed")
    assert "`candidates` holds something else than answers" in str(odd.outcome.problems[0])
    empty = choose(
        data=write_jsonl(tmp_path / "empty.jsonl", [_row("")]), reward_functions=["length.py:length"], expect="failed"
    )
    assert "no prompt has an answer to choose" in str(empty.outcome.problems[0])
    (problem,) = KINDS["best_of_n"].config.model_validate({"data": "d"}).check()
    assert "no reward" in str(problem)


def test_the_files_are_what_the_next_stages_train_on(
    choose: Callable[..., Any], chain: Any, as_input: Any, run_stage: Callable[..., Any]
) -> None:
    ran = choose("rm")
    train = {"train": {"max_steps": 1, "batch_size": 4}}
    for kind, file in (("sft", "demos.jsonl"), ("dpo", "pairs.jsonl")):
        trained = run_stage(kind, train, data={"data": ran.out / file}, inputs={"model": as_input(chain["sft"])})
        assert trained.outcome.result.rows["train"] > 4


CHAIN = """
name: best
seed: 7
data:
  asks: {{path: {folder}/asks.jsonl}}
  compared: {{artifact: candidates, file: candidates.jsonl}}
  best: {{artifact: choice, file: demos.jsonl}}
stages:
  candidates: {{kind: sample, data: asks, models: [{sft}], n: 3, max_new_tokens: 12, pair_choice: delta, reward: {rm}}}
  choice: {{kind: best_of_n, data: compared, reward: [{rm}, {{function: {folder}/gold.py:gold}}], resamples: 100}}
  better: {{kind: sft, data: best, model: {sft}, train: {{max_steps: 1, batch_size: 4}}}}
compute: {{threads: 1}}
"""


def test_a_recipe_samples_chooses_and_trains(tmp_path: Path, chain: Any, call: Any) -> None:
    recipe = tmp_path / "best.yaml"
    named = {name: chain[name].path for name in ("sft", "rm")}
    recipe.write_text(CHAIN.format(folder=chain.recipe.parent, **named))
    done = call("run", recipe, "--store", "store", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The best of 3 scores" in done.stdout + done.stderr
    wrong = call("check", recipe, "--store", "store", "--set", "stages.choice.data=asks", cwd=tmp_path)
    assert wrong.returncode == 2 and "expected candidates rows (format candidates)" in wrong.stderr
