"""A forecast names and counts the number format that will run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Store
from pipeline.cli.display.forecasts import forecast_data, print_forecasts
from pipeline.models.cpu import bf16_speed
from pipeline.models.cpu.bf16_speed import Speed, remember
from pipeline.plan import make_plan
from pipeline.preflight.forecast import Forecast, forecasts
from pipeline.recipe import load
from pipeline.stages import load_all


@pytest.fixture(autouse=True)
def own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that has instructions for bf16 and was not measured yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(bf16_speed, "has_bf16", lambda: True)


@pytest.fixture
def need_of(memory_recipe: Path, tmp_path: Path) -> Any:
    """Forecast a stage of the recipe, whose models are 512 wide, on this machine's CPU."""
    load_all()

    def forecast(*sets: str, stage: str = "base") -> Forecast:
        store = Store(tmp_path / "store")
        plan = make_plan(load(memory_recipe, overrides=["compute.device=cpu", *sets]), store, until=stage)
        return {need.stage.spec.name: need for need in forecasts(plan, store)[0]}[stage]

    return forecast


AUTO = "compute.precision=auto"


@pytest.mark.parametrize(
    ("sets", "formats"),
    [
        (("compute.precision=fp32",), ("fp32",)),
        (("compute.precision=bf16",), ("bf16",)),
        ((AUTO,), ("fp32", "bf16")),
        ((AUTO, "stages.base.compute.zero=1"), ("fp32",)),  # transformers has no bf16 with DeepSpeed on a CPU
        ((AUTO, "compute.hardware=h100-80gb"), ("bf16",)),
        ((AUTO, "compute.hardware={memory_gib: 8}"), ("fp32", "bf16")),  # another CPU than this
        ((AUTO, "stages.base.model.hidden_size=256"), ("fp32",)),  # too narrow
    ],
)
def test_the_format_is_the_one_that_will_run(need_of: Any, sets: tuple[str, ...], formats: tuple[str, ...]) -> None:
    need = need_of(*sets)
    assert need.formats == formats
    assert forecast_data(need)["formats"] == list(formats)


@pytest.mark.parametrize(("bf16_ms", "expected"), [(1.0, "bf16"), (9.0, "fp32")])
def test_what_was_measured_here_is_what_is_counted(need_of: Any, bf16_ms: float, expected: str) -> None:
    remember(512, 1, Speed(3.0, bf16_ms))
    need, asked = need_of(AUTO), need_of(f"compute.precision={expected}")
    assert need.formats == (expected,)
    assert need.memory == asked.memory


def test_before_that_the_larger_one_is(need_of: Any, capsys: Any) -> None:
    peaks = [need_of(f"compute.precision={word}").memory.peak for word in ("fp32", "bf16")]
    need = need_of(AUTO)
    assert peaks[0] != peaks[1]
    assert need.memory.peak == max(peaks)
    print_forecasts([need], [])
    out = capsys.readouterr().out
    said = "fp32/bf16: auto is measured when the stage runs; memory is that of the format with more"
    assert said in " ".join(out.split())
    assert out.split("base", 1)[1].split()[2] == "fp32/bf16"


def test_autocasts_copies_of_the_weights_are_counted(need_of: Any) -> None:
    """2 bytes of each linear weight, for autograd keeps them from forward to backward, and of the head's."""
    plain, half = (need_of(f"compute.precision={word}") for word in ("fp32", "bf16"))
    shape = plain.shape
    assert half.memory.weights - plain.memory.weights == 2 * shape.linear
    tokens = 4 * 64  # a batch of four rows
    assert half.memory.logits - plain.memory.logits == 2 * shape.vocab * (tokens + shape.hidden)
    assert half.memory.activations < plain.memory.activations
