"""What a plan knows beforehand that a reader of an evaluation must know: prompts learnt from, a judge that guesses.

Owns the list. Knows nothing of statistics: how often a reward model is right stands in its manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.artifacts import Store
from pipeline.evaluation.judging import judge_warning
from pipeline.plan.model import Plan, PlannedStage
from pipeline.plan.overlap import overlap_warnings
from pipeline.stage import kind_of


def evaluation_notes(plan: Plan, store: Store) -> list[str]:
    """Return one line for each thing to know; reads the rows of sources that nobody has read before."""
    return [
        f"stage {stage.spec.name}: {text}"
        for stage in plan.stages
        if kind_of(stage.spec.kind).makes == "report"
        for text in dict.fromkeys(
            [*overlap_warnings(plan, stage, store), *_judge_warnings(stage), *_head_warnings(plan, stage)]
        )
    ]


def _judge_warnings(stage: PlannedStage) -> Iterator[str]:
    """Yield what its card says of a reward model that is there; one still to be trained is judged when it judges."""
    for item in stage.inputs.get("reward", []):
        if item.artifact is not None or item.external:
            judges = getattr(stage.spec.config, "judges_by_reward", True)
            text = judge_warning(item.name, _metrics(item.artifact), judges=judges)
            if text:
                yield text


def _metrics(folder: Path | None) -> dict[str, Any]:
    """Return the metrics of a manifest; nothing where there is none."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8")) if folder is not None else {}
    except (OSError, ValueError):
        return {}
    metrics = manifest.get("metrics", {}) if isinstance(manifest, dict) else {}
    return metrics if isinstance(metrics, dict) else {}


def _head_warnings(plan: Plan, stage: PlannedStage) -> Iterator[str]:
    """Yield that a source is cut after its first rows, which a file sorted by task makes a choice of tasks."""
    for item in stage.data.values():
        limit = plan.recipe.data[item.source_name].limit
        if limit is not None and limit < (item.rows or limit + 1):
            yield (
                f"data.{item.source_name}.limit takes the first {limit:,} rows as they lie in the file; `limit` of the "
                "stage draws a sample of all of them instead"
            )
