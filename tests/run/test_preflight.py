"""What is known before anything runs: an engine the machine lacks, a batch that does not divide."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline import preflight
from pipeline.errors import PipelineError
from pipeline.models.load import kernels


@pytest.fixture
def without_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = preflight.installed
    monkeypatch.setattr(preflight, "installed", lambda package: "" if package == "deepspeed" else real(package))


@pytest.mark.usefixtures("without_deepspeed")
def test_zero_without_deepspeed_is_refused_by_stage_with_the_command_that_installs_it(fresh: Any) -> None:
    plan = fresh.plan("compute.zero=2", "stages.dpo.compute.zero=0")
    with pytest.raises(PipelineError) as error:
        preflight.check_plan(plan, fresh.store)
    problems = error.value.problems
    assert [problem.stage for problem in problems] == ["base", "sft", "rm"]  # a tokenizer and a report run alone
    assert problems[0].found == "compute.zero is 2, and DeepSpeed is not installed"
    assert problems[0].remedy == "pip install 'trueup[deepspeed]'"


@pytest.mark.usefixtures("without_deepspeed")
def test_another_machine_may_have_it(fresh: Any) -> None:
    with pytest.raises(PipelineError, match="DeepSpeed is not installed"):
        preflight.check_plan(fresh.plan("compute.zero=2"), fresh.store)
    preflight.check_plan(fresh.plan("compute.zero=2", "compute.launcher=slurm"), fresh.store)
    preflight.check_plan(fresh.plan(), fresh.store)


def test_stages_here_and_on_a_cluster_in_one_run_are_refused_and_run_one_after_the_other(finished: Any) -> None:
    mixed = ("compute.launcher=slurm", "stages.report.compute.launcher=local")
    again = ("stages.dpo.train.beta=0.4", "stages.report.title=again")  # dpo and report are to be made
    with pytest.raises(PipelineError) as error:
        preflight.check_plan(finished.plan(*mixed, *again), finished.store)
    (problem,) = error.value.problems
    assert problem.found == "compute.launcher is local for report and slurm for the others"
    assert problem.stage == "report" and problem.where.startswith(str(finished.recipe))
    assert "--only or --until" in problem.remedy
    preflight.check_plan(finished.plan(*mixed, *again, until="dpo"), finished.store)  # a part is of one launcher
    preflight.check_plan(finished.plan(*mixed, again[1]), finished.store)  # what is done does not count


@pytest.mark.parametrize("asked", ["compute.tensor_parallel=2", "compute.fsdp=true"])
def test_a_transformers_that_cannot_slice_is_told_from_one_that_can(
    fresh: Any, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = fresh.plan("compute.processes=2", asked)
    assert not list(preflight._engine_problems(plan))
    version = lambda package: "5.20.2" if package == "transformers" else "1"  # noqa: E731
    monkeypatch.setattr(preflight, "installed", version)
    problems = list(preflight._engine_problems(plan))
    assert problems and all("and transformers is 5.20.2; it must be 5.23 or later" in str(one) for one in problems)


@pytest.mark.parametrize(
    ("asked", "module", "opening", "extra"),
    [
        ("compute.attention=flash", "flash_attn", "compute.attention is flash, and FlashAttention", "flash"),
        ("compute.liger=on", "liger_kernel", "compute.liger is on, and Liger", "liger"),
    ],
)
def test_kernels_asked_for_by_name_are_missed_before_anything_runs(
    fresh: Any, asked: str, module: str, opening: str, extra: str
) -> None:
    if kernels.has(module) or kernels.has("kernels"):
        pytest.skip(f"{module} is installed here")
    with pytest.raises(PipelineError) as error:
        preflight.check_plan(fresh.plan(asked), fresh.store)
    problems = error.value.problems
    assert [problem.stage for problem in problems] == ["base", "sft", "rm", "dpo"]
    assert problems[0].found == f"{opening} is not installed"
    assert problems[0].remedy.startswith(f"pip install 'trueup[{extra}]'")
    assert "\n" not in str(problems[0])
    preflight.check_plan(fresh.plan(asked, "compute.launcher=slurm"), fresh.store)


def test_which_kernels_a_model_gets_does_not_change_what_it_is(fresh: Any) -> None:
    plain, asked = fresh.plan(), fresh.plan("compute.attention=sdpa", "compute.liger=off")
    assert [stage.fingerprint for stage in plain.stages] == [stage.fingerprint for stage in asked.stages]


def test_a_batch_that_does_not_divide_is_refused_before_anything_runs(fresh: Any) -> None:
    plan = fresh.plan("stages.dpo.compute.processes=3", "stages.sft.compute.processes=2")
    with pytest.raises(PipelineError) as error:
        preflight.check_plan(plan, fresh.store)
    (problem,) = error.value.problems
    assert (problem.stage, problem.found) == ("dpo", "train.batch_size 16 does not divide over 3 processes")
    assert problem.remedy == "use 15 or 18, or another number of processes"
    assert problem.where.startswith(str(fresh.recipe))


def test_kto_needs_rows_for_the_divergence_in_every_process(fresh: Any) -> None:
    kto = "  kto: {kind: kto, data: pairs, model: sft, train: {batch_size: 12, kl_batch: 2}, compute: {processes: 4}}"
    fresh.recipe.write_text(fresh.recipe.read_text().replace("stages:\n", f"stages:\n{kto}\n", 1))
    with pytest.raises(PipelineError, match=r"train\.kl_batch 2 does not divide over 4 processes"):
        preflight.check_plan(fresh.plan(), fresh.store)


def test_quantised_weights_do_not_go_with_zero_3(fresh: Any) -> None:
    pytest.importorskip("bitsandbytes", reason="needs trueup[quantize]")
    pytest.importorskip("deepspeed", reason="ZeRO needs DeepSpeed: pip install 'trueup[deepspeed]'")
    asked = ("stages.dpo.adapter={r: 4, quantize: 4bit}", "compute.processes=2")
    preflight.check_plan(fresh.plan(*asked, "compute.zero=2"), fresh.store)
    preflight.check_plan(fresh.plan(*asked, "compute.zero=3", "stages.dpo.compute.zero=1"), fresh.store)
    with pytest.raises(PipelineError) as error:
        preflight.check_plan(fresh.plan(*asked, "compute.zero=3"), fresh.store)
    (problem,) = error.value.problems
    assert (problem.stage, problem.found) == ("dpo", "adapter.quantize is 4bit and compute.zero is 3")
    assert problem.remedy == "set compute.zero: 2 or less for this stage"
    assert problem.where == f"--set {asked[0]}"
    with pytest.raises(PipelineError, match=r"4bit and compute\.fsdp is true.*. Set compute\.fsdp: false"):
        preflight.check_plan(fresh.plan(*asked, "compute.fsdp=true"), fresh.store)


FORMATS = {
    "fp16 on a CPU": (("compute.precision=fp16", "compute.device=cpu"), "fp16 on a CPU; .*Set compute.precision: auto"),
    "bf16 by DeepSpeed on a CPU": (
        ("compute.precision=bf16", "compute.device=cpu", "compute.zero=1"),
        "bf16 with compute.zero 1 on a CPU; expected auto or fp32. Set compute.precision: fp32",
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_number_formats_that_a_cpu_does_not_train_in_are_refused_before_anything_loads(name: str, fresh: Any) -> None:
    pytest.importorskip("deepspeed", reason="ZeRO needs DeepSpeed: pip install 'trueup[deepspeed]'")
    asked, said = FORMATS[name]
    with pytest.raises(PipelineError, match=said) as error:
        preflight.check_plan(fresh.plan(*asked), fresh.store)
    assert {problem.stage for problem in error.value.problems} >= {"base", "sft", "rm", "dpo"}
    preflight.check_plan(fresh.plan(*asked, "compute.precision=auto"), fresh.store)
    preflight.check_plan(fresh.plan(*asked, "compute.device=auto", "compute.hardware=h100-80gb"), fresh.store)


@pytest.mark.parametrize("parts", ["zero: 1", "fsdp: true"])
def test_ppo_in_fp16_with_sharded_weights_is_refused_before_anything_loads(parts: str, fresh: Any) -> None:
    pytest.importorskip("deepspeed", reason="ZeRO needs DeepSpeed: pip install 'trueup[deepspeed]'")
    compute = f"{{precision: fp16, hardware: h100-80gb, processes: 2, {parts}}}"
    ppo = f"  ppo: {{kind: ppo, data: asks, model: sft, reward: rm, compute: {compute}}}"
    before = fresh.recipe.read_text()
    fresh.recipe.write_text(before.replace("stages:\n", f"stages:\n{ppo}\n", 1))
    with pytest.raises(PipelineError, match=r"fp16 for a ppo stage with compute.*or leave compute.(zero|fsdp) out"):
        preflight.check_plan(fresh.plan(), fresh.store)
    fresh.recipe.write_text(before.replace("stages:\n", f"stages:\n{ppo.replace(', ' + parts, '')}\n", 1))
    preflight.check_plan(fresh.plan(), fresh.store)


def test_rows_that_do_not_divide_into_micro_batches_are_refused_before_anything_runs(fresh: Any) -> None:
    stages = "  kto: {kind: kto, data: pairs, model: sft, train: {batch_size: 8, kl_batch: 8}}"
    fresh.recipe.write_text(fresh.recipe.read_text().replace("stages:\n", f"stages:\n{stages}\n", 1))
    with pytest.raises(PipelineError, match=r"micro_batch 3 does not divide the 16 rows of train.batch_size") as error:
        preflight.check_plan(fresh.plan("compute.micro_batch=3"), fresh.store)
    assert "kto" not in {problem.stage for problem in error.value.problems}  # it goes by `kl_batch`
    assert {problem.remedy for problem in error.value.problems if problem.stage == "dpo"} == {"use 2 or 4"}
    preflight.check_plan(fresh.plan("compute.micro_batch=64"), fresh.store)  # at once what there is


def test_pretraining_does_not_go_on_from_quantised_weights(fresh: Any) -> None:
    folder = fresh.recipe.parent / "small"
    folder.mkdir()
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": quantised}))
    more = "  more: {kind: pretrain, data: corpus, init: small}"
    fresh.recipe.write_text(fresh.recipe.read_text().replace("stages:\n", f"stages:\n{more}\n", 1))
    said = "stage more: `small` is kept quantised .4bit.; expected weights that are trained.*Name another copy"
    with pytest.raises(PipelineError, match=said):
        preflight.check_plan(fresh.plan(), fresh.store)


OWN_WORDS = {
    "micro-batch of ppo": (
        "ppo: {kind: ppo, data: asks, model: sft, reward: rm, compute: {micro_batch: 2}}",
        r"stage ppo: compute.micro_batch is 2 for a ppo stage; it must be auto.*train.token_budget",
    ),
    "micro-batch of kto": (
        "kto: {kind: kto, data: pairs, model: sft, compute: {micro_batch: 2}}",
        r"stage kto: compute.micro_batch is 2 for a kto stage; it must be auto.*train.kl_batch",
    ),
    "average of sharded weights": (
        "ppo: {kind: ppo, data: asks, model: sft, reward: rm, train: {ema_decay: 0.9}, compute: {fsdp: true}}",
        r"stage ppo: train.ema_decay is 0.9 with compute.fsdp; it must be 0 there. Leave one of them out",
    ),
}


@pytest.mark.parametrize("name", OWN_WORDS)
def test_words_that_a_kind_does_not_heed_are_refused_where_the_stage_has_them(name: str, fresh: Any) -> None:
    stage, said = OWN_WORDS[name]
    before = fresh.recipe.read_text()
    fresh.recipe.write_text(before.replace("stages:\n", f"stages:\n  {stage}\n", 1))
    with pytest.raises(PipelineError, match=said) as error:
        preflight.check_plan(fresh.plan(), fresh.store)
    assert len(error.value.problems) == 1
    taken = stage.replace("compute: {micro_batch: 2}", "compute: {}").replace("ema_decay: 0.9", "ema_decay: 0")
    fresh.recipe.write_text(before.replace("stages:\n", f"stages:\n  {taken}\n", 1))
    preflight.check_plan(fresh.plan("compute.micro_batch=2"), fresh.store)  # of the recipe, for the stages that heed it


SETTINGS = {
    "stages.sft.train.report_to=wandb": "train.report_to is wandb, which is not installed",
    "stages.dpo.train.optim=adamw_torch_8bit": "torchao is not installed",
    "stages.sft.adapter={targets: [q_prj]}": "adapter.targets names q_prj, and no layer is named so",
    "stages.base.train.eval_steps=2": "train.eval_steps is 2, and data.corpus holds no rows out to evaluate on",
    "stages.rm.train.load_best_model_at_end=true": "data.pairs_test holds no rows out",  # it is measured at the end
    "stages.sft.train.activation_offloading=true": "there is no GPU to move activations from",
    "stages.dpo.train.router_aux_loss_coef=0.1": "the model has no experts",
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_would_fail_hours_later_is_refused_before_anything_runs(setting: str, fresh: Any) -> None:
    """Nothing of the chain is there yet: what the first stages would make is known from the recipe."""
    with pytest.raises(PipelineError) as error:
        preflight.check_plan(fresh.plan(setting), fresh.store)
    (problem,) = error.value.problems
    assert SETTINGS[setting] in str(problem) and problem.stage == setting.split(".")[1]


def test_what_another_machine_has_installed_is_for_it_to_say(fresh: Any) -> None:
    asked = "stages.sft.train.report_to=neptune"
    with pytest.raises(PipelineError, match="neptune, which is not installed"):
        preflight.check_plan(fresh.plan(asked), fresh.store)
    preflight.check_plan(fresh.plan(asked, "compute.launcher=slurm"), fresh.store)


def test_packages_that_are_missing_stand_in_one_list_with_what_is_wrong_with_a_stage(fresh: Any) -> None:
    """A stage that is right, one whose words contradict one another, one that needs it, one with a word of no type."""
    asked = {
        "stages.base.train.report_to=neptune": "stage base: train.report_to is neptune",
        "stages.sft.train.lr_scheduler_type=cosin": "stage sft: train.lr_scheduler_type is cosin",
        "stages.sft.train.report_to=[clearml]": "stage sft: train.report_to is clearml",
        "stages.rm.train.report_to=swanlab": "stage rm: train.report_to is swanlab",
        "stages.dpo.train.beta=much": "stage dpo: train.beta is 'much'",
        "stages.dpo.train.optim=adamw_torch_8bit": "stage dpo: train.optim is adamw_torch_8bit, and torchao",
    }
    told = [str(problem) for problem in fresh.problems(*asked)]
    assert len(told) == len(asked)
    for wanted in asked.values():
        assert sum(wanted in line for line in told) == 1, wanted


def test_words_of_any_shape_ask_for_no_package(fresh: Any) -> None:
    """The recipe's words are looked at as they stand where a stage has problems."""
    asked = ("train=fast", "adapter=[4bit]", "rollout_engine={a: 1}")
    told = [str(problem) for problem in fresh.problems(*(f"stages.dpo.{word}" for word in asked))]
    assert len(told) == 3 and all("stage dpo" in line for line in told)
    told = [str(problem) for problem in fresh.problems("stages.dpo.train={report_to: {a: [b]}, optim: [sgd]}")]
    assert all("not installed" not in line for line in told)
    assert any("train.report_to is a mapping; expected a tracker's name, or a list of names" in line for line in told)


