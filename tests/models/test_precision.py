"""The number format of a CPU: measured, remembered, and left alone for narrow models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.models.cpu import bf16_speed, precision
from pipeline.models.cpu.bf16_speed import SMALLEST_WIDTH, WORTH, Speed, has_bf16, possible_formats, recall, remember
from pipeline.models.cpu.precision import fastest_precision, measure

X86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx512f {}\nbugs\t\t: bf16\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\n"


@pytest.fixture
def with_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that has instructions for bf16, whatever this one has."""
    monkeypatch.setattr(precision, "has_bf16", lambda: True)
    monkeypatch.setattr(bf16_speed, "has_bf16", lambda: True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86.format("avx512_bf16"), True),
        (X86.format("amx_bf16 amx_tile"), True),
        (X86.format("avx512_bf16x"), False),  # a word, not a part of one
        (ARM.format("bf16 i8mm"), True),
        (ARM.format("asimdhp"), False),
        ("processor\t: 0\n", None),  # tells nothing
    ],
)
def test_instructions_are_read_from_the_processors_flags(tmp_path: Path, text: str, expected: bool | None) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert has_bf16(tmp_path / "cpuinfo") is expected
    assert has_bf16(tmp_path / "missing") is None


@pytest.mark.usefixtures("with_instructions")
def test_it_measures_once_and_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (precision, bf16_speed):
        monkeypatch.setattr(module, "SMALLEST_WIDTH", 64)  # emulated bf16 takes seconds at 512
    cache = tmp_path / "home" / "precision.json"
    picked = fastest_precision(64, cache)
    [(key, kept)] = json.loads(cache.read_text()).items()
    assert key.endswith("width 64")
    assert picked == (Speed(**kept).faster, Speed(**kept).words(64))
    # what is remembered is what counts: 12 ms against 10 are 1.2 times, against 10.1 fewer
    for fp32, bf16, expected in ((12.0, 10.0, "bf16"), (12.0, 10.1, "fp32")):
        cache.write_text(json.dumps({key: {"fp32_ms": fp32, "bf16_ms": bf16}}))
        assert fastest_precision(64, cache).precision == expected
        assert possible_formats(64, cache) == (expected,)


@pytest.mark.usefixtures("with_instructions")
def test_what_instructions_are_kept_from_torch_is_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "precision.json"
    for name in bf16_speed._LIMITS:
        monkeypatch.delenv(name, raising=False)
    remember(1024, 2, Speed(20.0, 5.0), cache)
    assert recall(1024, 2, cache) == Speed(20.0, 5.0)
    assert recall(1024, 1, cache) is recall(512, 2, cache) is None
    remember(8192, 2, Speed(20.0, 4.0), cache)
    assert recall(2048, 2, cache) == Speed(20.0, 4.0)  # the widest that is measured
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert recall(1024, 2, cache) is None
    assert possible_formats(1024, cache) == ("fp32", "bf16")


def test_the_first_to_measure_is_who_counts(tmp_path: Path) -> None:
    cache = tmp_path / "precision.json"
    assert remember(1024, 2, Speed(12.1, 10.0), cache).faster == "bf16"
    assert remember(1024, 2, Speed(11.9, 10.0), cache).faster == "bf16"  # would be fp32 by itself


@pytest.mark.usefixtures("with_instructions")
def test_a_forecast_knows_one_format_where_all_measurements_agree(tmp_path: Path) -> None:
    cache = tmp_path / "precision.json"
    assert possible_formats(1024, cache) == ("fp32", "bf16")  # before any
    remember(1024, 1, Speed(20.0, 10.0), cache)
    remember(1024, 10, Speed(20.0, 10.0), cache)
    remember(2048, 1, Speed(10.0, 20.0), cache)
    assert possible_formats(1024, cache) == ("bf16",)
    remember(1024, 2, Speed(10.0, 20.0), cache)
    assert possible_formats(1024, cache) == ("fp32", "bf16")
    assert possible_formats(SMALLEST_WIDTH - 1, cache) == ("fp32",)


