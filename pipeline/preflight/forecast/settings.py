"""Finds settings that a stage would reject only hours later: missing packages, unknown layers, no held-out rows.

Owns the walk over the pending stages of a plan. The rules for single settings are in the modules it imports. Imports no
torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pipeline.errors import Problem, agreeing
from pipeline.models.load.adapter_targets import layers_in, target_problems
from pipeline.models.load.kernels import ENGINE_KEYS, NAMES, has, install_vllm
from pipeline.plain_data import JsonView
from pipeline.plan import Plan, PlannedStage
from pipeline.preflight.forecast.machine import has_no_gpu
from pipeline.preflight.forecast.shapes import ModelShapes
from pipeline.recipe import StageSpec
from pipeline.stage import Data, StageConfig, kind_of
from pipeline.trainer_fields import TrainFields
from pipeline.training.packages import evaluation_problems, package_problems


def setting_problems(plan: Plan, shapes: ModelShapes) -> Iterator[Problem]:
    """Yield problems with the settings of every pending stage, and missing packages of broken stages too."""
    for stage in plan.pending:
        broken = plan.recipe.broken.get(stage.spec.name)
        words = dict(stage.spec.config) if broken is None else broken.words
        for problem in (*_missing(stage.spec, words), *_of_stage(plan, stage, shapes)):
            word = problem.found.split(" ")[0].split(":")[0]
            where = plan.recipe.where("stages", stage.spec.name, *word.split("."))
            yield replace(problem, where=where, stage=stage.spec.name)


def _missing(spec: StageSpec, words: JsonView) -> Iterator[Problem]:
    """Yield packages that a local stage needs and this machine lacks; other machines are not checked from here.

    Args:
        spec: spec of the stage.
        words: its configuration; the recipe's own text if the stage is broken.
    """
    if spec.compute.launcher != "local":
        return
    train, adapter = (words.get(name) for name in ("train", "adapter"))
    yield from package_problems(train if isinstance(train, Mapping | StageConfig) else None)
    quantize = adapter.get("quantize") if isinstance(adapter, Mapping) else getattr(adapter, "quantize", None)
    if quantize is not None and not has("bitsandbytes"):
        statement = f"adapter.quantize is {quantize}, and bitsandbytes is not installed"
        yield Problem(statement, "", "pip install 'trueup[quantize]'")
    for key in ENGINE_KEYS:
        if words.get(key) == "vllm" and not has("vllm"):
            yield Problem(f"{key} is vllm, and {NAMES['vllm']} is not installed", "", install_vllm(key))
    packages = kind_of(spec.kind).traits.packages
    if packages is not None and (missing := [name for name in packages.modules if not has(name)]):
        are = agreeing(len(missing), "is", "are")
        yield Problem(f"kind is {spec.kind}, and {', '.join(missing)} {are} not installed", "", packages.install)


def _of_stage(plan: Plan, stage: PlannedStage, shapes: ModelShapes) -> Iterator[Problem]:
    """Yield problems with a stage's `train` and `adapter` settings on its device, model and data."""
    config: Any = stage.spec.config
    check = kind_of(stage.spec.kind).traits.machine_check
    if check is not None and stage.spec.compute.launcher == "local" and stage.spec.name not in plan.recipe.broken:
        yield from check(config)
    train, adapter = getattr(config, "train", None), getattr(config, "adapter", None)
    compute, fields = stage.spec.compute, train.passthrough() if isinstance(train, TrainFields) else {}
    on_cpu = compute.device == "cpu" or (compute.launcher == "local" and compute.hardware is None and has_no_gpu())
    if fields.get("activation_offloading") and on_cpu:
        statement = "train.activation_offloading is true, and there is no GPU to move activations from"
        yield Problem(statement, "", "leave it out")
    saves = fields.get("save_strategy", "no") != "no" and not fields.get("load_best_model_at_end")
    if saves and compute.tensor_parallel > 1:
        statement = f"train.save_strategy is {fields['save_strategy']} with compute.tensor_parallel"
        yield Problem(statement, "", "leave it out: checkpoints are written by the clock (compute.checkpoint_every_s)")
    if fields.get("sync_ref_model") and (beside := _sync_ref_obstacle(adapter, compute)):
        statement = f"train.sync_ref_model is true with {beside}"
        yield Problem(statement, "a reference that each process holds whole", "leave one of the two out")
    if isinstance(train, TrainFields) and (source := _source_without_held_out(plan, stage.spec)):
        yield from evaluation_problems(train, source)
    if adapter is not None:
        items = stage.inputs.get("model", [])
        folder = items[0].artifact if items else None
        layers = layers_in(folder) if folder is not None else frozenset()
        yield from target_problems(adapter, stage.spec.kind, layers, shapes.config_of(stage) or {})
    coef, model = fields.get("router_aux_loss_coef"), shapes.config_of(stage)
    if coef and model and not any("expert" in key or "router" in key for key in model):
        statement = f"train.router_aux_loss_coef is {coef:g}, and the model has no experts"
        yield Problem(statement, "", "leave it out")


def _sync_ref_obstacle(adapter: Any, compute: Any) -> str:
    """Return the setting with which `sync_ref_model` cannot work; empty if there is none.

    With an adapter there is no separate reference model; a sharded reference cannot be checkpointed.
    """
    if adapter is not None:
        return "adapter"  # the reference is the policy with the adapter disabled
    sharding = {"compute.zero: 3": compute.zero == 3, "compute.fsdp": compute.fsdp}
    sharding["compute.tensor_parallel"] = compute.tensor_parallel > 1
    return next((word for word, is_asked in sharding.items() if is_asked), "")


def _source_without_held_out(plan: Plan, spec: StageSpec) -> str:
    """Return the name of a stage's training source if that source holds out no rows; empty otherwise."""
    traits, fields = kind_of(spec.kind).traits, type(spec.config).markers(Data)
    names = [getattr(spec.config, field) for field in fields if field == "data"]
    tests = [getattr(spec.config, field) for field in fields if traits.reading(field).is_test]
    if any(tests):  # these rows are scored after training, not during it
        return str(next(filter(None, tests)))
    return next((name for name in names if name in plan.recipe.data and not plan.recipe.data[name].held_out), "")