def test_transformers_saves_no_weights_that_tensor_parallelism_cuts(fresh: Any) -> None:
    cut = ("stages.dpo.compute.tensor_parallel=2", "stages.dpo.compute.processes=2")
    plan = fresh.plan(*cut, "stages.dpo.train.save_strategy=epoch", until="dpo")
    with pytest.raises(PipelineError, match=r"train\.save_strategy is epoch with compute\.tensor_parallel"):
        preflight.check_plan(plan, fresh.store)


@pytest.mark.parametrize("beside", ["adapter: {r: 4}", "compute: {fsdp: true, processes: 2}"])
def test_a_reference_that_follows_the_policy_is_whole(beside: str, fresh: Any) -> None:
    """trl has none beside an adapter; a sharded one is in no checkpoint."""
    train = "train: {beta: 0.1, sync_ref_model: true, batch_size: 8, num_generations: 4}"
    stage = f"grpo: {{kind: grpo, data: asks, model: sft, reward: [rm], {train}, {beside}}}"
    fresh.recipe.write_text(fresh.recipe.read_text().replace("stages:\n", f"stages:\n  {stage}\n", 1))
    with pytest.raises(PipelineError, match=r"stage grpo: train\.sync_ref_model is true with"):
        preflight.check_plan(fresh.plan(), fresh.store)


