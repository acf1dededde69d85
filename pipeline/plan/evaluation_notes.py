"""Notes for readers of an evaluation that a plan can tell: prompts seen in training, an unreliable judge.

Owns the list. Knows nothing of statistics: a reward model's accuracy comes from its manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipeline.artifacts import Store
from pipeline.evaluation.judging import judge_warning
from pipeline.plain_data import JsonObject
from pipeline.plan.model import Plan, PlannedStage
from pipeline.plan.overlap import overlap_warnings
from pipeline.stage import kind_of


def evaluation_notes(plan: Plan, store: Store) -> list[str]:
    """Return the notes on a plan's evaluations, one line each; reads rows of sources that are not cached."""
    notes = []
    for stage in plan.stages:
        texts = list(overlap_warnings(plan, stage, store))
        if kind_of(stage.spec.kind).makes == "report":
            texts += [*_judge_warnings(stage), *_head_warnings(plan, stage)]
        notes += [f"stage {stage.spec.name}: {text}" for text in dict.fromkeys(texts)]
    return notes


def _judge_warnings(stage: PlannedStage) -> Iterator[str]:
    """Yield warnings on existing reward models from their cards; pending ones are checked when they score."""
    for item in stage.inputs.get("reward", []):
        if item.artifact is not None or item.external:
            judges = getattr(stage.spec.config, "judges_by_reward", True)
            text = judge_warning(item.name, _metrics(item.artifact), judges=judges)
            if text:
                yield text


def _metrics(folder: Path | None) -> JsonObject:
    """Return the metrics of a folder's manifest; empty if there are none."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8")) if folder is not None else {}
    except (OSError, ValueError):
        return {}
    metrics = manifest.get("metrics", {}) if isinstance(manifest, dict) else {}
    return metrics if isinstance(metrics, dict) else {}


def _head_warnings(plan: Plan, stage: PlannedStage) -> Iterator[str]:
    """Yield a warning for each source with a `limit`: the first rows of a file sorted by task cover few tasks."""
    for item in stage.data.values():
        limit = plan.recipe.data[item.source_name].limit
        if limit is not None and limit < (item.rows or limit + 1):
            yield (
                f"data.{item.source_name}.limit takes the first {limit:,} rows as they lie in the file; `limit` of the "
                "stage draws a sample of all of them instead"
            )
