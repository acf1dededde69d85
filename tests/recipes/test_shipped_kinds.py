"""The shipped kinds joined: whatever makes a model is taken wherever a model is asked for, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

import pipeline.stages
from pipeline.artifacts import Store
from pipeline.errors import PipelineError
from pipeline.plan import make_plan
from pipeline.recipe import load
from pipeline.stage import KINDS, Input

pipeline.stages.load_all()

RECIPE = """\
name: all
data:
  pairs: {path: pairs.jsonl}
  asks: {path: asks.jsonl}
stages:
  rm: {kind: reward, data: pairs, model: START}
  grpo: {kind: grpo, data: asks, model: START, reward: rm, train: {max_new_tokens: 9}}
  rloo: {kind: rloo, data: asks, model: grpo, reward: [rm, {function: gold.py:gold, weight: 0.2}]}
  kto: {kind: kto, data: pairs, model: rloo, train: {beta: 0.2, desirable_weight: 1.5}}
  dpo: {kind: dpo, data: pairs, model: kto, train: {loss_type: ipo}}
  sft: {kind: sft, data: asks, model: dpo}
  report: {kind: evaluate, data: asks, models: [grpo, rloo, kto, dpo, sft], baseline: sft, reward: rm}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe in which every kind reads what another made."""
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (tmp_path / "asks.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    (tmp_path / "gold.py").write_text("def gold(completions, **columns):\n    return [1.0] * len(completions)\n")
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "config.json").write_text("{}")
    path = tmp_path / "all.yaml"
    path.write_text(RECIPE.replace("START", "./start"))
    return path


def test_every_kind_takes_what_any_other_makes(recipe: Path) -> None:
    plan = make_plan(load(recipe), Store(recipe.parent / "store"))
    assert [stage.spec.name for stage in plan.stages] == ["rm", "grpo", "rloo", "kto", "dpo", "sft", "report"]
    rloo = next(stage.spec.config for stage in plan.stages if stage.spec.name == "rloo")
    assert (rloo.reward, rloo.reward_functions, rloo.weights) == (["rm"], ["gold.py:gold"], [1.0, 0.2])


def test_no_model_field_lists_kinds_one_by_one() -> None:
    for kind in KINDS.values():
        markers = kind.config.markers(Input)
        for field in {"model", "models", "init"} & set(markers):
            assert markers[field] == Input(external=True), f"{kind.name}.{field}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("model: rloo", "model: rm"),
            "all.yaml:9 stage kto: model: `rm` is of kind reward; expected a stage that makes a model",
        ),
        (("model: grpo", "model: report"), "all.yaml:8 stage rloo: model: `report` is of kind evaluate"),
        (("reward: rm, train", "reward: kto, train"), "all.yaml:7 stage grpo: reward: `kto` is of kind kto"),
        ((", reward: rm, train", ", train"), "all.yaml:7 stage grpo: no reward"),
        (("max_new_tokens: 9", "max_completion_length: 9"), "`max_completion_length` is decided by trueup"),
        (("loss_type: ipo", "loss_type: ippo"), "all.yaml:10 stage dpo: train.loss_type is ippo"),
        (
            ("beta: 0.2", "bta: 0.2"),
            "unknown key `bta`; expected a word of this stage or a field of KTOConfig. Did you mean `beta`",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_line(recipe: Path, change: tuple[str, str], message: str) -> None:
    recipe.write_text(recipe.read_text().replace(*change))
    with pytest.raises(PipelineError) as caught:
        make_plan(load(recipe), Store(recipe.parent / "store"))
    assert message in str(caught.value)
