"""Rounds, run for real: each samples from the policy of the one before, and one more keeps those that are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
name: online
seed: 7
data:
  asks: {{path: {folder}/asks.jsonl}}
  compared: {{artifact: candidates, file: candidates.jsonl}}
  preferred: {{artifact: verdicts, file: preferences.jsonl}}
groups:
  online:
    rounds: 2
    stages: [candidates, verdicts, dpo]
    carry: {{policy: {{first: {sft}, then: dpo}}}}
stages:
  candidates: {{kind: sample, data: asks, models: [policy], n: 2, max_new_tokens: 12, limit: 12}}
  verdicts: {{kind: judge, data: compared, function: gold.py:short}}
  dpo: {{kind: dpo, data: preferred, model: policy, train: {{max_steps: 2, batch_size: 4, learning_rate: 1.0e-3}}}}
  report:
    kind: evaluate
    data: asks
    models: [{sft}, dpo-*]
    rounds: [{sft}, dpo-*]
    baseline: {sft}
    gold: gold.py:short
    limit: 12
    max_new_tokens: 12
    resamples: 100
compute: {{threads: 1}}
"""
GOLD = """
def short(completions, **columns):
    return [-float(len(str(one))) for one in completions]
"""


def _manifests(store: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in (store / name).glob("*/manifest.json")]


@pytest.mark.slow
def test_each_round_samples_from_the_round_before_and_one_more_runs_alone(
    tmp_path: Path, chain: Any, call: Any
) -> None:
    recipe, store = tmp_path / "online.yaml", tmp_path / "store"
    recipe.write_text(RECIPE.format(folder=chain.recipe.parent, sft=chain["sft"].path))
    (tmp_path / "gold.py").write_text(GOLD)
    done = call("run", recipe, "--store", "store", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Against the round before" in done.stdout or "Every round rises" in done.stdout
    assert "--set stages.dpo.train.beta=" in done.stdout  # not of dpo-2, which the recipe does not have
    (first,), (second,) = (_manifests(store, f"dpo-{number}") for number in (1, 2))
    (candidates,) = _manifests(store, "candidates-2")
    assert [one["name"] for one in candidates["inputs"]] == ["dpo-1"]
    assert {one["name"] for one in second["inputs"] if one["field"] == "model"} == {"dpo-1"}
    assert [first["seed"], second["seed"]] == [7, 8]
    assert {record["source"] for record in second["data"].values()} == {"preferred-2"}
    rows = [
        [json.loads(line) for line in file.read_text().splitlines()]
        for number in (1, 2)
        for file in (store / f"candidates-{number}").glob("*/candidates.jsonl")
    ]
    assert {row["row"] for row in rows[0]} != {row["row"] for row in rows[1]}  # `limit` draws other prompts
    (report,) = (json.loads(file.read_text()) for file in (store / "report").glob("*/report.json"))
    assert [step["model"] for step in report["rounds"]] == ["dpo-1", "dpo-2"]
    more = call("plan", recipe, "--store", "store", "--json", "--set", "groups.online.rounds=3", cwd=tmp_path)
    assert more.returncode == 0, more.stdout + more.stderr
    pending = {one["name"] for one in json.loads(more.stdout)["stages"] if one["status"] == "pending"}
    assert pending == {"candidates-3", "verdicts-3", "dpo-3", "report"}
