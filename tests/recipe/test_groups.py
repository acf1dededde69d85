"""Groups of stages become ordinary stages, one for each round; what is wrong with a group is told once, at its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline.stages  # noqa: F401 -- registers the kinds
from pipeline.artifacts import Store
from pipeline.errors import PipelineError, Problem
from pipeline.plan import Plan, make_plan, survey
from pipeline.recipe import Recipe, inspect, load, once_per_group

RECIPE = """\
seed: 7
data:
  asks: {path: asks.jsonl}
  compared: {artifact: candidates, file: pairs.jsonl}
  preferred: {artifact: labels, file: preferences.jsonl}
groups:
  online:
    rounds: 3
    stages: [candidates, labels, dpo]
    carry: {policy: {first: sft, then: dpo}}
stages:
  sft: {kind: sft, data: asks, model: base/model@0123456}
  candidates: {kind: sample, data: asks, models: [policy], n: 4}
  labels: {kind: labels, data: compared}
  dpo: {kind: dpo, data: preferred, model: policy, train: {beta: 0.3}}
  report:
    kind: evaluate
    data: asks
    models: [sft, dpo-*]
    baseline: sft
    greedy: [sft, dpo]
    rounds: [sft, dpo-*]
    gold: gold.py:gold
  after: {kind: sft, data: asks, model: dpo}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asks.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "gold.py").write_text("def gold(**columns):\n    return [0.0]\n")

    def written(*changes: tuple[str, str], name: str = "r.yaml", text: str = RECIPE) -> Path:
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return written


def _models(recipe: Recipe, stage: str) -> Any:
    config = recipe.stages[stage].config
    return getattr(config, "models", None) or getattr(config, "model", None)


def test_every_stage_of_a_group_is_one_for_each_round(write: Callable[..., Path]) -> None:
    recipe = load(write())
    rounds = [f"{name}-{number}" for number in (1, 2, 3) for name in ("candidates", "labels", "dpo")]
    assert list(recipe.stages) == ["sft", *rounds, "report", "after"]
    assert recipe.copies["dpo"] == ("dpo-1", "dpo-2", "dpo-3")
    assert [_models(recipe, f"candidates-{number}") for number in (1, 2, 3)] == [["sft"], ["dpo-1"], ["dpo-2"]]
    assert [_models(recipe, f"dpo-{number}") for number in (1, 2, 3)] == ["sft", "dpo-1", "dpo-2"]
    for number in (1, 2, 3):
        source = getattr(recipe.stages[f"labels-{number}"].config, "data", "")
        assert recipe.data[source].artifact == f"candidates-{number}"
        source = getattr(recipe.stages[f"dpo-{number}"].config, "data", "")
        assert recipe.data[source].artifact == f"labels-{number}"
        assert getattr(recipe.stages[f"candidates-{number}"].config, "data", "") == "asks"
    assert [recipe.stages[f"candidates-{number}"].seed for number in (1, 2, 3)] == [7, 8, 9]
    assert recipe.where("stages", "dpo-2", "train", "beta") == "r.yaml:15"
    assert recipe.stages["dpo-2"].written_as == "dpo" and recipe.stages["sft"].written_as == ""
    assert "groups" not in recipe.resolved


def test_outside_a_group_a_name_means_the_last_round_or_all(write: Callable[..., Path]) -> None:
    recipe = load(write())
    report: Any = recipe.stages["report"].config
    assert report.models == report.rounds == ["sft", "dpo-1", "dpo-2", "dpo-3"]
    assert report.greedy == ["sft", "dpo-3"]
    assert _models(recipe, "after") == "dpo-3"
    assert recipe.data["compared"].artifact == "candidates-3"


def test_the_seed_of_a_stage_counts_up_and_stays_in_range(write: Callable[..., Path]) -> None:
    recipe = load(write(("n: 4}", "n: 4, seed: 4294967295}")))
    assert [recipe.stages[f"candidates-{number}"].seed for number in (1, 2, 3)] == [4294967295, 0, 1]


def test_rounds_share_no_batch_of_labels(write: Callable[..., Path]) -> None:
    given: Any = load(write(("data: compared}", "data: compared, batch: mine}"))).stages
    assert [given[f"labels-{number}"].config.batch for number in (1, 2, 3)] == ["mine-1", "mine-2", "mine-3"]
    plain: Any = load(write()).stages
    assert plain["labels-2"].config.batch == ""  # the name of the stage


