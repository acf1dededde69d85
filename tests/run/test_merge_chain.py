"""Adapters on adapters through the real runner: each generation is kept, none counts twice, merged all are there."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.errors import PipelineError, StageFailed

TRAIN = "{max_steps: 6, batch_size: 16, learning_rate: 5.0e-3}"
STAGES = f"""
  a_sft: {{kind: sft, data: demos, model: base, adapter: {{r: 4}}, train: {TRAIN}}}
  a_dpo: {{kind: dpo, data: pairs, model: a_sft, adapter: {{r: 4}}, train: {TRAIN}}}
  a_ppo:
    kind: ppo
    data: asks
    model: a_dpo
    reward: {{function: gold.py:words}}
    adapter: {{r: 4}}
    train:
      iterations: 5
      rollout_batch: 16
      epochs: 1
      max_new_tokens: 12
      eval_every: 5
      learning_rate: 2.0e-2
      lr_scheduler_type: constant
      kl_coef: 0.001
  full: {{kind: merge, model: base, adapters: [a_sft, a_dpo, a_ppo]}}
  wrong: {{kind: merge, model: base, adapters: [a_dpo, a_sft]}}
"""
REWARD = """

def words(completions, **columns):
    return [len(turns[-1]["content"].split()) / 4 for turns in completions]
"""


@pytest.fixture
def generations(finished: Any) -> Any:
    """The finished tiny chain, with three adapters, each on the one before, still to be made."""
    gold = finished.recipe.parent / "gold.py"
    gold.write_text(gold.read_text() + REWARD)
    finished.recipe.write_text(finished.recipe.read_text().replace("  report:\n", STAGES.lstrip("\n") + "  report:\n"))
    return finished


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=torch.arange(5, 55).reshape(2, 25)).logits


def test_three_generations_merged_are_the_last_one(generations: Any) -> None:
    generations(until="full")
    made = {name: generations.store.artifacts(name)[-1] for name in ("base", "a_sft", "a_dpo", "a_ppo", "full")}
    outputs = [logits(made[name].path) for name in made]
    for before, after in itertools.pairwise(outputs[:4]):
        assert (after - before).abs().max() > 1e-2  # each generation changed something
    torch.testing.assert_close(outputs[4], outputs[3], atol=1e-4, rtol=0)
    lineage = made["full"].manifest.lineage
    assert lineage["adapters"] == [{**one, "merged": True} for one in made["a_ppo"].manifest.lineage["adapters"]]
    assert [one["name"] for one in lineage["adapters"]] == ["a_sft", "a_dpo", "a_ppo"]


def test_adapters_out_of_order_are_bad_input(generations: Any) -> None:
    generations(until="a_dpo")
    with pytest.raises((StageFailed, PipelineError)) as error:
        generations(until="wrong")
    assert error.value.exit_code == 2
    assert "a_dpo was not trained on base@" in str(error.value.problems[0])
    assert not generations.store.artifacts("wrong")


def test_a_merge_says_that_an_adapter_was_trained_on_a_quantised_base(generations: Any) -> None:
    pytest.importorskip("bitsandbytes", reason="needs trueup[quantize]")
    generations("stages.a_sft.adapter={r: 4, quantize: 4bit}", "stages.full.adapters=[a_sft]", until="full")
    notes = [event.text for event in generations.seen.events if event.kind == "note"]
    assert "a_sft was trained on a 4bit base; it is folded into the full-precision one" in notes
