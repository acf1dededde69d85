"""A sweep becomes ordinary stages, one for each combination that reaches them; its problems are told at their lines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipeline.stages  # noqa: F401 -- registers the kinds
from pipeline.artifacts import Store
from pipeline.errors import PipelineError
from pipeline.plan import Plan, make_plan, survey
from pipeline.recipe import Recipe, inspect, load, once_per_group

RECIPE = """\
seed: 7
data:
  asks: asks.jsonl
  compared: {artifact: candidates, file: pairs.jsonl}
sweep: SWEEP
stages:
  base: {kind: sft, data: asks, model: base/model@0123456, seed: 3}
  sft: {kind: sft, data: asks, model: base}
  candidates: {kind: sample, data: asks, models: [sft], n: 4}
  dpo: {kind: dpo, data: compared, model: sft, train: {beta: 0.3}}
  kto: {kind: kto, data: compared, model: sft}
  after: {kind: sft, data: asks, model: dpo}
  report:
    kind: evaluate
    data: asks
    models: [sft, dpo, kto-*]
    baseline: sft
    greedy: [dpo-*]
    gold: gold.py:gold
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "asks.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "gold.py").write_text("def gold(**columns):\n    return [0.0]\n")

    def written(sweep: str, *changes: tuple[str, str], name: str = "r.yaml") -> Path:
        text = RECIPE.replace("SWEEP", sweep)
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return written


def _config(recipe: Recipe, stage: str) -> Any:
    return recipe.stages[stage].config


def _names(recipe: Recipe, *stages: str) -> list[str]:
    return [name for name, spec in recipe.stages.items() if (spec.written_as or name) in stages]


BETAS = "{stages.dpo.train.beta: [0.05, 0.5]}"


def test_a_stage_is_copied_for_each_value_and_what_is_made_from_it_too(write: Callable[..., Path]) -> None:
    recipe = load(write(BETAS))
    assert list(recipe.stages) == [
        "base",
        "sft",
        "candidates",
        "dpo-beta-0.05",
        "dpo-beta-0.5",
        "kto",
        "after-dpo.beta-0.05",
        "after-dpo.beta-0.5",
        "report",
    ]
    assert [_config(recipe, name).train.beta for name in recipe.variants["dpo"]] == [0.05, 0.5]
    assert _config(recipe, "after-dpo.beta-0.5").model == "dpo-beta-0.5"
    report = _config(recipe, "report")
    assert report.models == ["sft", "dpo-beta-0.05", "dpo-beta-0.5", "kto"]
    assert report.greedy == ["dpo-beta-0.05", "dpo-beta-0.5"] and report.baseline == "sft"
    assert {name: (one.stage, one.settings) for name, one in report.variants.items()} == {
        "dpo-beta-0.05": ("dpo", {"beta": 0.05}),
        "dpo-beta-0.5": ("dpo", {"beta": 0.5}),
    }
    assert recipe.stages["dpo-beta-0.5"].written_as == "dpo" and "sweep" not in recipe.resolved
    assert recipe.where("stages", "dpo-beta-0.5", "train", "beta") == "r.yaml:5"


def test_a_setting_reaches_through_inputs_and_sources_that_are_artifacts(write: Callable[..., Path]) -> None:
    recipe = load(write("{stages.sft.seed: [7, 8]}", ("baseline: sft", "baseline: sft-seed-7")))
    assert _names(recipe, "base") == ["base"]
    for stage in ("candidates", "dpo", "kto"):
        assert _names(recipe, stage) == [f"{stage}-sft.seed-7", f"{stage}-sft.seed-8"]
    assert _config(recipe, "candidates-sft.seed-8").models == ["sft-seed-8"]
    source = _config(recipe, "dpo-sft.seed-8").data
    assert source == "compared-sft.seed-8" and recipe.data[source].artifact == "candidates-sft.seed-8"
    assert [recipe.stages[name].seed for name in recipe.variants["sft"]] == [7, 8]
    assert recipe.stages["dpo-sft.seed-8"].seed == 7


