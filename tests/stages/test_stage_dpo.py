"""DPO: the margin over the reference grows towards what the labels say, and the reference is the start itself."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from crossing import crossed
from peft import PeftModel

from pipeline.recipe import DataSource
from pipeline.stage import KINDS
from pipeline.stages.dpo.config import LOSSES

Gain = Callable[[str, str], float]
Learn = Callable[..., Any]
Load = Callable[[Path], tuple[Any, Any]]
TRAIN = {"max_steps": 16, "batch_size": 16, "learning_rate": 2e-3, "beta": 0.5}
LORA = {"adapter": {"r": 4}, "train": {**TRAIN, "learning_rate": 1e-2}}
WHATS = {"full": {"train": TRAIN}, "lora": LORA}
SIGNS = {"as they are": 1, "swapped": -1}


@pytest.fixture
def margins(gain_over_sft: Callable[[Path], Gain], tiny_rows: Any) -> Callable[[Path], list[float]]:
    """Implicit reward margins over β on held-out pairs, by plain forward passes: equation 7's argument."""

    def of(folder: Path) -> list[float]:
        gain = gain_over_sft(folder)
        rows = tiny_rows("pairs_test")[:24]
        return [gain(row["prompt"], row["chosen"]) - gain(row["prompt"], row["rejected"]) for row in rows]

    return of


