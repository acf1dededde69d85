"""A forecast follows the traits of a kind, not its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.artifacts import Store
from pipeline.kind.traits import ComputeSupport, Workload
from pipeline.plan import make_plan
from pipeline.preflight.forecast import Forecast, forecasts
from pipeline.recipe import load
from pipeline.stage import KINDS, Kind

SETS = ("compute.device=cpu", "compute.precision=fp32", "compute.activation_checkpointing=false")


@pytest.fixture
def forecast_of(memory_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Forecast]:
    """Forecast the pretraining of the recipe as if its kind had another workload."""

    def forecast(workload: Workload, *sets: str, compute: ComputeSupport | None = None) -> Forecast:
        kind: Kind = KINDS["pretrain"]
        support = compute or kind.traits.compute
        changed = replace(kind, traits=replace(kind.traits, workload=workload, compute=support))
        with monkeypatch.context() as patch:
            patch.setitem(KINDS, "pretrain", changed)
            plan = make_plan(load(memory_recipe, overrides=[*SETS, *sets]), Store(tmp_path / "store"), until="base")
            [need] = [one for one in forecasts(plan, Store(tmp_path / "store"))[0] if one.stage.spec.name == "base"]
            return need

    return forecast


def test_a_reference_model_is_held_in_fp32_beside_the_trained_one(forecast_of: Callable[..., Forecast]) -> None:
    alone, beside = forecast_of(Workload()), forecast_of(Workload(reference="always"))
    assert alone.memory.others == 0
    assert beside.memory.others == 4 * beside.shape.parameters  # four bytes a weight
    assert beside.memory.peak - alone.memory.peak == pytest.approx(beside.memory.others)
    without_beta = forecast_of(Workload(reference="with_beta"))  # pretraining has no `beta`
    assert without_beta.memory == alone.memory


def test_the_output_layer_decides_the_logits(forecast_of: Callable[..., Forecast]) -> None:
    module, weight, none = (forecast_of(Workload(head=head)) for head in ("module", "weight", "none"))
    # A loss that reads the head's weight holds its fp32 gradient beside a tile of logits.
    assert weight.memory.logits > 4 * weight.shape.hidden * weight.shape.vocab
    assert weight.memory.logits != module.memory.logits > none.memory.logits == 0


def test_both_sides_of_a_pair_pass_together(forecast_of: Callable[..., Forecast]) -> None:
    # The texts are longer than `max_length`, so each of the two sequences has that many tokens.
    rows = ("stages.base.compute.micro_batch=2", "stages.base.train.max_length=8")
    single, paired = forecast_of(Workload(), *rows), forecast_of(Workload(sequences_per_row=2), *rows)
    assert (single.longest, paired.longest) == (8, 16) and single.micro_batch == paired.micro_batch == 2
    assert paired.memory.logits == 2 * single.memory.logits > 0


def test_rows_of_a_pass_come_from_the_setting_a_kind_names(forecast_of: Callable[..., Forecast]) -> None:
    own = ComputeSupport(rows_per_pass="train.batch_size")
    sets = ("compute.micro_batch=1", "stages.base.train.batch_size=8")
    assert forecast_of(Workload(), *sets).micro_batch == 1
    assert forecast_of(Workload(), *sets, compute=own).micro_batch == 8


def test_a_kind_without_training_stays_in_fp32_on_a_cpu() -> None:
    assert KINDS["evaluate"].workload is not None and not KINDS["evaluate"].trains
    assert KINDS["sft"].trains and KINDS["collect"].workload is None and not KINDS["merge"].trains