def test_a_mapping_is_a_grid_and_a_list_the_union_of_its_grids(write: Callable[..., Path]) -> None:
    dpo = "{stages.dpo.train.beta: [0.1, 0.5], stages.dpo.seed: [17, 1]}"
    kto = "{stages.kto.seed: [17, 1], stages.kto.train.beta: [2]}"
    recipe = load(write(f"[{dpo}, {kto}]"))
    assert _names(recipe, "dpo") == [
        "dpo-beta-0.1-seed-17",
        "dpo-beta-0.1-seed-1",
        "dpo-beta-0.5-seed-17",
        "dpo-beta-0.5-seed-1",
    ]
    assert _names(recipe, "kto") == ["kto-beta-2-seed-17", "kto-beta-2-seed-1"]  # seeds come last in every name
    assert _names(recipe, "sft", "candidates") == ["sft", "candidates"]
    assert recipe.stages["dpo-beta-0.5-seed-1"].seed == 1
    assert _config(recipe, "report").variants["dpo-beta-0.5-seed-1"].settings == {"beta": 0.5, "seed": 1}
    assert recipe.swept == {"dpo": "beta: 0.1, 0.5; seed: 17, 1", "kto": "seed: 17, 1; beta: 2"}


def test_a_stage_is_made_only_for_the_grids_that_reach_it_with_most_settings(write: Callable[..., Path]) -> None:
    """With seeds of `sft` in both, no `dpo` is made of the grid that sweeps `kto`: it would have no β of the sweep."""
    both = "[{stages.dpo.train.beta: [1], stages.sft.seed: [7, 8]}, {stages.kto.train.beta: [2], stages.sft.seed: [8]}]"
    recipe = load(write(both, ("baseline: sft", "baseline: sft-seed-7")))
    assert _names(recipe, "dpo") == ["dpo-beta-1-sft.seed-7", "dpo-beta-1-sft.seed-8"]
    assert _names(recipe, "kto") == ["kto-beta-2-sft.seed-8"]
    assert _names(recipe, "sft") == ["sft-seed-7", "sft-seed-8"]


def test_settings_swept_one_at_a_time_keep_the_others_as_the_recipe_has_them(write: Callable[..., Path]) -> None:
    recipe = load(write("[{stages.dpo.train.beta: [1]}, {stages.sft.train.learning_rate: [1.0e-4]}]"))
    assert _names(recipe, "sft") == ["sft-learning_rate-0.0001", "sft"]
    assert _names(recipe, "dpo") == ["dpo-beta-1", "dpo-sft.learning_rate-0.0001"]
    assert _config(recipe, "dpo-beta-1").model == "sft" and _config(recipe, "report").baseline == "sft"
    assert _config(recipe, "dpo-sft.learning_rate-0.0001").train.beta == 0.3
    again = load(write("[{stages.dpo.train.beta: [1]}, {stages.dpo.train.beta: [2], stages.sft.seed: [8]}]"))
    assert _names(again, "dpo") == ["dpo-beta-1", "dpo-beta-2-sft.seed-8"]
    assert _names(again, "after") == ["after-dpo.beta-1", "after-dpo.beta-2-sft.seed-8"]


def test_the_recipe_s_seed_reaches_stages_without_one_of_their_own(write: Callable[..., Path]) -> None:
    recipe = load(write("{seed: [17, 1]}", ("baseline: sft", "baseline: sft-seed-17")))
    assert _names(recipe, "base") == ["base"] and recipe.stages["base"].seed == 3
    for stage in ("sft", "candidates", "dpo", "kto", "after"):
        assert _names(recipe, stage) == [f"{stage}-seed-17", f"{stage}-seed-1"]
        assert [recipe.stages[f"{stage}-seed-{seed}"].seed for seed in (17, 1)] == [17, 1]
    assert recipe.stages["report"].seed == 7
    own = load(write("{seed: [17, 1], stages.sft.seed: [5]}", ("baseline: sft", "baseline: sft-seed-5")))
    assert _names(own, "sft") == ["sft-seed-5"] and own.stages["dpo-seed-17-sft.seed-5"].seed == 17