def test_set_profiles_and_extends_change_a_group(write: Callable[..., Path]) -> None:
    file = write()
    assert "dpo-4" in load(file, overrides=["groups.online.rounds=4"]).stages
    changed: Any = load(file, overrides=["stages.dpo.train.beta=0.5"])
    assert [changed.stages[f"dpo-{number}"].config.train.beta for number in (1, 2, 3)] == [0.5] * 3
    upper = write(
        name="upper.yaml",
        text="extends: r.yaml\ngroups: {online: {rounds: 1}}\nprofiles: {long: {groups: {online: {rounds: 2}}}}\n",
    )
    assert [name for name in load(upper).stages if name.startswith("dpo")] == ["dpo-1"]
    assert "dpo-2" in load(upper, profile="long").stages
    changed = "{candidates: {models: [sft]}, dpo: {model: sft}, report: null}"
    plain = f"extends: r.yaml\ngroups: {{online: null}}\nstages: {changed}\n"
    assert list(load(write(name="plain.yaml", text=plain)).stages) == ["sft", "candidates", "labels", "dpo", "after"]


def test_a_later_group_starts_from_the_last_round_of_an_earlier(write: Callable[..., Path]) -> None:
    second = """\
  more:
    rounds: 2
    stages: [again]
    carry: {policy: {first: dpo, then: again}}
stages:
  again: {kind: dpo, data: preferred, model: policy}
"""
    recipe = load(write(("stages:\n", second)))
    assert [_models(recipe, name) for name in ("again-1", "again-2")] == ["dpo-3", "again-1"]
    assert recipe.data[getattr(recipe.stages["again-1"].config, "data", "")].artifact == "labels-3"


def _plan(file: Path, *overrides: str) -> Plan:
    return make_plan(load(file, overrides=overrides), Store(file.parent / "store"))


def test_one_more_round_leaves_the_fingerprints_of_the_others(write: Callable[..., Path]) -> None:
    file = write()
    three, four = (_plan(file, f"groups.online.rounds={count}") for count in (3, 4))
    now = {stage.spec.name: stage.fingerprint for stage in four.stages}
    kept = {stage.spec.name: stage.fingerprint for stage in three.stages if stage.spec.name not in ("report", "after")}
    assert len(kept) == 10 and kept.items() <= now.items()
    assert len(set(now.values())) == len(now)