def test_a_processor_without_instructions_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda: False)
    monkeypatch.setattr(bf16_speed, "has_bf16", lambda: False)
    cache = tmp_path / "precision.json"
    assert fastest_precision(4096, cache) == ("fp32", bf16_speed.NO_INSTRUCTIONS)
    assert possible_formats(4096, cache) == ("fp32",)
    assert not cache.exists()


def test_a_narrow_model_is_not_measured(tmp_path: Path) -> None:
    cache = tmp_path / "precision.json"
    assert fastest_precision(SMALLEST_WIDTH - 1, cache).precision == "fp32"
    assert not cache.exists()


def test_a_user_without_a_name_and_a_home_has_a_place_too(tmp_path: Path) -> None:
    code = (
        "import os; from pipeline.models.cpu import bf16_speed; os.environ.pop('HOME', None); os.setuid(4242);"
        "print(bf16_speed.cache_file())"
    )
    if os.geteuid() != 0:
        pytest.skip("only root can become a user without a name")
    environment = {**os.environ, "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": ""}
    line = [sys.executable, "-c", code]
    ended = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    assert Path(ended.stdout.strip()).name == "precision.json"
    assert "~" not in ended.stdout


KEY = bf16_speed._key(1024, 1)


@pytest.mark.parametrize(
    "text", ["", "[1]", "no json", *(json.dumps({KEY: value}) for value in (1.5, None, {"fp32_ms": 0, "bf16_ms": 0}))]
)
def test_a_damaged_memory_is_measured_again(tmp_path: Path, text: str) -> None:
    cache = tmp_path / "precision.json"
    cache.write_text(text)
    assert recall(1024, 1, cache) is None
    assert remember(1024, 1, Speed(3.0, 1.0), cache) == recall(1024, 1, cache) == Speed(3.0, 1.0)


def test_the_fastest_of_alternating_trials_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 takes 4 ms and bf16 1 ms; another process makes every trial but one of each five times as long."""
    seconds = {False: 0.004, True: 0.001}
    made: list[bool] = []

    def trial(inputs: torch.Tensor, weight: torch.Tensor, lower: bool) -> float:
        made.append(lower)
        number = len(made) // 2
        spared = number == (4 if lower else 5)
        return seconds[lower] * (1 if spared else 5)

    monkeypatch.setattr(precision, "_seconds", trial)
    speed = measure(64)
    assert speed == Speed(4.0, 1.0)
    assert made == [False, True] * (len(made) // 2)
    assert len(made) >= 2 * (3 + precision._FEWEST)
    assert WORTH < speed.ratio == 4


def test_a_processor_that_emulates_bf16_is_seen_from_a_few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a kernel of its own a product in bf16 takes 40 times as long, and all trials together minutes."""
    token_counts = []

    def trial(inputs: torch.Tensor, weight: torch.Tensor, lower: bool) -> float:
        token_counts.append(len(inputs))
        return 0.04 if lower else 0.001

    monkeypatch.setattr(precision, "_seconds", trial)
    assert measure(64) == Speed(1.0, 40.0)
    assert set(token_counts) == {precision._FEW_TOKENS}
    assert len(token_counts) == 2 * (precision._FIRST + precision._SECOND_LOOK)


def test_a_busy_moment_does_not_look_like_emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 takes half the time, but another process makes its first three trials twenty times as long."""
    made: list[bool] = []

    def trial(inputs: torch.Tensor, weight: torch.Tensor, lower: bool) -> float:
        made.append(lower)
        return 0.001 * (20 if sum(made) <= 3 else 1) if lower else 0.002

    monkeypatch.setattr(precision, "_seconds", trial)
    assert measure(64) == Speed(2.0, 1.0)


def test_both_formats_are_timed() -> None:
    speed = measure(64)
    assert speed.fp32_ms > 0 and speed.bf16_ms > 0


def test_measuring_takes_none_of_a_stages_random_numbers() -> None:
    """Else the run that measures and the next one, which remembers, would begin with other adapters."""
    before = torch.get_rng_state()
    measure(8)
    assert torch.equal(torch.get_rng_state(), before)