def test_data_and_inputs_may_be_swept(write: Callable[..., Path]) -> None:
    recipe = load(write("{stages.dpo.model: [sft, base]}"))
    assert [_config(recipe, name).model for name in ("dpo-model-sft", "dpo-model-base")] == ["sft", "base"]
    changes = (("[sft, dpo, kto-*]", "[base, dpo]"), ("baseline: sft", "baseline: base"))
    both = load(write("{stages.dpo.model: [sft, base], stages.sft.train.epochs: [1, 2]}", *changes))
    assert _config(both, "dpo-model-base-sft.epochs-2").data == "compared-sft.epochs-2"  # its rows are of `sft`
    apart = load(write("{stages.after.model: [sft, base], stages.sft.train.epochs: [1, 2]}", *changes))
    assert _names(apart, "after") == [
        "after-model-sft-sft.epochs-1",
        "after-model-sft-sft.epochs-2",
        "after-model-base",
    ]


def test_a_swept_source_is_copied_with_the_stages_that_read_it(write: Callable[..., Path]) -> None:
    changes = (("data:\n", "data:\n  more: asks.jsonl\n"), ("kto, data: compared", "kto, data: more"))
    recipe = load(write("{data.more.limit: [1, 2]}", *changes))
    assert _names(recipe, "kto") == ["kto-more.limit-1", "kto-more.limit-2"]
    assert [recipe.data[_config(recipe, name).data].limit for name in _names(recipe, "kto")] == [1, 2]
    assert "more" not in recipe.data and recipe.data["more-limit-1"].path == "asks.jsonl"
    assert _names(recipe, "dpo") == ["dpo"]


def test_names_are_of_plain_characters_and_tell_values_apart(write: Callable[..., Path]) -> None:
    values = '[base, "a/model@0123", "a/model/0123", {r: 4}, null, true]'
    recipe, _ = inspect(write(f"{{stages.dpo.model: {values}}}"))
    names = [*recipe.stages, *recipe.broken]
    # sha256 of `a/model@0123` begins with 4362, that of `a/model/0123` with 47ef.
    assert {"dpo-model-a-model-0123-4362", "dpo-model-a-model-0123-47ef"} <= set(names)
    assert {"dpo-model-base", "dpo-model-null", "dpo-model-true"} <= set(names)


def test_a_number_has_one_name_however_it_is_written(write: Callable[..., Path]) -> None:
    recipe = load(write("{stages.dpo.train.beta: [5.0, 1.0e+20, 1.0e-5, 3]}"))
    assert _names(recipe, "dpo") == ["dpo-beta-5", "dpo-beta-1e20", "dpo-beta-1e-05", "dpo-beta-3"]
    with pytest.raises(PipelineError, match="has the value 5 twice"):
        load(write("{stages.dpo.train.beta: [5.0, 5]}"))
    model = f"stages.dpo.model: [{'a' * 30}/{'b' * 30}, base]"
    long = load(
        write(
            f"{{{model}, stages.sft.train.warmup_steps: [0.1, 0.2], stages.base.seed: [1234567890]}}",
            ("baseline: sft", "baseline: sft-warmup_steps-0.1-base.seed-1234567890"),
        )
    )
    assert max(map(len, long.variants["after"])) == 100 and len(set(long.variants["after"])) == 4


def test_variants_share_no_batch_of_labels(write: Callable[..., Path]) -> None:
    given: Any = load(
        write(
            "{stages.sft.seed: [7, 8]}",
            ("kto, data: compared, model: sft", "labels, data: compared, batch: mine"),
            ("kto-*", "base"),
            ("baseline: sft", "baseline: base"),
        )
    ).stages
    assert [given[f"kto-sft.seed-{seed}"].config.batch for seed in (7, 8)] == ["mine-sft.seed-7", "mine-sft.seed-8"]


