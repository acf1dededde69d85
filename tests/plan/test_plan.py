"""What runs, in which order, and why."""

import gzip
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import pytest

from pipeline.artifacts import Store
from pipeline.errors import PipelineError
from pipeline.plan import folders, make_plan
from pipeline.plan.staleness import _change
from pipeline.recipe import inspect
from pipeline.stage import KINDS, Input, StageConfig, register_kind


def names(plan: Any) -> list[str]:
    return [stage.spec.name for stage in plan.stages]


def test_a_new_recipe_runs_whole_in_the_order_of_its_graph(world: Any) -> None:
    world.change("stages:\n", "stages:\n  zero: {kind: judge, models: [dpo]}\n")
    plan = world.plan()
    assert names(plan) == ["base", "sft", "dpo", "zero", "report"]
    assert world.why() == dict.fromkeys(names(plan), ("never run",))
    sft = plan.stages[1]
    (model,) = sft.inputs["model"]
    assert (model.field, model.ref, model.name, model.kind, model.artifact, model.external) == (
        *("model", "base", "base", "base", None),
        False,
    )
    assert model.fingerprint == plan.stages[0].fingerprint
    assert (sft.data["data"].source_name, sft.data["data"].rows) == ("pairs", 12)
    assert sft.payload["inputs"] == {"model": [plan.stages[0].fingerprint]}


def test_a_finished_recipe_has_nothing_to_run(world: Any) -> None:
    world.finish(world.plan())
    plan = world.plan()
    assert plan.pending == ()
    assert [stage.artifact.manifest.fingerprint for stage in plan.stages] == [
        stage.fingerprint for stage in plan.stages
    ]
    assert plan.stages[1].inputs["model"][0].artifact == plan.stages[0].artifact.path


def test_a_change_reruns_what_stands_on_it_and_says_why(world: Any) -> None:
    world.finish(world.plan())
    assert world.why("stages.dpo.train.beta=0.05") == {
        "dpo": ("train.beta 0.1 → 0.05",),
        "report": ("input models: dpo changed",),
    }
    assert world.why("stages.sft.train.label_smoothing=0.1", "stages.sft.adapter.r=8") == {
        "sft": ("adapter.r 16 → 8", "train.label_smoothing set to 0.1"),
        "dpo": ("input model: sft changed",),
        "report": ("input models: sft changed", "input models: dpo changed"),
    }
    assert world.why("stages.dpo.seed=18")["dpo"] == ("seed 17 → 18",)
    assert world.why("stages.dpo.model=base")["dpo"] == ("input model: sft → base",)
    assert world.why("stages.dpo.compute.precision=bf16")["dpo"] == ("precision auto → bf16",)
    assert world.why("stages.report.models=[sft, base]")["report"] == ("input models: dpo removed",)
    assert world.why("stages.report.models=[dpo, base, sft]")["report"] == ("input models: another order",)
    assert world.why("trust_remote_code=true")["base"] == ("trust_remote_code false → true",)
    assert world.why("stages.dpo.train.log_every=3", "stages.dpo.adapter.note=x", "compute.threads=1") == {}


def test_a_stage_is_compared_with_those_of_its_own_recipe(world: Any) -> None:
    world.finish(world.plan())
    assert world.why("name=other", "stages.dpo.train.beta=0.05") == {
        "dpo": ("never run by this recipe (dpo@v1 is of `r`)",),
        "report": ("never run by this recipe (report@v1 is of `r`)",),
    }


def test_of_long_values_the_part_that_differs_is_told() -> None:
    # 20 characters before the first that differs, 60 in all.
    a, z = "a" * 20, "z" * 37
    assert _change("a" * 100 + "one" + "z" * 100, "a" * 100 + "two" + "z" * 100) == f"…{a}one{z}… → …{a}two{z}…"
    assert _change(0.1, "x") == "0.1 → x"


