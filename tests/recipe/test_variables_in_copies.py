"""Environment variables where a recipe copies stages: in the settings of a sweep, and in the names of groups."""

from __future__ import annotations

from pathlib import Path

import pytest

import pipeline.stages  # noqa: F401 -- registers the kinds
from pipeline.errors import PipelineError
from pipeline.recipe import Recipe, load

RECIPE = """\
data: {asks: asks.jsonl}
REPEATED
stages:
  sft: {kind: sft, data: asks, model: base/model@0123456}
  dpo: {kind: dpo, data: asks, model: "MODEL"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asks.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    for name in "ABC":
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def _load(folder: Path, repeated: str, model: str = "sft", *, overrides: tuple[str, ...] = ()) -> Recipe:
    (folder / "r.yaml").write_text(RECIPE.replace("REPEATED", repeated).replace("MODEL", model))
    return load(folder / "r.yaml", overrides=overrides)


def test_a_swept_variable_is_named_by_its_value(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = 'sweep: {stages.sft.model: ["${A:-one}/model@0123456", base/model@0123456]}'
    recipe = _load(folder, sweep)
    first, _ = recipe.variants["sft"]
    assert first.startswith("sft-model-one-model-0123456-") and recipe.swept["sft"].startswith("model: one-model")
    assert recipe.stages[first].config.model == "one/model@0123456"  # type: ignore[attr-defined]
    assert [(each.name, each.value) for each in recipe.variables] == [("A", "one")]
    monkeypatch.setenv("A", "base")
    with pytest.raises(PipelineError, match="twice"):
        _load(folder, sweep)


def test_a_setting_that_takes_no_variables_keeps_its_text(folder: Path) -> None:
    recipe = _load(folder, 'sweep: {stages.sft.chat_template: ["${A:-one}", one]}')
    assert recipe.variants["sft"][1] == "sft-chat_template-one" and not recipe.variables


@pytest.mark.parametrize("override", [(), ("stages.dpo.model=${B:-sft}",)])
def test_a_variable_that_stands_for_a_stage_follows_its_variants(folder: Path, override: tuple[str, ...]) -> None:
    sweep = "sweep: {stages.sft.train.max_steps: [1, 2]}"
    recipe = _load(folder, sweep, "sft" if override else "${B:-sft}", overrides=override)
    assert recipe.variants["dpo"] == ("dpo-sft.max_steps-1", "dpo-sft.max_steps-2")
    assert [(each.name, each.value) for each in recipe.variables] == [("B", "sft")]


def test_a_swept_model_may_be_a_variable_that_stands_for_a_stage(folder: Path) -> None:
    recipe = _load(folder, 'sweep: {stages.dpo.model: ["${B:-sft}", base/model@0123456], stages.sft.seed: [1, 2]}')
    assert [name for name in recipe.variants["dpo"] if name.startswith("dpo-model-sft")] == [
        "dpo-model-sft-sft.seed-1",
        "dpo-model-sft-sft.seed-2",
    ]


def test_names_of_a_group_may_be_variables(folder: Path) -> None:
    carry = 'carry: {policy: {first: "${A:-sft}", then: "${B:-dpo}"}}'
    group = f"groups: {{again: {{rounds: 2, stages: [dpo], {carry}}}}}\nsweep: {{stages.sft.seed: [1, 2]}}"
    recipe = _load(folder, group, "${C:-policy}")
    models = [recipe.stages[name].config.model for name in recipe.copies["dpo"]]  # type: ignore[attr-defined]
    assert models == ["sft-seed-1", "sft-seed-2", "dpo-1-sft.seed-1", "dpo-1-sft.seed-2"]
    assert {each.name for each in recipe.variables} == {"A", "B", "C"}


def test_escaped_characters_stay_characters_in_a_sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "sft")
    (folder / "${A}").mkdir()
    recipe = _load(folder, 'sweep: {stages.dpo.model: ["$${A}", "${A}"]}')
    assert [recipe.stages[name].config.model for name in recipe.variants["dpo"]] == ["${A}", "sft"]  # type: ignore[attr-defined]
