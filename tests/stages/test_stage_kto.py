"""KTO: good responses gain on the reference and bad ones lose, whichever way round the labels are.

Labelled rows are made from the tiny pairs: one response of each, so no prompt is seen from both sides.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crossing import crossed

from pipeline.errors import PipelineError
from pipeline.recipe import DataSource
from pipeline.stage import KINDS
from pipeline.stages.kto.rows import add_mismatched, check_labels, length_quantiles, weight_advice
from pipeline.training.data.batches import Batches

TRAIN = {"max_steps": 24, "batch_size": 16, "learning_rate": 3e-3, "beta": 0.5}
FLIPPED = {True: False, False: True}
LORA = {"adapter": {"r": 4}, "train": {**TRAIN, "learning_rate": 1e-2}}
WHATS = {"full": {"train": TRAIN}, "lora": LORA}
SIGNS = {"as they are": 1, "swapped": -1}


Gain = Callable[[str, str], float]
Learn = Callable[..., Any]
Rows = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def labelled(tiny_rows: Rows) -> Rows:
    """Return labelled rows of the tiny world: of every n-th pair the good response, of the others the bad one."""

    def make(good_every: int = 2, count: int = 160) -> list[dict[str, Any]]:
        pairs = tiny_rows("pairs")[:count]
        sides = ["rejected" if i % good_every else "chosen" for i in range(count)]
        return [
            {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
            for pair, side in zip(pairs, sides, strict=True)
        ]

    return make


def assert_it_was_learnt(ran: Any, sign: int, gain_over_sft: Callable[[Path], Gain], tiny_rows: Rows) -> None:
    """Polite answers to unseen questions gain more than rude ones, or less with the other ``sign``."""
    # Policy and reference start as one model: no divergence, and the loss is 1 - σ(0) = 0.5 for every row.
    assert ran.history[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert ran.history[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    assert ran.history[-1]["loss"] < 0.4
    gain, rows = gain_over_sft(ran.out), tiny_rows("pairs_test")[:24]
    good, bad = (sum(gain(row["prompt"], row[side]) for row in rows) / 24 for side in ("chosen", "rejected"))
    assert sign * (good - bad) > 1


@crossed("what, order", WHATS, SIGNS, [("full", "as they are"), ("lora", "swapped")])
def test_good_responses_gain_and_bad_ones_lose(
    what: str,
    order: str,
    learn: Learn,
    swapped_pairs: dict[str, Path],
    gain_over_sft: Callable[[Path], Gain],
    tiny_rows: Rows,
) -> None:
    ran = learn("kto", WHATS[what], swapped_pairs[order])
    assert_it_was_learnt(ran, SIGNS[order], gain_over_sft, tiny_rows)
    assert ran.outcome.result.metrics["rewards/margins"] > 0


@pytest.mark.parametrize(("labels", "sign"), [("as they are", 1), ("flipped", -1)])
def test_labelled_rows_alone_teach_it(
    labels: str, sign: int, labelled: Rows, learn: Learn, gain_over_sft: Callable[[Path], Gain], tiny_rows: Rows
) -> None:
    rows = labelled()
    if labels == "flipped":
        rows = [{**row, "label": FLIPPED[row["label"]]} for row in rows]
    ran = learn("kto", {"train": TRAIN}, rows)
    assert_it_was_learnt(ran, sign, gain_over_sft, tiny_rows)
    result = ran.outcome.result
    assert result.rows == {"train": 160, "held_out": 0, "dropped": 0, "good": 80, "bad": 80}
    assert ran.notes == []
    assert result.summary == f"implicit reward of good responses is {result.metrics['rewards/margins']:.3f} above " + (
        "that of bad ones"
    )


BY_HAND = {"learning_rate": 1e-3, "beta": 0.3, "lr_scheduler_type": "constant", "logging_steps": 1}
BY_HAND |= {"loss_type": "apo_zero_unpaired", "kl_batch": 4}
"""Without its estimate of divergence the loss of a row depends on the row alone."""


def test_the_loss_of_labelled_rows_by_hand_with_their_weights(
    labelled: Rows, learn: Learn, gain_over_sft: Callable[[Path], Gain]
) -> None:
    """Each row's loss is 1 - σ(β gain) or σ(β gain), times the weight of its label; rows are averaged."""
    rows = labelled(good_every=3, count=8)
    train = {**BY_HAND, "batch_size": 8, "desirable_weight": 2.0, "undesirable_weight": 0.5}
    one, two = (learn("kto", {"train": {**train, "max_steps": steps}}, rows) for steps in (1, 2))
    gain = gain_over_sft(one.out)
    losses = []
    for row in rows:
        sign, weight = (1, 2.0) if row["label"] else (-1, 0.5)
        losses.append(weight / (1 + math.exp(sign * 0.3 * gain(row["prompt"], row["completion"]))))  # 1 - σ(x) = σ(-x)
    # Rows 0, 3 and 6 are good: the first loss is (3 * 2 + 5 * 0.5) / 8 * 0.5.
    assert two.history[0]["loss"] == pytest.approx(0.53125, abs=1e-5)
    assert two.history[1]["loss"] == pytest.approx(sum(losses) / 8, abs=1e-5)
    assert two.history[1]["loss"] < 0.53
    assert sum(row["label"] for row in rows) == 3