def test_removing_a_trainer_field_is_told(world: Any) -> None:
    world.finish(world.plan("stages.dpo.train.label_smoothing=0.1"))
    assert world.why()["dpo"] == ("train.label_smoothing no longer set (was 0.1)",)


def test_changed_data_is_told_with_its_rows(world: Any) -> None:
    world.finish(world.plan())
    world.write("pairs.jsonl", '{"prompt": "p", "chosen": "c", "rejected": "r"}\n' * 13)
    assert world.why()["sft"] == ("data pairs changed (12 → 13 rows)",)
    assert world.why()["dpo"] == ("input model: sft changed", "data pairs changed (12 → 13 rows)")
    world.write("pairs.jsonl", '{"prompt": "p", "chosen": "c", "rejected": "x"}\n' * 12)
    assert world.why()["sft"] == ("data pairs changed",)
    assert "base" not in world.why()


def test_how_data_is_read_is_told(world: Any) -> None:
    world.finish(world.plan())
    assert world.why("data.pairs.held_out=0.1", "data.pairs.limit=5")["sft"] == (
        "data pairs: held_out 0.0 → 0.1",
        "data pairs: limit null → 5",
    )
    assert world.why("data.pairs.on_bad_row=skip") == {}
    world.write("more.jsonl", '{"prompt": "q", "chosen": "c", "rejected": "r"}\n')
    assert world.why("data.new={path: more.jsonl}", "stages.sft.data=new")["sft"] == ("data: pairs → new",)


def test_data_that_only_moved_or_was_compressed_is_the_same(world: Any, tmp_path: Path) -> None:
    world.finish(world.plan())
    content = (tmp_path / "pairs.jsonl").read_bytes()
    (tmp_path / "moved.jsonl.gz").write_bytes(gzip.compress(content))
    assert world.why("data.pairs.path=moved.jsonl.gz") == {}


def test_changed_code_is_told(world: Any) -> None:
    world.finish(world.plan())
    assert world.why("stages.report.gold=gold.py:other") == {"report": ("gold: gold → other",)}
    world.write("gold.py", "def gold(row):\n    return 1.5\n")
    assert world.why() == {"report": ("gold: the source of gold changed",)}


