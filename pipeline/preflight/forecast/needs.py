"""Forecasts all pending stages of a plan: finds the model, the rows and the reward models of each."""

from __future__ import annotations

from pipeline.artifacts import Store
from pipeline.plan import Plan, PlannedStage
from pipeline.preflight.forecast.rows import RowLengths
from pipeline.preflight.forecast.shapes import ModelShapes
from pipeline.preflight.forecast.stages import Facts, Forecast
from pipeline.stage import kind_of


def forecasts(plan: Plan, store: Store) -> tuple[list[Forecast], list[str]]:
    """Return a forecast for each pending stage with a model, and notes on what is not known.

    Args:
        plan: plan of a recipe.
        store: caches row lengths and model shapes.
    """
    shapes, rows = ModelShapes(plan, store.root / ".cache"), RowLengths(plan, store.root / ".cache")
    needs: dict[str, Forecast] = {}
    for stage in plan.pending:
        workload = kind_of(stage.spec.kind).workload
        if workload is None:
            continue
        shape = shapes.of_stage(stage)
        items = [item for field in ("reward", "watch") for item in stage.inputs.get(field, [])]
        others = [shapes.of_reward(item) for item in items]
        if workload.over == "candidates" and not items:
            others = [shapes.held_by(stage)] if stage.data else []
        known = [other for other in others if other is not None]
        if workload.over == "candidates":  # it has no model but these
            shape = max((one for other in known for one in other.models), key=lambda one: one.parameters, default=None)
        if shape is None:
            continue
        facts = Facts(
            stage,
            shape,
            rows.of(stage),
            tuple(known),
            stored=shapes.quantization_of(stage),
            before=needs.get(_sampled_by(plan, stage)),
        )
        adapter = getattr(stage.spec.config, "adapter", None)
        needs[stage.spec.name] = facts.forecast(stage.spec.effective_compute, adapter)
    return list(needs.values()), list(dict.fromkeys(shapes.notes))


def _sampled_by(plan: Plan, stage: PlannedStage) -> str:
    """Return the name of the stage whose artifact a stage reads as its data; empty if it reads something else."""
    item = stage.data.get("data")
    source = plan.recipe.data.get(item.source_name) if item is not None else None
    return str(source.artifact or "").partition("@")[0] if source is not None else ""