BAD: dict[str, tuple[tuple[str, str], list[str]]] = {
    "no rounds": (("rounds: 3", "rounds: 0"), ["r.yaml:8: groups.online.rounds is 0; it must be >= 1"]),
    "many rounds": (("rounds: 3", "rounds: 1000"), ["r.yaml:8: groups.online.rounds is 1000; it must be <= 100"]),
    "rounds that are no number": (
        ("rounds: 3", "rounds: many"),
        ["r.yaml:8: groups.online.rounds is 'many'; it must be a whole number"],
    ),
    "unknown key": (
        ("rounds: 3", "runds: 3"),
        [
            "r.yaml:7: `groups.online.rounds` is missing; expected how many times the stages run, one round after "
            "another",
            "r.yaml:8: unknown key `runds` in `groups.online`. Did you mean `rounds`?",
        ],
    ),
    "groups that are a list": (
        ("groups:\n  online:\n    rounds: 3\n", "groups: [1]\nprofiles:\n  x:\n    y: 3\n"),
        ["r.yaml:6: `groups` is not a mapping; expected name: {…} for each"],
    ),
    "unknown stage": (
        ("[candidates, labels, dpo]", "[candidates, labels, dop, dpo]"),
        [
            "r.yaml:9: groups.online: no stage `dop`; expected one of sft, candidates, labels, dpo, report, after. "
            "Did you mean `dpo`?"
        ],
    ),
    "a stage twice": (
        ("[candidates, labels, dpo]", "[candidates, labels, dpo, dpo]"),
        ["r.yaml:9: groups.online names stage `dpo` twice; expected each once"],
    ),
    "a stage left out": (
        ("[candidates, labels, dpo]", "[candidates, dpo]"),
        [
            "r.yaml:9: groups.online: stage `labels` stands between stages of the group, and is not one of them; "
            "expected all stages of a round. Add `labels` to its `stages`"
        ],
    ),
    "a stage in two groups": (
        ("groups:\n", "groups:\n  other: {rounds: 2, stages: [dpo], carry: {policy: {first: sft, then: dpo}}}\n"),
        ["r.yaml:10: groups.online: stage `dpo` is in another group too; expected one group for each stage"],
    ),
    "a name that a round has": (
        ("  after:", "  dpo-2: {kind: sft, data: asks, model: sft}\n  after:"),
        [
            "r.yaml:24: stage `dpo-2` has the name of round 2 of `dpo` in groups.online. Give it another name",
        ],
    ),
    "a source that a round has": (
        ("  compared:", "  compared-2: {path: asks.jsonl}\n  compared:"),
        [
            "r.yaml:4: data source `compared-2` has the name of `compared` in round 2 of groups.online. "
            "Give it another name"
        ],
    ),
    "nothing carried": (
        ("carry: {policy: {first: sft, then: dpo}}", "carry: {}"),
        [
            "r.yaml:10: groups.online.carry is empty; expected what a round takes from the one before, as in "
            "{policy: {first: sft, then: dpo}}"
        ],
    ),
    "carried and not read": (
        ("carry: {", "carry: {judge: {first: sft, then: dpo}, "),
        [
            "r.yaml:10: groups.online.carry: no stage of the group reads `judge`. Name `judge` where a round takes "
            "what the round before made, as in `model: judge`"
        ],
    ),
    "carried under the name of a stage": (
        ("carry: {", "carry: {sft: {first: base, then: dpo}, "),
        [
            "r.yaml:10: groups.online.carry: `sft` is the name of a stage; expected a name of its own. "
            "Call it `policy`, for example"
        ],
    ),
    "carried from outside": (
        ("then: dpo", "then: sft"),
        ["r.yaml:10: groups.online.carry.policy.then is `sft`; expected a stage of the group: candidates, labels, dpo"],
    ),
    "starting with itself": (
        ("first: sft", "first: dpo"),
        [
            "r.yaml:10: groups.online.carry.policy.first is `dpo`, a stage of the group; "
            "expected what there is before round 1"
        ],
    ),
    "all rounds where one is wanted": (
        ("asks, model: dpo}", "asks, model: dpo-*}"),
        ["r.yaml:24 stage after: model: `dpo-*` names every round; expected one of them. Write `dpo-3`"],
    ),
    "a wrong value in a stage of the group": (
        ("beta: 0.3", "beta: -1"),
        ["r.yaml:15 stage dpo: train.beta is -1; it must be > 0"],
    ),
    "an unknown kind in the group": (
        ("kind: dpo,", "kind: dpoo,"),
        ["r.yaml:15 stage dpo: unknown kind `dpoo`; expected one of "],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_group_is_told_once_at_its_line(case: str, write: Callable[..., Path]) -> None:
    change, wanted = BAD[case]
    recipe, problems = inspect(write(change))
    _, more = survey(recipe, Store(recipe.file.parent / "store"))
    told = [str(problem) for problem in once_per_group([*problems, *more], recipe.copies)]
    if case == "groups that are a list":  # its other lines are nonsense then
        told = told[:1]
    assert len(told) == len(wanted) and all(map(str.startswith, told, wanted)), told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("models: [policy]", "models: [dpo]"),
            "r.yaml:13 stage candidates: stages need each other: candidates → dpo → labels → candidates; "
            "expected a graph without cycles",
        ),
        (
            ("first: sft", "first: stf"),
            "r.yaml:10 stage candidates-1: models: no stage, artifact, folder or hub model `stf`; expected one of ",
        ),
        (
            ("then: dpo", "then: labels"),
            "r.yaml:10 stage candidates-2: models: `labels-1` is of kind labels; expected a stage that makes a model. ",
        ),
    ],
)
def test_what_only_the_graph_can_tell_names_the_line_of_the_group(
    change: tuple[str, str], message: str, write: Callable[..., Path]
) -> None:
    with pytest.raises(PipelineError) as error:
        _plan(write(change))
    assert str(error.value).startswith(message)


def test_a_stage_of_a_group_cannot_be_asked_for_without_its_round(write: Callable[..., Path]) -> None:
    recipe = load(write())
    with pytest.raises(PipelineError, match=r"no stage `dpo`; expected one of dpo-1, dpo-2, dpo-3\. `dpo` is"):
        make_plan(recipe, Store(recipe.file.parent / "store"), until="dpo")
    with pytest.raises(PipelineError, match=r"no group `onlin`\. Did you mean `online`\?"):
        load(recipe.file, overrides=["groups.onlin.rounds=2"])


def test_problems_of_plain_stages_are_left_alone() -> None:
    same = [Problem("a", stage="s", where="x:1"), Problem("a", "b", stage="s", where="x:1")]
    assert once_per_group([*same, same[0]], {}) == same
    of_two = [Problem(f"`t-{number}` is bad", "one of t-1", stage=f"t-{number}", where="x:2") for number in (1, 2)]
    assert once_per_group(of_two, {"t": ("t-1", "t-2")}) == [
        Problem("`t` is bad", "one of t-1", stage="t", where="x:2")
    ]
    assert once_per_group(of_two, {"t": ("t-1", "t-2", "t-3")}) == of_two[:1]
