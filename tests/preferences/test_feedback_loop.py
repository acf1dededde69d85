"""Sample, label, train: the app shows a checkpoint's own answers, and the next stage learns from the choices."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
name: feedback
seed: 7
data:
  asks: {{path: {folder}/asks.jsonl}}
  compared: {{artifact: candidates, file: pairs.jsonl}}
  preferred: {{artifact: labels, file: preferences.jsonl}}
stages:
  candidates: {{kind: sample, data: asks, models: [{sft}, {dpo}], n: 2, max_new_tokens: 12}}
  labels: {{kind: labels, data: compared}}
  tuned: {{kind: dpo, data: preferred, model: {sft}, train: {{max_steps: 2, batch_size: 4}}}}
compute: {{threads: 1}}
"""


@pytest.mark.slow
def test_sampled_answers_are_labelled_and_trained_on(
    tmp_path: Path, chain: Any, call: Any, serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRUEUP_LEDGER", raising=False)
    recipe = tmp_path / "feedback.yaml"
    recipe.write_text(RECIPE.format(folder=chain.recipe.parent, sft=chain["sft"].path, dpo=chain["dpo"].path))
    waiting = call("run", recipe, "--store", "store", cwd=tmp_path)
    assert waiting.returncode == 3, waiting.stdout + waiting.stderr
    (candidates,) = (tmp_path / "store" / "candidates").glob("*/candidates.jsonl")
    texts = {one["text"] for line in candidates.read_text().splitlines() for one in json.loads(line)["candidates"]}
    app = serve(["collect", str(recipe), "labels", "--annotators", "ada", "--port", "0", "--store", "store"], tmp_path)
    items, count = app.ask("next", "ada")["items"], 0
    while items:
        left, right = (items[0][side][0]["content"] for side in ("left", "right"))
        assert {left, right} <= texts and left != right
        choice = "left" if len(left) < len(right) else "right"
        items = app.ask("label", "ada", item=items[0]["item"], choice=choice, seconds=1.0)["items"]
        count += 1
    app.process.send_signal(signal.SIGINT)
    app.process.wait(timeout=800)
    done = call("run", recipe, "--store", "store", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (manifest,) = (json.loads(file.read_text()) for file in (tmp_path / "store" / "tuned").glob("*/manifest.json"))
    assert manifest["rows"]["train"] == count > 10
    (pairs,) = (tmp_path / "store" / "labels").glob("*/preferences.jsonl")
    for line in pairs.read_text().splitlines():
        row = json.loads(line)
        assert len(row["chosen"][0]["content"]) <= len(row["rejected"][0]["content"])  # as the person chose
