"""Shows a plan as a table and as data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from pipeline.cli.terminal import Column, print_line, print_table
from pipeline.plain_data import JsonObject
from pipeline.plan import FORCED, Plan, PlannedStage

COLUMNS = (
    Column("stage"),
    Column("kind", style="dim"),
    Column("status", style="status"),
    Column("why", fold=True),
)


def status_of(stage: PlannedStage) -> str:
    """Return the status of a stage: ``cached``, ``resumes`` or ``pending``."""
    if stage.status == "cached":
        return "cached"
    return "resumes" if stage.resumable and FORCED not in stage.why else "pending"


def why_of(stage: PlannedStage) -> str:
    """Return the reasons why a stage runs, or the ref of the artifact it is taken from."""
    if stage.artifact is not None:
        return stage.artifact.ref
    return "; ".join(stage.why)


def print_plan(plan: Plan, stream: TextIO | None = None) -> None:
    """Print the table of a plan, its notes, and a summary line."""
    out = stream or sys.stdout
    rows = [[stage.spec.name, stage.spec.kind, status_of(stage), why_of(stage)] for stage in plan.stages]
    print_table(COLUMNS, rows, stream=out)
    for note in plan.notes:
        print_line(f"note: {note}", stream=out)
    print_line(f"\n{summary(plan.stages)}", stream=out)


def summary(stages: Sequence[PlannedStage]) -> str:
    """Count stages by status, as ``7 stages: 5 cached, 1 resumes, 1 pending``."""
    words = [status_of(stage) for stage in stages]
    counts = [f"{words.count(word)} {word}" for word in ("cached", "resumes", "pending") if word in words]
    return f"{len(words)} {'stage' if len(words) == 1 else 'stages'}: {', '.join(counts)}"


def plan_data(plan: Plan) -> JsonObject:
    """Return a plan as plain data for `--json`."""
    return {
        "recipe": plan.recipe.name,
        "file": str(plan.recipe.file),
        "notes": list(plan.notes),
        "pending": [stage.spec.name for stage in plan.pending],
        "stages": [
            {
                "name": stage.spec.name,
                "kind": stage.spec.kind,
                "status": status_of(stage),
                "why": list(stage.why),
                "fingerprint": stage.fingerprint,
                "ref": stage.artifact.ref if stage.artifact else None,
                "seed": stage.spec.seed,
                "inputs": {
                    field: [{"name": item.name, "kind": item.kind, "fingerprint": item.fingerprint} for item in items]
                    for field, items in stage.inputs.items()
                },
                "data": {
                    field: {"source": item.source_name, "rows": item.rows, "digest": item.digest}
                    for field, item in stage.data.items()
                },
            }
            for stage in plan.stages
        ],
    }