def test_the_margin_is_known_where_no_micro_batch_holds_both_labels(
    labelled: Rows, learn: Learn, write_jsonl: Any, tmp_path: Path
) -> None:
    """Held-out rows are evaluated in their order, here bad ones first, two at a time."""
    rows = sorted(labelled(good_every=8), key=lambda row: row["label"])
    source = DataSource(path=str(write_jsonl(tmp_path / "l.jsonl", rows)), held_out=0.25)
    train = {**TRAIN, "max_steps": 8, "kl_batch": 2, "desirable_weight": 7.0}
    ran = learn("kto", {"train": train}, source)
    metrics = ran.outcome.result.metrics
    assert metrics["eval_rewards/margins"] == pytest.approx(
        metrics["eval_rewards/chosen"] - metrics["eval_rewards/rejected"], abs=1e-9
    )
    assert metrics["eval_rewards/margins"] > 0.05
    assert f"{metrics['eval_rewards/margins']:.3f} above" in ran.outcome.result.summary
    both = [row for row in ran.history if {"rewards/chosen", "rewards/rejected"} <= set(row)]
    for row in both:  # written with eight digits
        assert row["rewards/margins"] == pytest.approx(row["rewards/chosen"] - row["rewards/rejected"], abs=1e-6)
    assert len(both) >= 3
    assert ran.notes == []  # 20 good rows of 160 at weight 7 are balanced


def test_every_step_sees_both_labels_where_good_responses_are_longer(labelled: Rows, learn: Learn) -> None:
    said = {True: "i see that it is red , my friend .", False: "go away ."}
    rows = [{**row, "completion": said[row["label"]]} for row in labelled()]
    train = {**TRAIN, "max_steps": 10, "logging_steps": 1}
    ran = learn("kto", {"train": train}, rows)
    assert [{"rewards/chosen", "rewards/rejected"} <= set(row) for row in ran.history] == [True] * 10


@pytest.mark.parametrize("label", [True, False])
def test_rows_of_one_label_are_refused_before_training(label: bool, labelled: Rows, learn: Learn) -> None:
    rows = [row for row in labelled() if row["label"] is label]
    ran = learn("kto", {"train": TRAIN}, rows, expect="failed")
    (problem,) = ran.outcome.problems
    assert problem.found == f"data data: the label of all 80 rows to learn from is {str(label).lower()}"
    assert ran.outcome.bad_input and not [event for event in ran.events if event.kind == "progress"]


