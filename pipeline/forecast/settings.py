"""Settings that a stage would refuse hours later: no such package, no layer of that name, no held-out rows.

Owns the walk over the pending stages of a plan; what is wrong with one of them, the modules below say. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pipeline.errors import Problem
from pipeline.forecast.shapes import ModelShapes
from pipeline.models.adapter_targets import layers_in, target_problems
from pipeline.plan import Plan, PlannedStage
from pipeline.stage import Data
from pipeline.trainer_fields import TrainFields
from pipeline.training.packages import evaluation_problems, package_problems


def setting_problems(plan: Plan, shapes: ModelShapes) -> Iterator[Problem]:
    """Yield what is wrong with the settings of every pending stage."""
    for stage in plan.pending:
        for problem in _of_stage(plan, stage, shapes):
            word = problem.found.split(" ")[0].split(":")[0]
            where = plan.recipe.where("stages", stage.spec.name, *word.split("."))
            yield replace(problem, where=where, stage=stage.spec.name)


def _of_stage(plan: Plan, stage: PlannedStage, shapes: ModelShapes) -> Iterator[Problem]:
    config: Any = stage.spec.config
    train, adapter = getattr(config, "train", None), getattr(config, "adapter", None)
    if stage.spec.compute.launcher == "local":  # what another machine has is for it to say
        yield from package_problems(train)
    if isinstance(train, TrainFields) and (source := _held_nothing_out(plan, config)):
        yield from evaluation_problems(train, source)
    if adapter is not None:
        items = stage.inputs.get("model", [])
        folder = items[0].artifact if items else None
        layers = layers_in(folder) if folder is not None else frozenset()
        yield from target_problems(adapter, stage.spec.kind, layers, shapes.config_of(stage) or {})
    coef = train.passthrough().get("router_aux_loss_coef") if isinstance(train, TrainFields) else None
    if coef and (fields := shapes.config_of(stage)) and not any("expert" in key or "router" in key for key in fields):
        found = f"train.router_aux_loss_coef is {coef:g}, and the model has no experts"
        yield Problem(found, "", "leave it out")


def _held_nothing_out(plan: Plan, config: Any) -> str:
    """Return the data source that a stage learns from where it holds no rows out, else nothing."""
    names = [getattr(config, field) for field in type(config).markers(Data) if field == "data"]
    if getattr(config, "test", None):  # a reward model is measured on them at the end, not while it trains
        return str(config.test)
    return next((name for name in names if name in plan.recipe.data and not plan.recipe.data[name].held_out), "")