def test_groups_are_swept_in_all_rounds_and_seeds_count_up(write: Callable[..., Path]) -> None:
    group = (
        "groups:\n  again: {rounds: 2, stages: [candidates, dpo], carry: {policy: {first: sft, then: dpo}}}\nstages:\n"
    )
    changes = (
        ("stages:\n", group),
        ("[sft, dpo, kto-*]", "[sft, dpo-*]"),
        ("models: [sft], n", "models: [policy], n"),
        ("model: sft, train", "model: policy, train"),
    )
    recipe = load(write("{stages.dpo.train.beta: [1, 2], stages.dpo.seed: [5]}", *changes))
    assert _names(recipe, "dpo") == [
        "dpo-1-beta-1-seed-5",
        "dpo-1-beta-2-seed-5",
        "dpo-2-beta-1-seed-5",
        "dpo-2-beta-2-seed-5",
    ]
    assert [recipe.stages[f"dpo-{number}-beta-1-seed-5"].seed for number in (1, 2)] == [5, 6]
    assert _names(recipe, "candidates") == [
        "candidates-1",
        "candidates-2-dpo.beta-1-dpo.seed-5",
        "candidates-2-dpo.beta-2-dpo.seed-5",
    ]
    assert _config(recipe, "dpo-2-beta-2-seed-5").model == "dpo-1-beta-2-seed-5"
    seeds = load(write("{seed: [17, 1]}", *changes, ("baseline: sft", "baseline: sft-seed-1")))
    assert [seeds.stages[name].seed for name in _names(seeds, "dpo")] == [17, 1, 18, 2]


def test_set_profiles_and_extends_change_a_sweep(write: Callable[..., Path]) -> None:
    file = write(BETAS)
    assert _names(load(file, overrides=["sweep.stages.dpo.train.beta=[3]"]), "dpo") == ["dpo-beta-3"]
    assert _names(load(file, overrides=["sweep.stages.kto.seed=[3]"]), "kto") == ["kto-seed-3"]
    assert _names(
        load(file, overrides=["sweep=null", "stages.report.models=[sft, dpo]", "stages.report.greedy=[]"]), "dpo"
    ) == ["dpo"]
    upper = file.parent / "upper.yaml"
    upper.write_text(
        "extends: r.yaml\nsweep: {stages.dpo.train.beta: [4]}\nprofiles: {x: {sweep: {stages.dpo.seed: [1]}}}\n"
    )
    assert _names(load(upper), "dpo") == ["dpo-beta-4"]
    assert _names(load(upper, profile="x"), "dpo") == ["dpo-beta-4-seed-1"]
    listed = write(f"[{BETAS}]", name="listed.yaml")
    assert _names(load(listed, overrides=["sweep.0.stages.dpo.train.beta=[3]"]), "dpo") == ["dpo-beta-3"]


def _plan(file: Path, **asked: Any) -> Plan:
    return make_plan(load(file), Store(file.parent / "store"), **asked)


def test_one_more_value_leaves_the_fingerprints_of_the_others(write: Callable[..., Path]) -> None:
    two = _plan(write("{stages.dpo.train.beta: [0.05, 0.5], stages.dpo.seed: [1, 2]}"))
    more = _plan(write("[{stages.dpo.seed: [2, 3, 1], stages.dpo.train.beta: [0.5, 0.05, 9]}, {stages.kto.seed: [4]}]"))
    before, now = ({one.spec.name: one.fingerprint for one in plan.stages} for plan in (two, more))
    assert {**before, "report": "", "kto": ""}.items() <= {**now, "report": "", "kto": ""}.items()
    assert len(before) == 13 and len(set(now.values())) == len(now)


