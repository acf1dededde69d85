"""Checks of adapters: quantised weights they are trained on, and the weights they are folded into. No torch.

Owns the walk over the stages with such inputs. The rules for quantised files are in `models/load/quantized_files.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pipeline.errors import Problem
from pipeline.models.load.quantized_files import layout_problem, quantization_of_files, quantized_files_problem
from pipeline.plain_data import JsonObject
from pipeline.plan import Plan, PlannedStage
from pipeline.stage import kind_of


def quantize_problems(plan: Plan) -> Iterator[Problem]:
    """Yield problems of quantised weights: no adapter, or an unsupported parallel layout."""
    for stage in plan.pending:
        compute = stage.spec.compute
        takes_adapter = "adapter" in type(stage.spec.config).model_fields
        adapter = getattr(stage.spec.config, "adapter", None)
        for field in ("model", "init") if kind_of(stage.spec.kind).parallel else ():
            for item in stage.inputs.get(field, []):
                stored = quantization_of_files(json_of(item.artifact, "config.json"))
                problem = quantized_files_problem(item.ref, stored, adapter, takes_adapter=takes_adapter)
                if stored and problem is None:
                    problem = layout_problem(f"`{item.ref}` is kept quantised ({stored})", compute)
                if problem is not None:
                    where = plan.recipe.where("stages", stage.spec.name, field)
                    yield replace(problem, where=where, stage=stage.spec.name)
        if getattr(adapter, "quantize", None) is None:
            continue
        where = plan.recipe.where("stages", stage.spec.name, "adapter", "quantize")
        problem = layout_problem(f"adapter.quantize is {getattr(adapter, 'quantize', None)}", compute)
        if problem is not None:
            yield replace(problem, where=where, stage=stage.spec.name)


def merge_problems(plan: Plan) -> Iterator[Problem]:
    """Yield inputs that a merge cannot fold in: no adapter, a reward model's, or one trained on other weights."""
    stages = {stage.spec.name: stage for stage in plan.stages}
    for stage in (stage for stage in plan.pending if kind_of(stage.spec.kind).traits.folds_adapters):
        below = stage.inputs["model"][0]
        if "SequenceClassification" in str(json_of(below.artifact, "config.json").get("architectures")):
            yield _unmergeable(plan, stage, "model", 0, f"`{below.ref}` is a reward model", "a language model")
            continue
        for index, item in enumerate(stage.inputs["adapters"]):
            made_by = stages.get(item.ref)
            if made_by is not None:
                has_no_adapter = getattr(made_by.spec.config, "adapter", None) is None
                parents = made_by.inputs.get("model", [])
                parent = parents[0].fingerprint if parents else ""
            else:
                manifest = json_of(item.artifact, "manifest.json")
                settings = manifest.get("config", {}).get("config", {})
                parent = manifest.get("lineage", {}).get("parent")
                has_no_adapter = bool(manifest) and settings.get("adapter") is None
                if json_of(item.artifact, "adapter_config.json").get("task_type") == "SEQ_CLS":
                    statement = f"`{item.ref}` is the adapter of a reward model"
                    yield _unmergeable(plan, stage, "adapters", index, statement, "that of a language model")
            if has_no_adapter:
                statement = f"`{item.ref}` holds no adapter: all its weights were trained"
                yield _unmergeable(plan, stage, "adapters", index, statement, "a stage trained with `adapter:`")
            elif parent and parent != below.fingerprint:
                statement = f"`{item.ref}` was not trained on `{below.ref}`"
                expected = "adapters in the order they were trained, each on the one before, the first on `model`"
                yield _unmergeable(plan, stage, "adapters", index, statement, expected)
                break
            below = item


def _unmergeable(plan: Plan, stage: PlannedStage, field: str, index: int, statement: str, expected: str) -> Problem:
    where = plan.recipe.where("stages", stage.spec.name, field, index)
    return Problem(f"{field}: {statement}", expected, "", where, stage.spec.name)


def json_of(folder: Path | None, name: str) -> JsonObject:
    """Return a JSON file of a folder; empty if it is missing, unreadable, or not an object."""
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8")) if folder is not None else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
