"""Settings that a stage would refuse hours later: no such package, no layer of that name, no held-out rows.

Owns the walk over the pending stages of a plan; what is wrong with one of them, the modules below say. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pipeline.errors import Problem
from pipeline.forecast.machine import has_no_gpu
from pipeline.forecast.shapes import ModelShapes
from pipeline.models.adapter_targets import layers_in, target_problems
from pipeline.models.kernels import INSTALL, NAMES, has
from pipeline.plan import Plan, PlannedStage
from pipeline.recipe import StageSpec
from pipeline.stage import Data, StageConfig
from pipeline.trainer_fields import TrainFields
from pipeline.training.packages import evaluation_problems, package_problems

LEDGER = ("sqlalchemy",)
"""What a stage that reads people's labels needs."""


def setting_problems(plan: Plan, shapes: ModelShapes) -> Iterator[Problem]:
    """Yield what is wrong with the settings of every pending stage, and what is missing for those that are broken."""
    for stage in plan.pending:
        broken = plan.recipe.broken.get(stage.spec.name)
        words = dict(stage.spec.config) if broken is None else broken.words
        for problem in (*_missing(stage.spec, words), *_of_stage(plan, stage, shapes)):
            word = problem.found.split(" ")[0].split(":")[0]
            where = plan.recipe.where("stages", stage.spec.name, *word.split("."))
            yield replace(problem, where=where, stage=stage.spec.name)


def _missing(spec: StageSpec, words: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield packages that a stage asks for and this machine lacks; what another machine has is for it to say.

    Args:
        spec: of the stage.
        words: its configuration; of a stage that has problems, as the recipe has it.
    """
    if spec.compute.launcher != "local":
        return
    train, adapter = (words.get(name) for name in ("train", "adapter"))
    yield from package_problems(train if isinstance(train, Mapping | StageConfig) else None)
    quantize = adapter.get("quantize") if isinstance(adapter, Mapping) else getattr(adapter, "quantize", None)
    if quantize is not None and not has("bitsandbytes"):
        found = f"adapter.quantize is {quantize}, and bitsandbytes is not installed"
        yield Problem(found, "", "pip install 'trueup[quantize]'")
    if words.get("rollout_engine") == "vllm" and not has("vllm"):
        yield Problem(f"rollout_engine is vllm, and {NAMES['vllm']} is not installed", "", INSTALL["vllm"])
    if spec.kind == "collect" and (missing := [name for name in LEDGER if not has(name)]):
        found = f"kind is collect, and {', '.join(missing)} is not installed"
        yield Problem(found, "", "pip install 'trueup[collect]'")


def _of_stage(plan: Plan, stage: PlannedStage, shapes: ModelShapes) -> Iterator[Problem]:
    config: Any = stage.spec.config
    train, adapter = getattr(config, "train", None), getattr(config, "adapter", None)
    compute, fields = stage.spec.compute, train.passthrough() if isinstance(train, TrainFields) else {}
    on_cpu = compute.device == "cpu" or (compute.launcher == "local" and compute.hardware is None and has_no_gpu())
    if fields.get("activation_offloading") and on_cpu:
        found = "train.activation_offloading is true, and there is no GPU to move activations from"
        yield Problem(found, "", "leave it out")
    saves = fields.get("save_strategy", "no") != "no" and not fields.get("load_best_model_at_end")
    if saves and compute.tensor_parallel > 1:
        found = f"train.save_strategy is {fields['save_strategy']} with compute.tensor_parallel"
        yield Problem(found, "", "leave it out: checkpoints are written by the clock (compute.checkpoint_every_s)")
    if fields.get("sync_ref_model") and (beside := _keeps_no_reference(adapter, compute)):
        found = f"train.sync_ref_model is true with {beside}"
        yield Problem(found, "a reference that each process holds whole", "leave one of the two out")
    if isinstance(train, TrainFields) and (source := _held_nothing_out(plan, config)):
        yield from evaluation_problems(train, source)
    if adapter is not None:
        items = stage.inputs.get("model", [])
        folder = items[0].artifact if items else None
        layers = layers_in(folder) if folder is not None else frozenset()
        yield from target_problems(adapter, stage.spec.kind, layers, shapes.config_of(stage) or {})
    coef, model = fields.get("router_aux_loss_coef"), shapes.config_of(stage)
    if coef and model and not any("expert" in key or "router" in key for key in model):
        found = f"train.router_aux_loss_coef is {coef:g}, and the model has no experts"
        yield Problem(found, "", "leave it out")


def _keeps_no_reference(adapter: Any, compute: Any) -> str:
    """Return the word beside which there is no reference to follow the policy, or one that no checkpoint can keep."""
    if adapter is not None:
        return "adapter"  # the reference is the model without it
    in_parts = {"compute.zero: 3": compute.zero == 3, "compute.fsdp": compute.fsdp}
    in_parts["compute.tensor_parallel"] = compute.tensor_parallel > 1
    return next((word for word, is_asked in in_parts.items() if is_asked), "")


def _held_nothing_out(plan: Plan, config: Any) -> str:
    """Return the data source that a stage learns from where it holds no rows out, else nothing."""
    names = [getattr(config, field) for field in type(config).markers(Data) if field == "data"]
    if getattr(config, "test", None):  # a reward model is measured on them at the end, not while it trains
        return str(config.test)
    return next((name for name in names if name in plan.recipe.data and not plan.recipe.data[name].held_out), "")