def test_a_variant_has_the_fingerprint_of_the_stage_with_that_value(write: Callable[..., Path]) -> None:
    swept = {one.spec.name: one.fingerprint for one in _plan(write(BETAS)).stages}
    file = write("null", ("beta: 0.3", "beta: 0.5"), ("kto-*", "kto"), ("[dpo-*]", "[dpo]"))
    plain = {one.spec.name: one.fingerprint for one in _plan(file).stages}
    assert swept["dpo-beta-0.5"] == plain["dpo"] and swept["sft"] == plain["sft"]
    assert swept["after-dpo.beta-0.5"] == plain["after"]


def test_a_stage_may_be_asked_for_under_its_plain_name(write: Callable[..., Path]) -> None:
    file = write(BETAS)
    until = [one.spec.name for one in _plan(file, until="dpo").stages]
    assert until == ["base", "sft", "candidates", "dpo-beta-0.05", "dpo-beta-0.5"]
    forced = {one.spec.name for one in _plan(file, force=["dpo"]).stages if "forced" in one.why}
    assert {"dpo-beta-0.05", "dpo-beta-0.5", "report"} <= forced and "kto" not in forced


def test_a_plan_tells_what_is_swept_and_what_no_report_compares(write: Callable[..., Path]) -> None:
    notes = _plan(write(BETAS)).notes
    assert "sweep: dpo is 2 stages (beta: 0.05, 0.5)" in notes and not any("compares" in note for note in notes)
    alone = _plan(write(BETAS, ("[sft, dpo, kto-*]", "[sft]"), ("    greedy: [dpo-*]\n", ""))).notes
    assert "nothing compares the variants of dpo: name `dpo` in the `models` of an `evaluate` stage" in alone
    file = write("{stages.candidates.n: [3, 4]}", ("[sft, dpo, kto-*]", "[sft]"), ("    greedy: [dpo-*]\n", ""))
    assert any("candidates: name a model that is trained with them in the" in note for note in _plan(file).notes)


