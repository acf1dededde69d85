"""What the manifest of a stage's artifact says about the run that made it.

Owns the fields that a run fills. Knows nothing of those that the store sets, nor of how a stage runs.
"""

from __future__ import annotations

from pipeline.artifacts.manifest import DataRecord, InputRecord, ManifestFields
from pipeline.launch.job import Job, Outcome
from pipeline.machine.environment import environment
from pipeline.plan import Plan, PlannedInput, PlannedStage
from pipeline.stage import StageResult, kind_of


def manifest_fields(
    plan: Plan, planned: PlannedStage, job: Job, outcome: Outcome, result: StageResult
) -> ManifestFields:
    """Return what a run knows of an artifact.

    Args:
        plan: the plan of the run.
        planned: the stage that made the artifact.
        job: the stage's job.
        outcome: how its processes ended, and what they measured.
        result: the result that the stage returned.
    """
    spec = planned.spec
    kind = kind_of(spec.kind)
    trained_s = result.trainer_seconds
    return {
        "kind": spec.kind,
        "kind_version": kind.version,
        "makes": kind.makes,
        "recipe": {"name": plan.recipe.name, "file": plan.recipe.file.name, "resolved": plan.recipe.resolved},
        "config": planned.payload,
        "seed": spec.seed,
        "runtime": {
            **spec.effective_compute.model_dump(mode="json"),
            **({"ran": outcome.runtime_report} if outcome.runtime_report else {}),
        },
        "inputs": [
            _input_record(item, job.inputs[item.field][index].manifest.get("version"))
            for items in planned.inputs.values()
            for index, item in enumerate(items)
        ],
        "data": {
            name: DataRecord(
                source=item.source_name,
                digest=item.digest,
                rows=item.rows,
                rejected=outcome.rejected.get(item.source_name, 0),
                outside=outcome.outside.get(item.source_name, 0),
                where=_where(plan, item.source_name),
                artifact=_input_record(item.input, None) if item.input is not None else None,
            )
            for name, item in planned.data.items()
        },
        "metrics": dict(result.metrics),
        "best": dict(result.best),
        "rows": dict(result.rows),
        "tokens": result.tokens,
        "seconds": round(outcome.seconds, 3),
        "trainer_seconds": round(trained_s, 3),
        "scoring_seconds": round(result.scoring_seconds, 3),
        "tokens_per_s": round(result.tokens / trained_s, 1) if trained_s else 0.0,
        "peak_memory_mib": round(outcome.peak_memory_mib, 1),
        "lineage": dict(result.lineage),
        "environment": {**environment(), **outcome.environment},
        "summary": result.summary,
    }


def _input_record(item: PlannedInput, version: int | None) -> InputRecord:
    return InputRecord(
        field=item.field, ref=item.ref, name=item.name, kind=item.kind, version=version, fingerprint=item.fingerprint
    )


def _where(plan: Plan, source_name: str) -> list[str]:
    source = plan.recipe.data[source_name]
    if source.path is not None:
        return [file.name for file in source.files]
    return [f"hub:{source.hub}" if source.hub else f"artifact:{source.artifact}"]
