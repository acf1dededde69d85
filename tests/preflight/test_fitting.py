"""What cannot fit is refused before anything loads, with the cheapest change that fits; `auto` is settled by memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Store
from pipeline.cli.display.forecasts import print_forecasts
from pipeline.errors import PipelineError, Problem
from pipeline.estimate.devices import DEVICES
from pipeline.plan import Plan, make_plan
from pipeline.preflight import check_plan
from pipeline.preflight.forecast import Forecast, fitting_problems, forecasts, resolve_auto
from pipeline.preflight.forecast.remedies import _changes, remedy
from pipeline.recipe import load
from pipeline.recipe.hardware import Hardware
from pipeline.recipe.schema import Compute
from pipeline.stages import load_all


@pytest.fixture
def planned(memory_recipe: Path, tmp_path: Path) -> Any:
    """Plan the base stage for a device of so many MiB."""
    load_all()

    def plan(mib: float, *more: str, stage: str = "base") -> tuple[Plan, Store]:
        hardware = f"compute.hardware={{memory_gib: {mib / 1024}, tflops: 100}}"
        recipe = load(memory_recipe, overrides=[hardware, *more])
        store = Store(tmp_path)
        made = make_plan(recipe, store, until=stage)
        return made, store

    return plan


def test_every_named_device_is_in_the_table() -> None:
    for name, device in DEVICES.items():
        assert Hardware.model_validate({"name": name}).device == device
        assert Compute.model_validate({"hardware": name}).hardware == name


def test_a_stage_that_has_room_is_left_as_it_is(planned: Any) -> None:
    made, store = planned(4096)
    assert list(fitting_problems(made, store)) == []
    assert resolve_auto(made, store) == made


def test_auto_lowers_the_micro_batch_before_it_is_refused(planned: Any) -> None:
    made, store = planned(700, stage="dpo")
    before = {need.stage.spec.name: need for need in forecasts(made, store)[0]}["dpo"]
    assert not before.fits
    eased = resolve_auto(made, store)
    after = {need.stage.spec.name: need for need in forecasts(eased, store)[0]}["dpo"]
    assert after.fits
    assert (before.micro_batch, after.micro_batch) == (8, 4)
    assert list(fitting_problems(made, store)) == []
    assert [s.fingerprint for s in eased.stages] == [s.fingerprint for s in made.stages]


KTO = "stages.dpo={kind: kto, data: pairs, model: base, train: {batch_size: 72, kl_batch: 8, max_steps: 1}}"


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ((KTO, "compute.processes=2"), 4),  # kl_batch over two processes; it does not divide the 36 rows of each
        ((KTO, "compute.processes=1"), 8),
        (("stages.dpo.train.batch_size=64", "compute.micro_batch=6"), 4),  # refused elsewhere: about as many
    ],
)
def test_a_forecast_has_the_rows_a_pass_would_have(planned: Any, asked: tuple[str, ...], rows: int) -> None:
    needs, _ = forecasts(*planned(80_000, *asked, stage="dpo"))
    assert {need.stage.spec.name: need.micro_batch for need in needs}["dpo"] == rows


def test_what_cannot_fit_names_its_parts_and_a_change_that_fits(planned: Any) -> None:
    made, store = planned(250)
    [problem] = [p for p in fitting_problems(made, store) if p.stage == "base"]
    assert "optimizer 168 MiB" in problem.found
    assert "250 MiB" in problem.expected
    assert problem.remedy.startswith("cheapest change that fits: compute")


def test_ppo_is_offered_smaller_passes_before_anything_that_changes_the_result(planned: Any) -> None:
    def need_of(mib: float) -> Forecast:
        return {need.stage.spec.name: need for need in forecasts(*planned(mib, stage="ppo"))[0]}["ppo"]

    whole = need_of(4096)
    assert remedy(need_of(whole.memory.peak / 2**20 * 0.9)) == "cheapest change that fits: train.token_budget: 1024"
    halved = whole.facts.with_train({"token_budget": 1024}).forecast(whole.compute, whole.adapter)
    assert (whole.micro_batch, halved.micro_batch) == (12, 6)
    assert halved.memory.activations == whole.memory.activations / 2
    assert halved.memory.weights == whole.memory.weights
    smaller = whole.facts.with_train({"rollout_batch": 8}).forecast(whole.compute, whole.adapter)
    assert smaller.memory.cache == whole.memory.cache / 2


def test_an_evaluation_holds_one_model_in_the_format_of_the_device(tiny_recipe: Path, tmp_path: Path) -> None:
    load_all()
    store, sizes = Store(tmp_path / "store"), {}
    for name in ("h100-80gb", "{memory_gib: 8}"):  # a GPU, and memory without one
        made = make_plan(load(tiny_recipe, overrides=[f"compute.hardware={name}"]), store)
        need = {need.stage.spec.name: need for need in forecasts(made, store)[0]}["report"]
        sizes[name] = need.memory.weights / need.shape.parameters
    assert list(sizes.values()) == [2, 4]  # bytes of a weight


def test_answers_are_forecast_by_how_many_there_are_and_how_often_they_are_read(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    load_all()
    text = tiny_recipe.read_text(encoding="utf-8")
    sample = "  candidates: {kind: sample, data: asks, models: [sft, dpo], temperatures: [0.7, 1.0], n: 3, limit: 10}\n"
    tiny_recipe.write_text(text.replace("compute:", f"{sample}compute:"), encoding="utf-8")

    def need_of(stage: str, *sets: str) -> Forecast:
        made = make_plan(load(tiny_recipe, overrides=["compute.hardware=h100-80gb", *sets]), Store(tmp_path / "store"))
        return {need.stage.spec.name: need for need in forecasts(made, Store(tmp_path / "store"))[0]}[stage]

    once = need_of("candidates")
    assert once.tokens == 10 * once.longest * 2 * 2 * 3
    assert once.memory.peak > once.memory.weights == 2 * once.shape.parameters
    scored = need_of("candidates", "stages.candidates.log_probabilities=true")
    assert scored.flops is not None and scored.flops == 2 * (once.flops or 0)
    spread = need_of("candidates", "compute.processes=4", "compute.zero=3")
    assert spread.processes == 4 and spread.hours == pytest.approx((once.hours or 0) / 4)
    assert spread.memory == once.memory  # each process holds the whole model
    report = need_of("report")
    assert report.tokens == 24 * report.longest * (3 + 1)  # three models, and the greedy baseline


def test_a_best_of_n_is_forecast_by_the_answers_that_its_reward_models_read(tiny_recipe: Path, tmp_path: Path) -> None:
    load_all()
    text = tiny_recipe.read_text(encoding="utf-8")
    stages = (
        "  drawn: {kind: sample, data: asks, models: [sft, dpo], n: 2, limit: 10}\n"
        "  choice: {kind: best_of_n, data: compared, reward: rm}\n"
        "  by_hand: {kind: best_of_n, data: written, reward: [rm, {function: gold.py:gold}]}\n"
        "  by_function: {kind: best_of_n, data: written, reward: {function: gold.py:gold}}\n"
    )
    asks = [{"role": "user", "content": "a" * 30}]
    answers = [{"text": "b" * 9}, {"text": "c" * 60}]  # with the prompt 39 and 90 characters
    rows = [{"prompt": asks, "candidates": answers}] * 4
    (tiny_recipe.parent / "written.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = "  compared: {artifact: drawn, file: candidates.jsonl}\n  written: {path: written.jsonl}\n"
    text = text.replace("compute:", f"{stages}compute:").replace("stages:\n", f"{sources}stages:\n", 1)
    tiny_recipe.write_text(text, encoding="utf-8")
    store = Store(tmp_path / "store")
    needs = {one.stage.spec.name: one for one in forecasts(make_plan(load(tiny_recipe), store), store)[0]}
    pending, read = needs["choice"], needs["by_hand"]
    assert "by_function" not in needs  # no model computes anything
    assert pending.tokens == needs["drawn"].tokens == 10 * needs["drawn"].longest * 4
    assert pending.flops == needs["drawn"].flops and pending.trained == 0  # one pass of the reward model each
    # Two turns of 5 tokens, and 3 characters a token: answers of 39 and of 90 characters.
    assert read.tokens == pytest.approx(4 * (39 + 90) / 3 + 8 * 2 * 5)
    assert read.longest == 90 // 3 + 2 * 5
    assert read.memory.peak > read.memory.weights == 4 * read.shape.parameters


def test_a_pipeline_shares_weights_gradients_and_optimizer_out_and_counts_as_one_process(planned: Any) -> None:
    needs = []
    for more in ((), ("stages.base.compute.processes=2", "stages.base.compute.pipeline_parallel=2")):
        made, store = planned(8192, *more)
        needs.append({need.stage.spec.name: need for need in forecasts(made, store)[0]}["base"])
    one, two = needs
    assert (one.micro_batch, two.micro_batch) == (4, 2)  # one for each part to work on
    assert two.memory.weights == one.memory.weights / 2  # embeddings on one, output layer on the other
    assert two.memory.optimizer == one.memory.optimizer / 2
    train = two.stage.spec.config.train
    waiting = 8 * train.batch_size * two.longest * two.shape.hidden
    assert two.memory.activations - waiting == one.memory.activations / 2


def test_the_checks_before_a_run_refuse_it(planned: Any) -> None:
    made, store = planned(250)
    with pytest.raises(PipelineError, match=r"needs about .* on each process in fp32 \("):
        check_plan(made, store)


def test_sequence_shards_of_a_row_divide_its_activations_and_logits(planned: Any) -> None:
    spread = [f"stages.long.compute.{word}=2" for word in ("processes", "zero", "sequence_parallel")]
    needs = []
    for more in ((), spread):
        made, store = planned(65536, *more, stage="long")
        needs.append({need.stage.spec.name: need for need in forecasts(made, store)[0]}["long"])
    whole, cut = needs
    assert (whole.micro_batch, cut.micro_batch) == (1, 1)
    assert cut.memory.activations == whole.memory.activations / 2
    assert cut.memory.logits == whole.memory.logits / 2


QUANTISED = {
    **{"model_type": "llama", "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8},
    **{"intermediate_size": 1536, "vocab_size": 1500, "max_position_embeddings": 512},
}
STORED = """
name: stored
data: {{demos: {{path: {demos}}}}}
stages:
  first: {{kind: sft, data: demos, model: ./kept, adapter: {{r: 8}}, train: {{batch_size: 1, max_steps: 1}}}}
  again: {{kind: sft, data: demos, model: first, adapter: {{r: 8}}, train: {{batch_size: 1, max_steps: 1}}}}
  whole: {{kind: merge, model: ./kept, adapters: [first]}}
  last: {{kind: sft, data: demos, model: whole, adapter: {{r: 8}}, train: {{batch_size: 1, max_steps: 1}}}}
