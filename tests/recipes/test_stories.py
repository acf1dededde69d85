"""The sweep over a story model in small: a random base model, a lexicon of two words, every stage and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from storyteller import PROMPTS, save_storyteller

from pipeline.recipe import DataSource, load
from pipeline.records.loading import load as load_rows

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "stories-sentiment.yaml"
LEXICON = """
def sentiment(completions, **columns):
    texts = [one[-1]["content"] for one in completions]
    return [(text.count("a") - text.count("o")) / 8 for text in texts]
"""
SMALL = (
    "sweep.0.stages.dpo.train.beta=[0.1, 1.0]", "sweep.0.stages.dpo.seed=[17, 1]",
    "sweep.1.stages.ppo.train.kl_coef=[0.1, 0.5]", "sweep.1.stages.ppo.seed=[17]",
    "sweep.2.stages.preferred_sft.seed=[17]",
    "stages.candidates.n=4", "stages.candidates.max_new_tokens=8", "stages.verdicts.pairs_per_prompt=2",
    "stages.ppo.train.iterations=1", "stages.ppo.train.rollout_batch=8", "stages.ppo.train.max_new_tokens=8",
    "stages.dpo.train.batch_size=4",
    "stages.preferred_sft.train.batch_size=4", "stages.ppo.train.eval_every=1", "stages.ppo.train.eval_prompts=4",
    "stages.report.max_new_tokens=8", "stages.report.best_of_n=3", "stages.report.resamples=100",
)  # fmt: skip


def _set(*texts: str) -> list[str]:
    return [part for text in texts for part in ("--set", text)]


def test_the_sweep_makes_one_report_of_all_on_prompts_that_nobody_learnt(
    tmp_path: Path, call: Any, write_jsonl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"{prompt} {more}"} for prompt in PROMPTS for more in ("The sun.", "A dog.", "Tom.", "A ship.")]
    prompts = write_jsonl(tmp_path / "prompts.jsonl", rows)
    monkeypatch.setenv("STORIES260K", str(save_storyteller(tmp_path / "base")))
    monkeypatch.setenv("STORIES_PROMPTS", str(prompts))
    recipe, store = tmp_path / "stories-sentiment.yaml", tmp_path / "store"
    recipe.write_text(RECIPE.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "stories_sentiment.py").write_text(LEXICON)
    ran = call("run", recipe, "--store", store, *_set(*SMALL), cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (folder,) = (store / "report").iterdir()
    report = json.loads((folder / "report.json").read_text())
    swept = {(row["stage"], *row.get("settings", {}).values()): row for row in report["sweep"]}
    assert set(swept) == {("preferred_sft",), ("dpo", 0.1), ("dpo", 1.0), ("ppo", 0.1), ("ppo", 0.5)}
    assert [len(row["models"]) for row in swept.values()].count(2) == 2  # the seeds of dpo
    assert all({"gold", "kl", "nll", "length"} <= set(row["figures"]) for row in swept.values())
    base = report["models"][report["baseline"]]
    assert base["kl"]["value"] == 0 and base["nll"]["value"] > 0
    assert [point["n"] for point in report["best_of_n"]["points"]] == [1, 2, 3]
    assert "best of n" in (folder / "frontier.svg").read_text()
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    (judged,) = (store / "verdicts").iterdir()
    sources = load(recipe, overrides=SMALL).data
    asked = load_rows(sources["prompts"], "prompt", seed=0, name="prompts")
    assert {one["prompt"] for one in samples} == {row["prompt"][0]["content"] for row in asked.held_out}
    assert 4 <= len(samples) <= 12
    pairs = DataSource(path=str(judged / "preferences.jsonl"), held_out=sources["pairs"].held_out)
    learnt = load_rows(pairs, "preference", seed=0, name="pairs").train
    preferred = {**pairs.model_dump(), "format": sources["preferred"].format, "columns": sources["preferred"].columns}
    demos = load_rows(DataSource.model_validate(preferred), "messages", seed=0, name="preferred").train
    assert len(demos) == len(learnt) > 8
    for turns in (*(row["prompt"] for row in learnt), *(row["messages"] for row in demos)):
        assert turns[0]["content"] not in {one["prompt"] for one in samples}


def test_only_the_first_words_of_a_story_count_and_a_short_one_gains_less(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vaderSentiment", reason="the sentiment of the recipe: pip install 'trueup[stories]'")
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    from stories_sentiment import WORDS, sentiment

    happy, plain = "The happy girl loved her friend", "The dog sat on the mat by the door"
    long = " ".join([happy, *[plain] * 2])
    assert len(long.split()) >= WORDS
    whole, more, short, sad = sentiment([long, f"{long} {happy}", happy, "Tom died."])
    assert whole == more > 0.8  # what follows the first words adds nothing
    assert short == pytest.approx(sentiment([f"{happy} {' '.join(['sat'] * 14)}"])[0] * 6 / WORDS)
    assert sad < -0.5  # a short story keeps all of a bad score
    assert sentiment([[{"role": "assistant", "content": long}]]) == [whole]