BAD: dict[str, tuple[str, list[str]]] = {
    "no mapping": (
        "3",
        [
            "sweep is 3; expected a mapping of settings to lists of values, as in "
            "{stages.dpo.train.beta: [0.05, 0.1]}, or a list of mappings",
        ],
    ),
    "empty": ("{}", ["sweep names no setting; expected settings and their values, as in {stages."]),
    "an empty list": ("[]", ["sweep is an empty list; expected settings and their values, as in {stages."]),
    "one value": (
        "{stages.dpo.train.beta: 0.5}",
        ["sweep: `stages.dpo.train.beta` is 0.5; it must be a list of values. Write [0.5]"],
    ),
    "no values": (
        "{stages.dpo.train.beta: []}",
        ["sweep: `stages.dpo.train.beta` has no values; expected at least one"],
    ),
    "a value twice": (
        "{stages.dpo.train.beta: [0.5, 1, 0.50]}",
        ["sweep: `stages.dpo.train.beta` has the value 0.5 twice; expected each value once"],
    ),
    "a setting twice": (
        "{stages.dpo.seed: [1], stages: {dpo: {seed: [2]}}}",
        ["sweep: `stages.dpo.seed` is given twice; expected each setting once"],
    ),
    "a setting within another": (
        "{stages.dpo.train.beta: [1], stages.dpo.train: [{beta: 2}]}",
        ["sweep: `stages.dpo.train` and `stages.dpo.train.beta` hold one another; expected settings that do not"],
    ),
    "one text with a variable": (
        '{stages.dpo.model: "${A:-sft}/x"}',
        ["sweep: `stages.dpo.model` is '${A:-sft}/x'; it must be a list of values. Write ['${A:-sft}/x']"],
    ),
    "no such stage": (
        "{stages.dop.train.beta: [0.5]}",
        ["sweep: no stage `dop`; expected one of base, sft, candidates, dpo, kto, after, report. Did you mean `dpo`?"],
    ),
    "no such source": (
        "{data.ask.limit: [5]}",
        ["sweep: no data source `ask`; expected one of asks, compared. Did you mean `asks`?"],
    ),
    "without stages": (
        "{dpo.train.beta: [0.5]}",
        [
            "sweep: `dpo.train.beta` cannot be swept; expected a setting below `stages` or `data`, or `seed`. "
            "Write `stages.dpo.train.beta`"
        ],
    ),
    "a stage alone": (
        "{stages.dpo: [1]}",
        ["sweep: `stages.dpo` names no setting of the stage; expected a key below it, as in `stages.dpo.train.beta`"],
    ),
    "a kind": (
        "{stages.dpo.kind: [dpo, kto]}",
        ["sweep: `stages.dpo.kind` is the kind of a stage; expected a setting of a stage. Write a stage for each kind"],
    ),
    "compute": (
        "{stages.dpo.compute.processes: [1, 2]}",
        ["sweep: `stages.dpo.compute.processes` cannot change a result; expected a setting that can. Set it with a "],
    ),
    "a report": (
        "{stages.report.temperature: [0.5, 1.0]}",
        [
            "sweep: `report` is a report, which is made once for all variants; "
            "expected a setting of a stage that it compares. Write a second stage beside `report`"
        ],
    ),
    "too many": (
        f"{{stages.dpo.seed: {list(range(40))}, stages.kto.seed: {list(range(40))}}}",
        ["sweep has 1,600 combinations; expected at most 1,000"],
    ),
    "several problems": (
        "{stages.dpo.train.betta: [1, 2], stages.kto.train.beta: [no], seed: 3, stages.x.seed: [1]}",
        [
            "sweep: `seed` is 3; it must be a list of values. Write [3]",
            "sweep: no stage `x`; expected one of ",
            "unknown key `betta`; ",
            "train.beta is 'no'; it must be a number",
        ],
    ),
    "a seed that is no number": ("{stages.dpo.seed: [one]}", ["seed is 'one'; it must be a whole number"]),
    "below a value": ("{stages.dpo.model.name: [a]}", ["`name` is set inside 'sft'; expected a mapping at r.yaml:10"]),
    "several baselines": (
        "{stages.sft.seed: [1, 2]}",
        [
            "baseline: `sft` is 2 variants of the sweep; expected one of sft-seed-1, sft-seed-2. Write `sft-seed-1`",
        ],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_sweep_is_told_at_its_line(case: str, write: Callable[..., Path]) -> None:
    sweep, wanted = BAD[case]
    recipe, problems = inspect(write(sweep))
    _, more = survey(recipe, Store(recipe.file.parent / "store"))
    told = [str(problem) for problem in once_per_group([*problems, *more], recipe.copies)]
    line = "r.yaml:17 stage report: " if "baseline" in case else "r.yaml:5"
    assert len(told) == len(wanted), told
    for text in wanted:
        assert any(one.startswith(line) and text in one for one in told), (text, told)


def test_a_name_of_a_variant_is_taken_once(write: Callable[..., Path]) -> None:
    with pytest.raises(PipelineError, match=r"r\.yaml:13: stage `dpo-beta-0\.5` has the name of a variant of `dpo`"):
        load(write(BETAS, ("  report:", "  dpo-beta-0.5: {kind: sft, data: asks, model: base}\n  report:")))


def test_all_variants_where_one_is_wanted(write: Callable[..., Path]) -> None:
    with pytest.raises(PipelineError, match=r"r.yaml:12 stage after: model: `dpo-\*` is 2 variants of the sweep; "):
        load(write(BETAS, ("asks, model: dpo}", "asks, model: dpo-*}")))
    with pytest.raises(PipelineError, match="stage report: rounds: `dpo` is 2 variants of the sweep"):
        load(write(BETAS, ("greedy: [dpo-*]", "rounds: [sft, dpo]")))


def test_set_of_a_swept_setting_is_not_ignored(write: Callable[..., Path]) -> None:
    told = r"has no effect: the sweep at r.yaml:5 sets `stages.dpo.train.beta`\. Write `--set 'sweep\.stages"
    with pytest.raises(PipelineError, match=told):
        load(write(BETAS), overrides=["stages.dpo.train.beta=0.9"])