def _with_properties(fresh: Any, value: object) -> None:
    """Give every second test pair a property, and the others a value."""
    file = fresh.recipe.parent / "pairs_test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [{**row, "differs_in": value if i % 2 else "polite"} for i, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("value", [None, "", "answer"])
def test_a_column_with_a_property_of_some_pairs_is_taken_and_read(fresh: Any, value: object) -> None:
    _with_properties(fresh, value)
    unread = "data pairs_test: nothing reads `differs_in`"
    assert unread in fresh.check().notes
    for _ in range(2):  # the second time from the cache
        assert unread not in fresh.check("stages.rm.property_column=differs_in").notes


def test_a_column_that_the_test_pairs_lack_is_told_by_check_with_its_line(fresh: Any) -> None:
    _with_properties(fresh, None)
    for field in ("property_column", "group_by"):
        for _ in range(2):  # the second time from the cache
            (problem,) = fresh.problems(f"stages.rm.{field}=differs")
            assert problem.found == f"{field} is `differs`, and none of 60 held-out pairs has a value in that column"
            assert (problem.stage, problem.where) == ("rm", f"--set stages.rm.{field}=differs")
            assert problem.remedy == "did you mean `differs_in`?"


def test_a_property_that_is_no_text_is_told_by_check(fresh: Any) -> None:
    _with_properties(fresh, 0.5)
    (problem,) = fresh.problems("stages.rm.property_column=differs_in")
    assert problem.found.endswith("and 30 of 60 held-out pairs have a value there that is not text (0.5)")
    assert fresh.check("stages.rm.group_by=differs_in").sources  # a group may be a number