"""


@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_that_is_kept_quantised_counts_so_until_it_is_merged(
    memory_recipe: Path, tmp_path: Path, bits: int
) -> None:
    load_all()
    (tmp_path / "kept").mkdir()
    written = {"quant_method": "bitsandbytes", f"load_in_{bits}bit": True}
    (tmp_path / "kept/config.json").write_text(json.dumps({**QUANTISED, "quantization_config": written}))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(STORED.format(demos=memory_recipe.parent / "demos.jsonl"))
    store = Store(tmp_path / "store")

    def need_of(mib: float) -> dict[str, Forecast]:
        hardware = f"compute.hardware={{memory_gib: {mib / 1024}, tflops: 100}}"
        made = make_plan(load(recipe, overrides=[hardware, "compute.precision=fp32"]), store)
        return {need.stage.spec.name: need for need in forecasts(made, store)[0]}

    needs = need_of(4096)
    shape = needs["first"].shape
    adapter = 4 * needs["first"].trained
    quantised = shape.linear * {4: 4.127 / 8, 8: 1}[bits] + 4 * (shape.parameters - shape.linear) + adapter
    assert needs["first"].memory.weights == needs["again"].memory.weights == pytest.approx(quantised)
    assert needs["last"].memory.weights == 4 * shape.parameters + adapter
    small = need_of(2)
    offered = [change.words for change in _changes(small["first"])]
    assert offered and not any("quantize" in words for words in offered)
    assert any("quantize" in change.words for change in _changes(small["last"]))


def test_offloaded_state_that_the_machine_has_no_room_for_is_refused(planned: Any, capsys: Any) -> None:
    """23 M weights: 16 bytes of each in the machine with ZeRO-2, 16 + 4 with ZeRO-3 in fp32, and 4 more with `all`."""
    spread = ["compute.precision=fp32", "stages.base.compute.zero=3", "stages.base.compute.offload=all"]

    def plan(host_mib: float | None) -> tuple[list[Problem], Forecast]:
        host = [] if host_mib is None else [f"host_gib: {host_mib / 1024}"]
        hardware = ", ".join(["memory_gib: 4", "tflops: 100", *host])
        made, store = planned(4096, *spread, f"compute.hardware={{{hardware}}}")
        [need] = [need for need in forecasts(made, store)[0] if need.stage.spec.name == "base"]
        print_forecasts([need], [])
        return [p for p in fitting_problems(made, store) if p.stage == "base"], need

    problems, need = plan(1024)
    assert problems == [] and need.host == 24 * need.trained
    assert f"keeps {need.host / 2**20:,.0f} MiB a process in the machine's memory of 1.0 GiB" in capsys.readouterr().out
    assert plan(None)[0] == []  # its size is not known
    [problem], _ = plan(need.host / 2**20 - 1)
    assert problem.found == f"compute.offload keeps about {need.host / 2**20:,.0f} MiB in the machine's memory"
    assert problem.remedy == "cheapest change that fits: compute.offload: optimizer"
    [problem], _ = plan(200)
    assert problem.remedy == "cheapest change that fits: compute.offload: none"
    assert "does not fit: base; cheapest change" in capsys.readouterr().out
