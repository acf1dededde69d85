"""The schema editors use agrees with what `load` accepts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.errors import PipelineError
from pipeline.recipe import json_schema, load

jsonschema = pytest.importorskip("jsonschema")

GOOD = """
name: x
data: {pairs: {path: pairs.jsonl, held_out: 0.1}, short: pairs.jsonl}
stages:
  b: {kind: base, size: 3}
  t:
    kind: tune
    data: pairs
    model: b
    seed: 3
    adapter: {r: 8, targets: [q_proj]}
    train: {beta: 0.2, learning_rate: 0.001, neftune_noise_alpha: null, report_to: [none]}
    compute: {micro_batch: 4}
  j: {kind: judge, models: [b, t]}
  g: {kind: tune, data: pairs, model: policy}
groups: {online: {rounds: 3, stages: [g], carry: {policy: {first: b, then: g}}}}
sweep: [{stages.t.train.beta: [0.1, 0.2], stages.t.seed: [1, 2]}, {data: {pairs: {limit: [1, 2]}}}]
profiles: {gpu: {compute: {precision: bf16}, stages: {t: {train: {beta: 0.3}}, j: null}, groups: {online: {rounds: 1}}}}
"""


def errors(text: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.check_schema(json_schema())
    return [error.message for error in validator.iter_errors(YAML(typ="safe", pure=True).load(text))]


def test_a_good_recipe_is_good_for_both(write: Callable[..., Path]) -> None:
    load(write(GOOD))
    assert errors(GOOD) == []


BAD = [
    ("name: x", "nome: x"),
    ("size: 3", "size: 65"),
    ("size: 3", "sise: 3"),
    ("kind: base", "kind: bass"),
    ("kind: base, size: 3", "size: 3"),
    ("    data: pairs\n", ""),
    ("beta: 0.2", "beta: -1"),
    ("learning_rate: 0.001", "learning_rate: fast"),
    ("learning_rate: 0.001", "learning_rat: 0.001"),
    ("learning_rate: 0.001", "num_train_epochs: 3"),
    ("held_out: 0.1", "held_out: 1.0"),
    ("r: 8", "rank: 8"),
    ("micro_batch: 4", "micro_batch: big"),
    ("{compute: {precision: bf16}", "{compte: {precision: bf16}"),
    ("rounds: 3", "rounds: 0"),
    ("[0.1, 0.2]", "[]"),
    ("[0.1, 0.2]", "0.1"),
    ("[1, 2]}}}", "[1, 1]}}}"),
    ("stages.t.seed", "stage.t.seed"),
    ("rounds: 3, ", ""),
    ("rounds: 3", "runds: 3"),
    ("{first: b, then: g}", "{first: b}"),
]


@pytest.mark.parametrize(("old", "new"), BAD)
def test_a_bad_recipe_is_bad_for_both(write: Callable[..., Path], old: str, new: str) -> None:
    text = GOOD.replace(old, new)
    assert text != GOOD
    assert errors(text)
    with pytest.raises(PipelineError):
        load(write(text))


def test_a_recipe_that_extends_another_may_leave_things_out(write: Callable[..., Path]) -> None:
    write(GOOD, "low.yaml")
    text = "extends: low.yaml\nstages: {t: {train: {beta: 0.4}}, j: null}\ndata: {short: null}\n"
    load(write(text))
    assert errors(text) == []
    assert errors(text.replace("beta", "betta"))
    assert errors(text.replace("extends: low.yaml\n", ""))


def test_every_kind_and_every_passed_on_field_is_described(kinds: None) -> None:
    schema = json_schema()
    one_of: list[dict[str, Any]] = schema["$defs"]["stage"]["oneOf"]
    assert [entry["$ref"] for entry in one_of] == [f"#/$defs/{kind}.stage" for kind in ("base", "judge", "tune")]
    assert schema["$defs"]["stage"]["discriminator"] == {"propertyName": "kind"}
    train = schema["$defs"]["tune.TinyTrain"]["properties"]
    assert train["learning_rate"]["type"] == "number"
    assert train["neftune_noise_alpha"]["type"] == ["number", "null"]
    assert train["eval_strategy"]["enum"] == ["no", "steps", "epoch"]
    assert "ld_alpha" not in train  # refused
    assert train["beta"]["exclusiveMinimum"] == 0
    assert "output_dir" not in train
    judge = schema["$defs"]["judge.stage"]["properties"]
    assert (
        judge["models"]["description"]
        == "what is compared, in this order. ${NAME:-default} is an environment variable."
    )
    assert judge["gold"]["description"] == "a function. ${NAME:-default} is an environment variable."