def test_properties_are_those_of_the_held_out_pairs_where_no_test_is_named(fresh: Any) -> None:
    _with_properties(fresh, "answer")  # the pairs to learn from have no such column
    asked = ("stages.rm.test=null", "stages.rm.property_column=differs_in")
    (problem,) = fresh.problems(*asked)
    assert "none of 16 held-out pairs has a value in that column" in problem.found  # a tenth of 160
    (problem,) = fresh.problems(*asked, "data.pairs.held_out=0")
    assert problem.found == "property_column is `differs_in`, and there are no held-out pairs"


def test_a_source_that_two_stages_read_is_one_line_also_where_one_reads_a_column_more(fresh: Any, call: Any) -> None:
    _with_properties(fresh, "answer")
    file = fresh.recipe.parent / "pairs_test.jsonl"
    (fresh.recipe.parent / "pairs.jsonl").write_text(file.read_text())
    asked = ("--set", "stages.rm.test=null", "--set", "stages.rm.property_column=differs_in")
    shown = call("check", fresh.recipe, "--store", fresh.store.root, *asked, cwd=fresh.recipe.parent)
    assert shown.returncode == 0, shown.stderr
    (line,) = [line.split() for line in shown.stdout.splitlines() if line.startswith("pairs ")]
    assert line[:4] == ["pairs", "rm,", "dpo", "preference"]