@pytest.mark.parametrize(
    ("labels", "is_paired", "message"),
    [
        ([], True, "no pair fits; expected pairs of at most 9 tokens. Raise train.max_length"),
        ([], False, "no row fits; expected rows of at most 9 tokens. Raise train.max_length"),
        ([True], False, "no bad row fits; expected bad rows of at most 9 tokens. Raise train.max_length"),
        ([False, False], False, "no good row fits; expected good rows of at most 9 tokens. Raise train.max_length"),
    ],
)
def test_both_labels_must_fit(labels: list[bool], is_paired: bool, message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        check_labels([{"label": label} for label in labels], 9, is_paired=is_paired)
    assert str(caught.value) == message
    check_labels([{"label": True}, {"label": False}], 9, is_paired=is_paired)


def test_rows_that_do_not_fit_are_counted_and_must_leave_both_labels(labelled: Rows, learn: Learn) -> None:
    long = "go away . " * 40  # the model's context is 64 tokens
    rows = [row if row["label"] else {**row, "completion": long} for row in labelled()]
    config = {"train": {**TRAIN, "max_steps": 1}}
    ran = learn("kto", config, rows, expect="failed")
    assert str(ran.outcome.problems[0]).startswith("no bad row fits; expected bad rows of at most 64 tokens")
    ran = learn("kto", config, [*rows[:20], *labelled()[20:]])
    assert ran.notes == ["10 of 160 rows are longer than 64 tokens and were left out"]
    assert ran.outcome.result.rows == {"train": 160, "held_out": 0, "dropped": 10, "good": 80, "bad": 70}


def test_rare_labels_get_advice_before_training(labelled: Rows, learn: Learn) -> None:
    ran = learn("kto", {"train": {**TRAIN, "max_steps": 1}}, labelled(good_every=8))
    assert ran.notes == [weight_advice(20, 140, 1.0, 1.0)]
    first_step = next(i for i, event in enumerate(ran.events) if event.text.startswith("training on"))
    assert [event.kind for event in ran.events[:first_step]].count("note") == 1


@pytest.mark.parametrize(
    ("counts", "weights", "expected"),
    [
        # The paper's own example: 1 to 10 wants a λ_D from 10 to 15.
        ((10, 100), (1.0, 1.0), "10 good rows weigh 0.1 times .*: set train.desirable_weight between 10 and 15"),
        # λ_U n_U = 20 of 140: 20 λ_D from 70 to 105.
        ((20, 140), (1.0, 0.5), "weigh 0.286 times .*: set train.desirable_weight between 3.5 and 5.25"),
        # 90 to 10: from 90 / (10 * 1.5) to 90 / 10.
        ((90, 10), (1.0, 1.0), "weigh 9 times .*: set train.undesirable_weight between 6 and 9"),
        ((60, 100), (1.0, 1.0), "weigh 0.6 times"),
        ((67, 100), (1.0, 1.0), ""),
        ((100, 100), (1.0, 1.0), ""),
        ((225, 100), (1.0, 1.0), ""),
        ((226, 100), (1.0, 1.0), "weigh 2.26 times"),
        ((10, 100), (12.0, 1.0), ""),
        ((10, 100), (1.0, 0.0), ""),
        ((10, 100), (0.0, 1.0), ""),
    ],
)
def test_the_weights_advised(counts: tuple[int, int], weights: tuple[float, float], expected: str) -> None:
    advice = weight_advice(*counts, *weights)
    assert bool(advice) is bool(expected)
    assert re.search(expected, advice)


def test_batches_of_labelled_rows_mix_the_labels_whatever_their_lengths() -> None:
    # Good rows are longer than all bad ones, one in four.
    labels = [i % 4 == 0 for i in range(256)]
    lengths = [100 + i % 50 if label else i % 50 for i, label in enumerate(labels)]
    order = length_quantiles(lengths, labels)
    assert length_quantiles([3, 1, 2, 9], [True, True, False, False]) == [0.75, 0.25, 0.25, 0.75]
    groups = list(Batches(lengths, 16, 16, seed=3, order=order).batches())
    assert sorted(row for group in groups for row in group) == list(range(256))
    shares = [sum(labels[row] for row in group) for group in groups]
    assert set(shares) <= {3, 4, 5}
    # Sorted by length alone, 12 of 16 batches hold bad rows only.
    alone = [sum(labels[row] for row in group) for group in Batches(lengths, 16, 16, seed=3).batches()]
    assert sorted(alone) == [0] * 12 + [16] * 4
    # Inside a label lengths are alike: the standing of a batch's rows spans a sixteenth and a neighbour's edge.
    spans = [max(order[row] for row in group) - min(order[row] for row in group) for group in groups]
    assert max(spans) < 0.1


def test_the_second_loss_by_hand(learn: Learn, gain_over_sft: Callable[[Path], Gain], tiny_rows: Rows) -> None:
    """The loss is 1 - σ(β gain) or σ(β gain), averaged."""
    rows = tiny_rows("pairs")[:8]
    train = {**BY_HAND, "batch_size": 16}
    one, two = (learn("kto", {"train": {**train, "max_steps": steps}}, rows) for steps in (1, 2))
    gain = gain_over_sft(one.out)
    losses = []
    for row in rows:
        for side, sign in (("chosen", 1), ("rejected", -1)):
            losses.append(1 / (1 + math.exp(sign * 0.3 * gain(row["prompt"], row[side]))))  # 1 - σ(x) = σ(-x)
    assert two.history[1]["loss"] == pytest.approx(sum(losses) / 16, abs=1e-5)
    assert two.history[1]["loss"] < 0.5 - 1e-3


@pytest.mark.parametrize("shape", ["preference", "labelled"])
def test_a_run_cut_off_ends_in_the_same_bits(
    shape: str, labelled: Rows, learn: Learn, write_jsonl: Any, tmp_path: Path
) -> None:
    rows = write_jsonl(tmp_path / "l.jsonl", labelled(good_every=3)) if shape == "labelled" else "pairs"

    def run(name: str, **options: Any) -> list[str]:
        train = {**TRAIN, "max_steps": 5, "logging_steps": 3}
        ran = learn("kto", {"train": train}, rows, name=name, **options)
        files = [ran.out / name for name in ("model.safetensors", "metrics.jsonl")]
        return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.exists()] + [str(ran.out)]

    whole = run("whole")
    out = Path(whole[-1]).parent.parent / "cut"
    asked = iter([False] * 2 + [True] * 9)  # stops after the third step
    run("cut", out=out, stopping=lambda: any(out.rglob("reference-train.json")) and next(asked), expect="stopped")
    assert [path.name for path in out.rglob("checkpoint-*")] == ["checkpoint-3"]
    assert run("cut", out=out)[:-1] == whole[:-1]


