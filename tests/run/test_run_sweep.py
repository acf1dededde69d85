"""A sweep, run for real: two stages with two settings and two seeds each, one report, and one more value runs alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
name: swept
seed: 7
data:
  asks: {{path: {folder}/asks.jsonl}}
  pairs: {{path: {folder}/pairs.jsonl, limit: 16}}
sweep:
  - {{stages.dpo.train.beta: [0.05, 0.5], stages.dpo.seed: [7, 8]}}
  - {{stages.kto.train.beta: [0.05, 0.5], stages.kto.seed: [7, 8]}}
stages:
  dpo: {{kind: dpo, data: pairs, model: {sft}, train: {{max_steps: 2, batch_size: 4, learning_rate: 3.0e-3}}}}
  kto: {{kind: kto, data: pairs, model: {sft}, train: {{max_steps: 2, batch_size: 8, learning_rate: 3.0e-3}}}}
  report:
    kind: evaluate
    data: asks
    models: [{sft}, dpo, kto]
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


@pytest.mark.slow
def test_a_sweep_is_run_and_reported_and_one_more_value_runs_alone(tmp_path: Path, chain: Any, call: Any) -> None:
    recipe, store = tmp_path / "swept.yaml", tmp_path / "store"
    recipe.write_text(RECIPE.format(folder=chain.recipe.parent, sft=chain["sft"].path))
    (tmp_path / "gold.py").write_text(GOLD)
    done = call("run", recipe, "--store", "store", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Means over 2 models that differ in the seed only, ± their standard deviation." in done.stdout
    assert "--set stages." not in done.stdout  # the sweep sets β
    (report,) = (json.loads(file.read_text()) for file in (store / "report").glob("*/report.json"))
    rows = report["sweep"]
    assert [(row["stage"], row["settings"]) for row in rows] == [
        (stage, {"beta": beta}) for stage in ("dpo", "kto") for beta in (0.05, 0.5)
    ]
    assert rows[0]["models"] == ["dpo-beta-0.05-seed-7", "dpo-beta-0.05-seed-8"]
    for row in rows:
        kl = [report["models"][name]["kl"]["value"] for name in row["models"]]
        assert row["figures"]["kl"]["mean"] == pytest.approx(sum(kl) / 2, rel=1e-7)
        # of two values, the deviation with n - 1 is their distance over the root of 2
        assert row["figures"]["kl"]["sd"] == pytest.approx(abs(kl[0] - kl[1]) / 2**0.5, rel=1e-6)
    (folder,) = (store / "report").glob("*/frontier.svg")
    assert "labelled by beta" in folder.read_text(encoding="utf-8")
    more = [arg for text in ("[0.05, 0.2, 0.5]",) for arg in ("--set", f"sweep.0.stages.dpo.train.beta={text}")]
    planned = call("plan", recipe, "--store", "store", "--json", *more, cwd=tmp_path)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    pending = {one["name"]: one["why"] for one in json.loads(planned.stdout)["stages"] if one["status"] == "pending"}
    new = ["dpo-beta-0.2-seed-7", "dpo-beta-0.2-seed-8"]
    assert list(pending) == [*new, "report"]
    assert pending["report"] == [f"input models: {name} added" for name in new]
