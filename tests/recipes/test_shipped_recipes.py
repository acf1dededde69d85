"""Every recipe in `recipes/` plans: no unknown key, no missing file, no wrong kind of input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline.artifacts import Store
from pipeline.plan import make_plan
from pipeline.recipe import load
from pipeline.stages import load_all

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))

load_all()


@pytest.fixture
def real_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One row of each shape in the files of the recipes on real data, and a model for `stories-sentiment.yaml`."""
    turn = {"role": "user", "content": "hello"}
    said = [{"role": "assistant", "content": "hi"}]
    pair = {"prompt": [turn], "chosen": said, "rejected": [{"role": "assistant", "content": "no"}]}
    rows = {
        "pretrain": ("tinyshakespeare", {"text": "some text"}),
        "instruction": ("oasst1_val_threads self_instruct_seed", {"messages": [turn, *said]}),
        "preference": ("oasst1_val_pairs hh_harmless_a", pair),
    }
    for folder, (names, row) in rows.items():
        (tmp_path / folder).mkdir()
        for name in names.split():
            (tmp_path / folder / f"{name}.jsonl.gz").write_bytes(_gzip(json.dumps(row)))
    (tmp_path / "eval").mkdir()
    for name in ("mt_bench_question", "ifeval_input_data"):
        (tmp_path / "eval" / f"{name}.jsonl").write_text(json.dumps({"prompt": "why?"}) + "\n")
    monkeypatch.setenv("TRUEUP_REAL_DATA", str(tmp_path))
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories" / "config.json").write_text("{}")
    (tmp_path / "stories.jsonl").write_text(json.dumps({"prompt": "Once"}) + "\n")
    monkeypatch.setenv("STORIES260K", str(tmp_path / "stories"))
    monkeypatch.setenv("STORIES_PROMPTS", str(tmp_path / "stories.jsonl"))
    return tmp_path


def _gzip(text: str) -> bytes:
    import gzip

    return gzip.compress(text.encode() + b"\n")


WITHOUT_REPORT = {"llama-3.1-70b-qlora"}
"""An evaluation runs on one GPU, which does not hold the model."""


def test_there_are_the_recipes_the_readme_names() -> None:
    assert {path.stem for path in RECIPES} >= {"quickstart", "real-small", "qwen-0.5b-lora"}


@pytest.mark.parametrize("file", RECIPES, ids=lambda path: path.stem)
def test_recipe_plans(file: Path, tmp_path: Path, real_data: Path) -> None:
    plan = make_plan(load(file), Store(tmp_path / "store"))
    assert [stage.status for stage in plan.stages] == ["pending"] * len(plan.stages)
    if file.stem not in WITHOUT_REPORT:
        assert plan.stages[-1].spec.kind == "evaluate", "the chain ends with the report"


def test_the_qwen_recipe_trains_adapters_and_warns_that_it_is_not_pinned(tmp_path: Path) -> None:
    plan = make_plan(load(ROOT / "recipes" / "qwen-0.5b-lora.yaml"), Store(tmp_path / "store"))
    by_name = {stage.spec.name: stage for stage in plan.stages}
    assert by_name["sft"].inputs["model"][0].fingerprint == "hub:Qwen/Qwen2.5-0.5B@main"
    assert by_name["dpo"].inputs["model"][0].fingerprint == by_name["sft"].fingerprint
    assert all(by_name[name].spec.config.adapter.r == 16 for name in ("sft", "rm", "dpo"))  # type: ignore[attr-defined]
    assert any("pin it" in note for note in plan.notes)


def test_the_smoke_profile_only_shortens(tmp_path: Path) -> None:
    recipe = load(ROOT / "recipes" / "qwen-0.5b-lora.yaml", profile="smoke")
    assert recipe.stages["sft"].config.train.max_steps == 20  # type: ignore[attr-defined]


def test_the_judge_of_rlaif_may_be_a_server(tmp_path: Path) -> None:
    file = ROOT / "recipes" / "rlaif.yaml"
    for profile, judge in ((None, "function"), ("endpoint", "endpoint")):
        plan = make_plan(load(file, profile=profile), Store(tmp_path / "store"))
        config = next(stage.spec.config for stage in plan.stages if stage.spec.name == "verdicts")
        assert [name for name in ("reward", "function", "endpoint") if getattr(config, name) is not None] == [judge]
        dpo = next(stage for stage in plan.stages if stage.spec.name == "dpo")
        assert dpo.data["data"].input is not None and dpo.data["data"].input.name == "verdicts"


def test_without_its_folder_the_real_recipe_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.errors import PipelineError

    monkeypatch.delenv("TRUEUP_REAL_DATA", raising=False)
    with pytest.raises(PipelineError, match="TRUEUP_REAL_DATA") as caught:
        load(ROOT / "recipes" / "real-small.yaml")
    assert caught.value.exit_code == 2
    assert "TRUEUP_REAL_DATA" not in os.environ
