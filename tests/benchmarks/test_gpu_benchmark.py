"""The GPU benchmark's arithmetic by hand, and every side of it gone through on a CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> Any:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_flops_are_palms(gpu: Any) -> None:
    # 6 × 1000 for the weights; attention 12 × 2 layers × 8 units × 16 tokens = 3072.
    assert gpu.flops_per_token(1000, 2, 8, 16) == 9072
    # 50 tokens/s × 9072 FLOPs = 453,600 of 989.4e12
    side = {"card": "NVIDIA H100 80GB HBM3", "parameters": 1000, "layers": 2, "hidden": 8, "sequence": 16}
    assert gpu.mfu({**side, "tokens_per_s": 50.0}) == pytest.approx(453_600 / 989.4e12)
    assert gpu.mfu({**side, "card": "cpu", "tokens_per_s": 50.0}) is None


@pytest.mark.parametrize(
    ("card", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Tesla T4", None),
    ],
)
def test_a_card_is_known_by_the_name_cuda_gives_it(gpu: Any, card: str, peak: float | None) -> None:
    assert gpu.peak_tflops(card) == peak


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options], env=environment, capture_output=True, text=True, check=False
    )


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    ended = _run()
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == ["no CUDA device: run this on a GPU, or --smoke on a CPU"]


def test_a_side_that_finds_no_time_is_told_and_the_run_fails() -> None:
    ended = _run("--smoke", "--only", "pretrain", "--minutes", "0")
    assert ended.returncode == 1
    assert json.loads(ended.stdout.splitlines()[0]) == {"side": "pretrain ours", "failed": "no time left"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(("sft",), id="some"),  # of ours and of trl's
        pytest.param(("pretrain", "sft", "sft_packed", "dpo", "ppo"), id="all", marks=pytest.mark.whole),
    ],
)
def test_sides_run_on_a_cpu(kinds: tuple[str, ...]) -> None:
    ended = _run("--smoke", "--only", ",".join(kinds), "--minutes", "120")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    sides = {line["side"]: line for line in lines if "side" in line}
    ours, peers = set(kinds), {"sft", "dpo"} & set(kinds)
    assert set(sides) == {f"{kind} ours" for kind in ours} | {f"{kind} trl" for kind in peers}
    # 512 words × 64, tied; per layer 4 × 64² + 3 × 64 × 176 + 2 norms; a last norm
    weights = 512 * 64 + 2 * (4 * 64**2 + 3 * 64 * 176 + 2 * 64) + 64
    assert {line["parameters"] for line in sides.values()} == {weights}
    assert all(line["tokens_per_s"] > 0 for name, line in sides.items() if not name.startswith("ppo"))
    assert sides["sft ours"]["sequence"] == sides["sft trl"]["sequence"]  # the same rows
    for ppo in (line for name, line in sides.items() if name.startswith("ppo")):
        assert ppo["step_s"] == pytest.approx(ppo["rollout_s"] + ppo["score_s"] + ppo["update_s"], abs=1e-3)
    figures = {line["figure"]: line for line in lines if "figure" in line}
    shares = {"pretrain_mfu", "sft_mfu", "sft_ratio", "dpo_mfu", "dpo_ratio", "ppo_rollout_share"}
    expected = {name for name in shares if name.partition("_")[0] in kinds} | {"minutes"}
    assert set(figures) == expected
    best = max(sides[f"{name} ours"]["tokens_per_s"] for name in ("sft", "sft_packed") if name in kinds)
    assert figures["sft_ratio"]["value"] == pytest.approx(best / sides["sft trl"]["tokens_per_s"], rel=1e-3)
