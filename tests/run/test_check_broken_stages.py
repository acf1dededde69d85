"""A stage with one wrong field: everything else that is wrong with it is told in the same round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.recipe import inspect

STAGES: dict[str, tuple[str, list[str]]] = {
    "an unknown key beside wrong words and contradictions": (
        "{kind: sft, model: base, data: demos, bogus: 1, train: {lr_scheduler_type: cosin, warmup_steps: 100, "
        "max_steps: 10, learning_rate: x, report_to: nowhere, metric_for_best_model: loss}}",
        [
            "unknown key `bogus`",
            "train.learning_rate is 'x'",
            "train.lr_scheduler_type is cosin",
            "train.warmup_steps is 100",
            "train.report_to: nowhere is not supported",
            "train.metric_for_best_model has no effect here",
        ],
    ),
    "a missing model beside wrong words": (
        "{kind: dpo, data: pairs, train: {loss_type: sigmoidd, loss_weights: [1, 2], optim: adamx, foo: 1}}",
        [
            "`model` is missing",
            "train.loss_type is sigmoidd",
            "2 train.loss_weights for 1 loss of train.loss_type",
            "train.optim is adamx",
            "unknown key `foo`",
        ],
    ),
    "nothing is said of the default of a list of losses that is wrong": (
        "{kind: dpo, data: pairs, model: base, train: {loss_type: 5, loss_weights: [1, 2]}}",
        ["train.loss_type is 5"],
    ),
    "a wrong type of one field, and another that contradicts a default or a right one": (
        "{kind: kto, data: pairs, model: base, train: {batch_size: 10, kl_batch: 4, max_length: long}}",
        ["train.max_length is 'long'", "train.batch_size is 10"],
    ),
    "nothing is said of the default of a field whose value is wrong": (
        "{kind: kto, data: pairs, model: base, train: {batch_size: ten, kl_batch: 6}, compute: {processes: 3}}",
        ["train.batch_size is 'ten'"],
    ),
    "a wrong list of models, and a baseline that cannot be looked up in it": (
        "{kind: evaluate, data: asks, models: {a: base}, baseline: b}",
        ["models is a mapping", "no judge"],
    ),
    "an unknown key named like a field hides nothing of that field": (
        "{kind: kto, data: pairs, model: base, train: {model: x, kl_batch: 4, batch_size: 10}, batch_size: 9}",
        ["unknown key `model`", "unknown key `batch_size`", "train.batch_size is 10"],
    ),
    "blocks that are no mapping": (
        "{kind: sft, model: base, data: demos, adapter: 5, train: [a]}",
        ["adapter is 5", "train is a list"],
    ),
}


def with_stage(recipe: Path, stage: str) -> Path:
    text = recipe.read_text().replace("stages:\n", f"stages:\n  more: {stage}\n", 1)
    recipe.write_text(text.replace("data:\n", "data:\n  few: {path: demos.jsonl}\n", 1))
    return recipe


@pytest.mark.parametrize("name", STAGES)
def test_one_wrong_field_hides_no_other(name: str, tiny_recipe: Path) -> None:
    stage, wanted = STAGES[name]
    _, problems = inspect(with_stage(tiny_recipe, stage))
    assert sorted(one.found for one in problems if one.stage == "more") == sorted(wanted)


def test_rows_processes_and_held_out_rows_are_looked_at_too(fresh: Any) -> None:
    train = "{batch_size: 400, eval_strategy: steps}"
    stage = f"{{kind: sft, model: base, data: few, bogus: 1, compute: {{processes: 3}}, train: {train}}}"
    with_stage(fresh.recipe, stage)
    assert sorted(one.found for one in fresh.problems() if one.stage == "more") == [
        "there are 240 rows to train on",
        "train.batch_size 400 does not divide over 3 processes",
        "train.eval_strategy is steps, and data.few holds no rows out to evaluate on",
        "unknown key `bogus`",
    ]
