"""The reward model: ranks what it was taught to rank, the other way round when taught so, and reports honestly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from scipy import stats
from single_rows import encode_pair
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.models.load.pretrained import load_reward_model
from pipeline.recipe import DataSource

TRAIN = {"max_steps": 20, "batch_size": 16, "learning_rate": 5e-3}


def _scores(model: Any, tokenizer: Any, rows: list[dict[str, Any]], side: str) -> list[float]:
    """Score by one plain forward pass per row, without padding."""
    scores = []
    for row in rows:
        before, after = encode_pair(tokenizer, row["prompt"], row[side])
        ids = before + after
        with torch.no_grad():
            scores.append(model(input_ids=torch.tensor([ids])).logits.item())
    return scores


def _messages(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return [{key: [{"role": role, "content": row[key]}] for key, role in roles.items()} for row in rows]


def test_beats_chance_on_pairs_it_has_not_seen(chain: Any) -> None:
    metrics = chain["rm"].manifest.metrics
    assert metrics["test_accuracy"] > 0.9
    assert metrics["test_accuracy_low"] > 0.5
    assert metrics["gold_agreement"] == metrics["test_accuracy"]  # every label agrees with gold in this world
    assert metrics["label_gold_agreement"] == 1.0
    assert metrics["test_pairs"] == 60


@pytest.mark.parametrize(("order", "sign"), [("as they are", 1), ("swapped", -1)])
def test_what_is_chosen_in_training_decides_which_side_scores_higher(
    order: str, sign: int, chain: Any, as_input: Any, run_stage: Callable[..., Any], swapped_pairs: dict[str, Path]
) -> None:
    ran = run_stage(
        "reward",
        {"train": TRAIN},
        data={"data": swapped_pairs[order], "test": chain.recipe.parent / "pairs_test.jsonl"},
        inputs={"model": as_input(chain["sft"])},
    )
    metrics = ran.outcome.result.metrics
    assert sign * (metrics["test_accuracy"] - 0.5) > 0.4
    assert sign * metrics["mean_margin"] > 0.5
    assert ran.history[-1]["loss"] < 0.3 < 0.5 < ran.history[0]["loss"]  # either way the objective is reached


def test_report_figures_by_hand_from_the_scores_it_keeps(chain: Any, read_rows: Any) -> None:
    artifact = chain["rm"]
    metrics = artifact.manifest.metrics
    rows = read_rows(artifact.path / "held_out_scores.jsonl")
    margins = [row["chosen_score"] - row["rejected_score"] for row in rows]
    assert len(rows) == 60
    assert metrics["test_accuracy"] == pytest.approx(sum(m > 0 for m in margins) / 60)
    assert metrics["mean_margin"] == pytest.approx(sum(margins) / 60, abs=1e-5)
    brier = sum((1 - 1 / (1 + math.exp(-m))) ** 2 for m in margins) / 60
    assert metrics["brier"] == pytest.approx(brier, abs=1e-5)

    tokenizer = AutoTokenizer.from_pretrained(artifact.path)
    lengths = {
        side: [len(encode_pair(tokenizer, row["prompt"], row[side])[1]) for row in rows]
        for side in ("chosen", "rejected")
    }
    longer = [(a > b) + 0.5 * (a == b) for a, b in zip(lengths["chosen"], lengths["rejected"], strict=True)]
    assert metrics["longer_wins_accuracy"] == pytest.approx(sum(longer) / 60, abs=1e-6)
    scores = [row["chosen_score"] for row in rows] + [row["rejected_score"] for row in rows]
    spearman = stats.spearmanr(scores, lengths["chosen"] + lengths["rejected"]).statistic
    assert metrics["length_spearman"] == pytest.approx(spearman, abs=1e-5)

    card = json.loads((artifact.path / "reward_card.json").read_text())
    assert sum(card["histogram"]["counts"]) == 60
    assert {name: group["n"] for name, group in card["groups"].items()} == {"long": 30, "short": 30}
    for name in ("reward_card.md", "margins.svg", "reliability.svg"):
        assert (artifact.path / name).stat().st_size > 300


def test_saved_weights_give_the_reported_scores(chain: Any, read_rows: Any) -> None:
    artifact = chain["rm"]  # trained with an adapter: the artifact holds merged weights and a trained head
    model = AutoModelForSequenceClassification.from_pretrained(artifact.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(artifact.path)
    rows = read_rows(artifact.path / "held_out_scores.jsonl")[:12]
    for side in ("chosen", "rejected"):
        assert _scores(model, tokenizer, rows, side) == pytest.approx([row[f"{side}_score"] for row in rows], abs=1e-4)


def test_merged_weights_are_the_base_with_adapter_and_trained_head(
    chain: Any, as_input: Any, probe_logits: Callable[[Any], torch.Tensor]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chain["sft"].path)
    base = load_reward_model(as_input(chain["sft"]), tokenizer, seed=7)
    untrained = probe_logits(base)
    with_adapter = PeftModel.from_pretrained(base, chain["rm"].path / "adapter")
    merged = AutoModelForSequenceClassification.from_pretrained(chain["rm"].path)
    torch.testing.assert_close(probe_logits(merged), probe_logits(with_adapter), atol=1e-4, rtol=0)
    assert (probe_logits(merged) - untrained).abs().max() > 0.1


def test_accuracy_by_the_one_property_in_which_two_answers_differ(
    chain: Any, as_input: Any, run_stage: Callable[..., Any], read_rows: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    """A model that learnt to like one manner is right where that decides, and wrong where the other one is chosen."""
    rows = read_rows(chain.recipe.parent / "pairs_test.jsonl")
    tests = []
    for i, row in enumerate(rows):
        turned = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
        tests.append(
            [{**row, "differs_in": "polite"}, {**turned, "differs_in": "rude"}, {**row, "differs_in": None}][i % 3]
        )
    ran = run_stage(
        "reward",
        {"train": TRAIN, "group_by": "task", "property_column": "differs_in"},
        data={"data": chain.recipe.parent / "pairs.jsonl", "test": write_jsonl(tmp_path / "t.jsonl", tests)},
        inputs={"model": as_input(chain["sft"])},
    )
    metrics, card = ran.outcome.result.metrics, json.loads((ran.out / "reward_card.json").read_text())
    assert metrics["accuracy_on_polite_low"] > 0.5 and metrics["accuracy_on_rude_high"] < 0.5
    scores = read_rows(ran.out / "held_out_scores.jsonl")
    right = [one["chosen_score"] > one["rejected_score"] for one in scores]
    for k, name in enumerate(("polite", "rude")):
        assert card["properties"][name]["accuracy"]["n"] == 20
        assert metrics[f"accuracy_on_{name}"] == sum(right[k::3]) / 20
        for j, group in enumerate(("long", "short")):
            own = [right[i] for i in range(60) if i % 3 == k and i % 2 == j]
            assert card["properties"][name]["groups"][group]["value"] == sum(own) / len(own) and len(own) == 10
    assert set(card["properties"]) == {"polite", "rude"} and card["pairs"] == 60
    page = (ran.out / "reward_card.md").read_text()
    assert "For 40 of 60 pairs the data name the one property" in page
    assert "**On rude it is below chance**" in page and "it cannot be told from guessing** with" not in page
    assert f"{metrics['accuracy_on_rude']:.1%} on rude" in ran.outcome.result.summary


@pytest.mark.parametrize("field", ["group_by", "property_column"])
def test_a_column_that_no_held_out_pair_has_is_told_before_training(
    field: str, chain: Any, as_input: Any, run_stage: Callable[..., Any]
) -> None:
    data = DataSource(path=str(chain.recipe.parent / "pairs.jsonl"), held_out=0.1)
    config = {"train": TRAIN, field: "tusk"}
    ran = run_stage("reward", config, data={"data": data}, inputs={"model": as_input(chain["sft"])}, expect="failed")
    assert ran.outcome.bad_input and not (ran.out / "metrics.jsonl").exists()
    (problem,) = ran.outcome.problems
    assert str(problem).startswith(f"{field} is `tusk`, and none of ") and "Did you mean `task`?" in str(problem)


@pytest.mark.parametrize("use_margin", [False, True])
def test_the_first_loss_by_hand_with_and_without_margins(
    use_margin: bool,
    chain: Any,
    as_input: Any,
    run_stage: Callable[..., Any],
    read_rows: Any,
    write_jsonl: Any,
    tmp_path: Path,
) -> None:
    """Bradley-Terry with a margin (Llama 2, equation 2): -log σ(r(chosen) - r(rejected) - m), averaged over pairs."""
    rows = read_rows(chain.recipe.parent / "pairs.jsonl")[:8]
    rows = [{**row, "margin": 0.25 * i} for i, row in enumerate(rows)]
    source = as_input(chain["sft"])
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    start = load_reward_model(source, tokenizer, seed=7).eval()
    talks = _messages(rows)
    gaps = [
        a - b - (row["margin"] if use_margin else 0.0)
        for a, b, row in zip(
            _scores(start, tokenizer, talks, "chosen"), _scores(start, tokenizer, talks, "rejected"), rows, strict=True
        )
    ]
    expected = sum(math.log1p(math.exp(-gap)) for gap in gaps) / 8
    train = {"max_steps": 1, "batch_size": 8, "use_margin": use_margin}
    data = {"data": write_jsonl(tmp_path / "m.jsonl", rows)}
    ran = run_stage("reward", {"train": train}, data=data, inputs={"model": source})
    assert ran.history[0]["loss"] == pytest.approx(expected, abs=1e-5)


def test_margins_in_some_rows_only_are_refused(
    chain: Any, as_input: Any, run_stage: Callable[..., Any], read_rows: Any, write_jsonl: Any, tmp_path: Path
) -> None:
    rows = read_rows(chain.recipe.parent / "pairs.jsonl")[:8]
    rows[3]["margin"] = 1.0
    ran = run_stage(
        "reward",
        {"train": {"use_margin": True, "batch_size": 8}},
        data={"data": write_jsonl(tmp_path / "m.jsonl", rows)},
        inputs={"model": as_input(chain["sft"])},
        expect="failed",
    )
    assert ran.outcome.bad_input
    assert "1 of 8 pairs has a margin, and train.use_margin is true" in str(ran.outcome.problems[0])


def test_pairs_that_do_not_fit_are_left_out_and_counted(
    chain: Any,
    as_input: Any,
    run_stage: Callable[..., Any],
    pairs_too_long: list[dict[str, Any]],
    write_jsonl: Any,
    tmp_path: Path,
) -> None:
    data = {"data": write_jsonl(tmp_path / "m.jsonl", pairs_too_long)}
    train = {"max_steps": 1, "batch_size": 8}
    inputs = {"model": as_input(chain["sft"])}
    ran = run_stage("reward", {"train": train}, data=data, inputs=inputs)
    assert ran.outcome.result.rows == {"train": 10, "held_out": 0, "dropped": 2}
    assert "2 of 10 pairs are longer than 64 tokens and were left out" in ran.notes
    assert ran.outcome.result.summary == "no held-out pairs"
    held_out = DataSource(path=str(data["data"]), held_out=0.5)
    train["batch_size"] = 2
    ran = run_stage("reward", {"train": train}, data={"data": held_out, "test": data["data"]}, inputs=inputs)
    left = [note for note in ran.notes if note.endswith("are longer than 64 tokens and were left out")]
    pairs = sum(int(note.split()[0]) for note in left if "to test" not in note)
    assert pairs == 2 and "2 of 10 pairs to test are longer than 64 tokens and were left out" in left
    assert any(note.endswith("held-out pairs of `data` are not used: the report is of `test`") for note in ran.notes)
    assert ran.outcome.result.metrics["test_pairs"] == 8