def test_another_kind_or_version_is_told(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from pipeline.stage import KINDS

    world.finish(world.plan())
    monkeypatch.setitem(KINDS, "judge", replace(KINDS["judge"], version=2))
    assert world.why() == {"report": ("kind judge is now version 2 (was 1)",)}
    world.change("dpo: {kind: tune, data: pairs, model: sft, train: {beta: 0.1}}", "dpo: {kind: base, data: pairs}")
    assert world.why()["dpo"] == ("kind tune → base",)


def test_going_back_finds_the_older_artifact(world: Any) -> None:
    world.finish(world.plan())
    world.finish(world.plan("stages.dpo.train.beta=0.2"))
    assert world.why() == {}
    assert world.why("stages.dpo.train.beta=0.3")["dpo"] == ("train.beta 0.2 → 0.3",)


def test_force_runs_a_stage_and_what_stands_on_it(world: Any) -> None:
    world.finish(world.plan())
    assert world.why(force=["sft"]) == {
        "sft": ("forced",),
        "dpo": ("forced", "sft is forced"),
        "report": ("forced", "sft is forced", "dpo is forced"),
    }


def test_until_and_only_choose_stages(world: Any) -> None:
    assert names(world.plan(until="sft")) == ["base", "sft"]
    with pytest.raises(PipelineError) as caught:
        world.plan(only=["dpo"])
    assert str(caught.value) == (
        "r.yaml:9 stage dpo: needs `sft`, which is not in the store as the recipe has it. "
        "Run `sft` first, or use `--until dpo`"
    )
    world.finish(world.plan(until="sft"))
    assert names(world.plan(only=["dpo"])) == ["dpo"]
    assert names(world.plan(only=["sft", "dpo"])) == ["sft", "dpo"]
    with pytest.raises(
        PipelineError, match=r"r.yaml:6: no stage `dpp`; expected one of base, sft, dpo, report. Did you mean `dpo`\?"
    ):
        world.plan(only=["dpp"])


def test_checkpoints_of_a_killed_stage_are_seen(world: Any) -> None:
    planned = world.plan().stages[0]
    with pytest.raises(ZeroDivisionError), world.store.work("base", planned.fingerprint) as area:
        (area.scratch / "checkpoint").write_text("x")
        raise ZeroDivisionError
    assert [stage.resumable for stage in world.plan().stages] == [True, False, False, False]


def test_inputs_from_the_store(world: Any) -> None:
    world.finish(world.plan())
    artifacts = {a.manifest.name: a for a in world.store.artifacts()}
    world.write("r.yaml", "data: {pairs: pairs.jsonl}\nstages:\n  t: {kind: tune, data: pairs, model: sft}\n")
    plan = world.plan()
    (model,) = plan.stages[0].inputs["model"]
    assert (model.fingerprint, model.artifact) == (artifacts["sft"].manifest.fingerprint, artifacts["sft"].path)
    assert (model.name, model.kind, model.external) == ("sft", "tune", False)
    short = artifacts["dpo"].manifest.fingerprint[:6]
    assert world.plan(f"stages.t.model=dpo@{short}").stages[0].inputs["model"][0].name == "dpo"
    with pytest.raises(PipelineError, match=r"r.yaml:3 stage t: no artifact `sft@v7`; `sft` has v1"):
        world.change("model: sft", "model: sft@v7") or world.plan()
    with pytest.raises(PipelineError) as caught:
        world.change("sft@v7", "report") or world.plan()
    assert (
        str(caught.value) == "r.yaml:3 stage t: model: `report` is of kind judge; expected a stage of kind base or tune"
    )


def test_a_local_folder_is_known_by_its_content(world: Any, tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    world.write("llama/model.safetensors", "weights")
    plan = world.plan("stages.sft.model=llama")
    (model,) = plan.stages[1].inputs["model"]
    assert (model.name, model.kind, model.artifact, model.external) == ("llama", "external", tmp_path / "llama", True)
    shutil.copytree(tmp_path / "llama", tmp_path / "copy")
    world.write("copy/.cache/x", "hidden files do not count")
    again = world.plan("stages.sft.model=./copy").stages[1]
    assert again.inputs["model"][0].fingerprint == model.fingerprint
    assert again.fingerprint == plan.stages[1].fingerprint
    world.write("llama/model.safetensors", "weighty")
    assert world.plan("stages.sft.model=llama").stages[1].fingerprint != plan.stages[1].fingerprint


def test_a_variable_counts_as_what_it_stands_for(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write("llama/model.safetensors", "weights")
    named, folder = "stages.sft.model=${START:-owner/name@0123abc}", tmp_path / "llama"
    monkeypatch.delenv("START", raising=False)
    by_default = world.stage("sft", named).fingerprint
    assert by_default == world.stage("sft", "stages.sft.model=owner/name@0123abc").fingerprint
    assert world.plan(named).notes == (
        "environment variable START is not set: `owner/name@0123abc`, its default, is used",
    )
    monkeypatch.setenv("START", str(folder))
    by_folder = world.stage("sft", named).fingerprint
    assert by_folder == world.stage("sft", f"stages.sft.model={folder}").fingerprint != by_default
    assert world.plan(named).notes == (f"environment variable START is `{folder}`",)
    world.write("llama/model.safetensors", "weighty")
    assert world.stage("sft", named).fingerprint != by_folder


def test_a_hub_model_is_known_by_its_revision_and_noted_when_it_can_move(world: Any) -> None:
    plan = world.plan("stages.sft.model=Qwen/Qwen2.5-0.5B")
    (model,) = plan.stages[1].inputs["model"]
    assert (model.name, model.fingerprint, model.artifact) == ("Qwen2.5-0.5B", "hub:Qwen/Qwen2.5-0.5B@main", None)
    assert plan.notes == (
        "model Qwen/Qwen2.5-0.5B is read at `main`, which can move: not reproducible; "
        "pin it with `Qwen/Qwen2.5-0.5B@COMMIT`",
    )
    commit = "060db6499f32faf8b98477b0a26969ef7d8b9987"
    pinned = world.plan(f"stages.sft.model=Qwen/Qwen2.5-0.5B@{commit}")
    assert pinned.notes == ()
    assert pinned.stages[1].inputs["model"][0].fingerprint == f"hub:Qwen/Qwen2.5-0.5B@{commit}"


def test_a_hub_data_set_is_noted_when_it_can_move(world: Any) -> None:
    world.change("pairs: {path: pairs.jsonl}", "pairs: {hub: owner/pairs}")
    plan = world.plan()
    assert plan.notes == (
        "data set owner/pairs is read at `main`, which can move: not reproducible; pin it with `revision: COMMIT`",
    )
    other = world.plan("data.pairs.subset=x").stages[1]
    assert other.fingerprint != plan.stages[1].fingerprint


def test_trust_remote_code_is_said(world: Any) -> None:
    assert world.plan("trust_remote_code=true").notes == (
        "trust_remote_code is on: Python code that comes with models of the hub or a folder will run",
    )


def test_data_from_a_stage(world: Any) -> None:
    world.change("pairs: {path: pairs.jsonl}", "pairs: {artifact: base, file: out.txt}")
    plan = world.plan()
    assert names(plan) == ["base", "sft", "dpo", "report"]
    pairs = plan.stages[1].data["data"]
    assert pairs.digest == f"{plan.stages[0].fingerprint}/out.txt"
    assert pairs.input is not None
    assert (pairs.input.ref, pairs.input.artifact, plan.data_artifact("base")) == ("base", None, None)
    world.finish(plan)
    again = world.plan()
    assert again.pending == ()
    assert again.data_artifact("base") == again.stages[0].artifact.path
    assert world.why("stages.base.size=5")["sft"] == ("input model: base changed", "data pairs changed")


PROBLEMS = {
    "unknown input": (
        ("model: sft, train", "model: sfft, train"),
        "r.yaml:9 stage dpo: model: no stage, artifact, folder or hub model `sfft`; expected one of base, sft, report. "
        "Did you mean `sft`?",
    ),
    "unknown input that cannot be external": (
        ("[base, sft, dpo]", "[base, sft, dpoo]"),
        "r.yaml:10 stage report: models: no stage or artifact `dpoo`; "
        "expected one of base, sft, dpo. Did you mean `dpo`?",
    ),
    "wrong kind": (
        ("gold: gold.py:gold}", "gold: gold.py:gold}\n  late: {kind: tune, data: pairs, model: report}"),
        "r.yaml:11 stage late: model: `report` is of kind judge; expected a stage of kind base or tune. "
        "This recipe has base, sft, dpo",
    ),
    "wrong thing made": (
        ("gold: gold.py:gold}", "gold: gold.py:gold}\n  again: {kind: judge, models: [base, report]}"),
        "r.yaml:11 stage again: models: `report` is of kind judge; expected a stage that makes a model. "
        "This recipe has base, sft, dpo",
    ),
    "cycle": (
        ("model: base", "model: dpo"),
        "r.yaml:8 stage sft: stages need each other: sft → dpo → sft; expected a graph without cycles",
    ),
    "needs itself": (
        ("model: sft", "model: dpo"),
        "r.yaml:9 stage dpo: stages need each other: dpo → dpo; expected a graph without cycles",
    ),
    "file for a folder": (
        ("model: base", "model: gold.py"),
        "r.yaml:8 stage sft: model: `gold.py` is a file; expected a folder with a model",
    ),
    "unknown ref": (
        ("model: base", "model: 'base:champion'"),
        "r.yaml:8 stage sft: no artifact `base:champion`; nothing is stored here yet. Run a recipe or pull first",
    ),
    "data of an unknown stage": (
        ("{path: pairs.jsonl}", "{artifact: bse}"),
        "r.yaml:5: artifact: no stage or artifact `bse`; expected one of base, sft, dpo, report. Did you mean `base`?",
    ),
}


@pytest.mark.parametrize("what", PROBLEMS)
def test_a_graph_that_cannot_be_is_told(world: Any, what: str) -> None:
    (old, new), message = PROBLEMS[what]
    world.change(old, new)
    with pytest.raises(PipelineError) as caught:
        world.plan()
    assert str(caught.value) == message


class UseConfig(StageConfig):
    reward: Annotated[str, Input("reward")]


def test_a_field_takes_other_kinds_that_make_what_it_names(world: Any) -> None:
    register_kind("own-reward", version=1, config=KINDS["tune"].config, run="", makes="reward")
    register_kind("use", version=1, config=UseConfig, run="", makes="report")
    rm = "gold: gold.py:gold}\n  rm: {kind: own-reward, data: pairs, model: base}\n  used: {kind: use, reward: rm}"
    world.change("gold: gold.py:gold}", rm)
    assert [item.name for item in world.stage("used").inputs["reward"]] == ["rm"]
    with pytest.raises(PipelineError) as caught:
        world.plan("stages.used.reward=base")
    message = "reward: `base` is of kind base; expected a stage of kind reward. This recipe has rm"
    assert str(caught.value).endswith(message)


def test_problems_of_recipe_graph_and_data_come_together(world: Any, tmp_path: Path) -> None:
    world.change("{beta: 0.1}", "{beta: 0}")  # the recipe's own problem
    world.change("models: [base", "models: [bass")  # the graph's
    world.change("path: corpus.jsonl", "path: corpus.parquet")  # the data's
    (tmp_path / "corpus.parquet").write_text("not parquet")
    recipe, problems = inspect(tmp_path / "r.yaml")
    with pytest.raises(PipelineError) as caught:
        make_plan(recipe, world.store, problems=problems)
    reported_problems = [(p.where, p.stage, p.found) for p in caught.value.problems]
    assert reported_problems[0] == ("r.yaml:9", "dpo", "train.beta is 0")
    assert reported_problems[1] == ("r.yaml:10", "report", "models: no stage or artifact `bass`")
    assert reported_problems[2][2].startswith("data.corpus: ")
    assert len(reported_problems) == 3  # nothing is said of `dpo`, which the report may name


def test_an_artifact_that_cannot_be_read_is_a_problem_not_a_crash(world: Any) -> None:
    world.finish(world.plan(until="base"))
    manifest = world.store.artifacts("base")[0].path / "manifest.json"
    manifest.write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(PipelineError):
        world.plan()


def test_a_plan_writes_nothing_but_its_cache(world: Any, tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*") if ".cache" not in str(path)}
    world.plan()
    after = {path for path in tmp_path.rglob("*") if ".cache" not in str(path)}
    assert after - before <= {Store(tmp_path / "store").root}


def test_hashes_of_a_folder_are_remembered_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").mkdir()
    file = tmp_path / "m/model.safetensors"
    file.write_text("weights")
    time.sleep(folders.SETTLED_S + 0.05)
    hashed: list[Path] = []
    sha256 = folders._sha256
    monkeypatch.setattr(folders, "_sha256", lambda path: hashed.append(path) or sha256(path))
    first = folders.folder_digest(tmp_path / "m", tmp_path / "cache")
    assert folders.folder_digest(tmp_path / "m", tmp_path / "cache") == first
    assert hashed == [file]
    file.write_text("weighty")  # as long as before: only the times tell
    assert folders.folder_digest(tmp_path / "m", tmp_path / "cache") != first
    # sha256("model.safetensors " + sha256("weights") + "\n")
    inner = hashlib.sha256(b"weights").hexdigest()
    assert first == hashlib.sha256(f"model.safetensors {inner}\n".encode()).hexdigest()