def test_every_row_is_matched_with_a_response_to_another_prompt() -> None:
    rows = [{"prompt_ids": [i // 4, 1], "completion_ids": [i] * 9, "label": True} for i in range(12)]
    made = add_mismatched(rows, rows, 6, 3)
    assert all(row["KL_completion_ids"][0] // 4 != i // 4 for i, row in enumerate(made))
    assert all(len(row["KL_completion_ids"]) == 4 for row in made)  # 6 tokens less the prompt's 2
    assert made == add_mismatched(rows, rows, 6, 3)
    assert made != add_mismatched(rows, rows, 6, 4)


def test_pairs_of_one_prompt_are_refused(learn: Learn, tiny_rows: Rows) -> None:
    ran = learn("kto", {"train": TRAIN}, tiny_rows("pairs")[:1] * 16, expect="failed")
    assert str(ran.outcome.problems[0]).startswith("all rows have the same prompt; expected at least two")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"loss_type": "apo_zero_unpared"}, "train.loss_type is apo_zero_unpared; expected one of .*apo_zero_unpaired"),
        ({"kl_batch": 12}, r"train.batch_size is 16; expected a multiple of train.kl_batch \(12\)"),
    ],
)
def test_what_trl_would_not_take_is_refused_with_the_recipe(train: dict[str, Any], message: str) -> None:
    config = KINDS["kto"].config.model_validate({"data": "p", "model": "m", "train": {**TRAIN, **train}})
    (problem,) = config.check()
    assert re.match(message, str(problem))