@crossed("what, order", WHATS, SIGNS, [("full", "as they are"), ("lora", "swapped")])
def test_the_margin_grows_towards_what_was_chosen(
    what: str,
    order: str,
    learn: Learn,
    swapped_pairs: dict[str, Path],
    margins: Callable[[Path], list[float]],
) -> None:
    ran, sign = learn("dpo", WHATS[what], swapped_pairs[order]), SIGNS[order]
    # Policy and reference start as one model: every margin is 0 and the loss is -log σ(0) = ln 2.
    assert ran.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert ran.history[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert ran.history[-1]["loss"] < 0.5
    assert ran.history[-1]["rewards/margins"] > 0.5  # on its own labels
    assert ran.history[-1]["rewards/accuracies"] > 0.9
    learnt_margins = margins(ran.out)
    assert sign * sum(learnt_margins) / len(learnt_margins) > 1
    assert sum(sign * margin > 0 for margin in learnt_margins) > 0.9 * len(learnt_margins)


@pytest.mark.parametrize("config", [{"train": TRAIN}, LORA], ids=["full", "lora"])
def test_reference_logprobs_are_those_of_a_plain_forward_pass(
    config: dict[str, Any], chain: Any, learn: Learn, load_plain: Load, tiny_rows: Any, response_logprob: Any
) -> None:
    """With an adapter, switching it off must give the very start again."""
    ran = learn("dpo", {**config, "train": {**config["train"], "max_steps": 1}}, "pairs")
    kept = json.loads((ran.work / "reference-train.json").read_text())
    model, tokenizer = load_plain(chain["sft"].path)
    rows = tiny_rows("pairs")
    assert len(kept["ref_chosen_logps"]) == len(rows) == 160
    for side in ("chosen", "rejected"):
        expected = [response_logprob(model, tokenizer, row["prompt"], row[side]) for row in rows[:40]]
        assert kept[f"ref_{side}_logps"][:40] == pytest.approx(expected, abs=1e-5)


def test_the_second_loss_by_hand(learn: Learn, gain_over_sft: Callable[[Path], Gain], tiny_rows: Any) -> None:
    """After one step the loss is -log σ(β · margin) of that step's model (equation 7), β included."""
    rows = tiny_rows("pairs")[:8]
    # A constant rate: with the default schedule the first of two steps would be another step than the first of one.
    train = {"batch_size": 8, "learning_rate": 1e-3, "beta": 0.3, "lr_scheduler_type": "constant", "logging_steps": 1}
    one, two = (learn("dpo", {"train": {**train, "max_steps": steps}}, rows) for steps in (1, 2))
    gain = gain_over_sft(one.out)
    margins = [gain(row["prompt"], row["chosen"]) - gain(row["prompt"], row["rejected"]) for row in rows]
    losses = [math.log1p(math.exp(-0.3 * margin)) for margin in margins]
    assert two.history[1]["loss"] == pytest.approx(sum(losses) / 8, abs=1e-5)
    assert two.history[1]["loss"] < math.log(2) - 1e-3


def test_stops_while_the_reference_is_computed_when_asked(learn: Learn) -> None:
    ran = learn("dpo", {"train": TRAIN}, "pairs", stopping=lambda: True, expect="stopped")
    assert [event.text for event in ran.events if event.kind == "phase"][-1] == "reference log-probabilities"
    assert not [path for path in ran.work.rglob("*") if path.is_file()]


def test_an_adapter_on_a_tuned_model_merges_and_keeps_its_parents(
    chain: Any, learn: Learn, load_plain: Load, probe_logits: Callable[[Any], torch.Tensor]
) -> None:
    train = {"max_steps": 12, "batch_size": 16, "learning_rate": 2e-2}
    sft = learn("sft", {"adapter": {"r": 4}, "train": train}, "demos", model="base", name="tuned")
    parent = sft.source.model_copy(update={"manifest": {"lineage": dict(sft.outcome.result.lineage)}})
    dpo = learn("dpo", LORA, "pairs", model=parent, name="aligned")
    base, _ = load_plain(chain["base"].path)
    stacked = PeftModel.from_pretrained(base, sft.out / "adapter").merge_and_unload()
    stacked = PeftModel.from_pretrained(stacked, dpo.out / "adapter")
    made, _ = load_plain(dpo.out)
    torch.testing.assert_close(probe_logits(made), probe_logits(stacked), atol=1e-4, rtol=0)
    with stacked.disable_adapter():  # the reference of DPO: its parent, adapter and all
        torch.testing.assert_close(probe_logits(stacked), probe_logits(load_plain(sft.out)[0]), atol=1e-4, rtol=0)
    assert [one["name"] for one in dpo.outcome.result.lineage["adapters"]] == ["tuned", "aligned"]


def test_pairs_that_do_not_fit_are_left_out_and_counted(learn: Learn, pairs_too_long: list[dict[str, Any]]) -> None:
    ran = learn("dpo", {"train": {"max_steps": 1, "batch_size": 8}}, pairs_too_long)
    assert ran.outcome.result.rows == {"train": 10, "held_out": 0, "dropped": 2}
    assert "2 of 10 pairs are longer than 64 tokens and were left out" in ran.notes


def test_held_out_pairs_are_measured_against_the_same_reference(chain: Any) -> None:
    manifest = chain["dpo"].manifest
    assert manifest.rows["held_out"] > 0
    assert manifest.metrics["eval_rewards/accuracies"] > 0.8
    assert manifest.metrics["eval_rewards/margins"] > 0
    assert f"{manifest.metrics['eval_rewards/accuracies']:.1%}" in manifest.summary


@pytest.mark.parametrize("loss_type", ["ipo", "hinge", "sigmoid_norm", "apo_zero", ["sigmoid", "sft"]], ids=str)
def test_other_losses_prefer_what_was_chosen_too(
    loss_type: str | list[str], learn: Learn, margins: Callable[[Path], list[float]]
) -> None:
    ran = learn("dpo", {"train": {**TRAIN, "loss_type": loss_type}}, "pairs")
    # At the start the margin is 0: (0 - 1/(2β))² = 1 for ipo, 1 - 0 for hinge, -log σ(0), (1 - σ(0)) + σ(0) for apo.
    first = {"ipo": 1.0, "hinge": 1.0, "sigmoid_norm": math.log(2), "apo_zero": 1.0}
    if isinstance(loss_type, str):
        assert ran.history[0]["loss"] == pytest.approx(first[loss_type], abs=1e-3)
    assert ran.history[-1]["loss"] < ran.history[0]["loss"]
    learnt_margins = margins(ran.out)
    assert sum(margin > 0 for margin in learnt_margins) > 0.8 * len(learnt_margins)


def test_the_losses_are_those_of_trl() -> None:
    from trl.trainer import dpo_trainer

    source = Path(dpo_trainer.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r'if loss_type == "(\w+)"', source)) == set(LOSSES)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"loss_type": "ippo"}, "train.loss_type is ippo; expected one of .*ipo"),
        ({"loss_type": ["sigmoid", "hing"]}, "train.loss_type is hing; expected one of .*hinge"),
        (
            {"loss_type": ["sigmoid", "sft"], "loss_weights": [1]},
            "1 train.loss_weights for 2 losses of train.loss_type; expected one for each",
        ),
    ],
)
def test_a_loss_trl_does_not_have_is_refused_with_the_recipe(train: dict[str, Any], message: str) -> None:
    config = KINDS["dpo"].config.model_validate({"data": "p", "model": "m", "train": {**TRAIN, **train}})
    (problem,) = config.check()
    assert re.match(message, str(problem))


def test_the_reference_scores_held_out_pairs_only_where_they_are_evaluated(learn: Learn, chain: Any) -> None:
    rows = DataSource(path=str(chain.recipe.parent / "pairs.jsonl"), held_out=0.5)
    for strategy, is_evaluated in (("no", False), ("steps", True)):
        train = {"max_steps": 2, "batch_size": 16, "learning_rate": 1e-3, "eval_strategy": strategy}
        ran = learn("dpo", {"train": train}, rows)
        totals = {event.total for event in ran.events if event.total}
        held_out = 2 * ran.outcome.result.rows["held_out"]  # two responses of each pair
        assert (held_out in totals) == is_evaluated
        assert any("eval_loss" in row for row in ran.history) == is_evaluated
