"""Collect: people say which of two answers is better; their labels become the pairs reward, dpo and kto train on.

    data:
      answers: {path: answers.jsonl}                 # prompt and two answers: the rows of preference data
      pairs:   {artifact: labels, file: preferences.jsonl}
    stages:
      labels: {kind: collect, data: answers, overlap: 0.15}
      dpo:    {kind: dpo, data: pairs, model: sft}

`trueup collect RECIPE labels` opens the labelling app; `trueup run` stops at this stage with exit code 3 until the
labels are complete. Which answer the data calls the chosen one is neither used nor shown.

References: Stiennon et al. 2020, arXiv:2009.01325, section 3.3 (comparisons by people); Touvron et al. 2023,
arXiv:2307.09288, section 3.2 (the strength of a preference as a margin).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pipeline.errors import ExitCode, PipelineError, Problem, agreeing, counted
from pipeline.stage import Data, Runtime, StageConfig, StageContext, StageResult, stage

FILE = "preferences.jsonl"
"""File of the artifact with the rows to train on."""


class Config(StageConfig):
    """Configuration of a collection.

    Attributes:
        data: pairs of answers to compare.
        labels_per_item: people who label each pair.
        overlap: share of the pairs that three people label, so that agreement can be measured.
        guidelines: what annotators are told, plain text.
        batch: name of the labels in the ledger; the stage's name when empty.
        ledger: SQLAlchemy URL of the database of labels; `TRUEUP_LEDGER` overrides it, the default is a file in the
            store.
    """

    data: Annotated[str, Data("preference")]
    labels_per_item: int = Field(default=1, ge=1)
    overlap: float = Field(default=0.0, ge=0, le=1)
    guidelines: str = ""
    batch: Annotated[str, Runtime()] = ""
    ledger: Annotated[str | None, Runtime()] = None


def ledger_url(config: Config, store: Path) -> str:
    """Return the SQLAlchemy URL of the ledger."""
    from pipeline.preferences.ledger import default_url

    return os.environ.get("TRUEUP_LEDGER") or config.ledger or default_url(store)


@stage("collect", version=1, config=Config, makes="preferences")
def run(ctx: StageContext, config: Config) -> StageResult:
    """Write the preferred pairs; while labels are missing, raise with their number."""
    from pipeline.preferences import need

    need("sqlalchemy")
    from pipeline.preferences.agreement import agreement, exported
    from pipeline.preferences.items import items_of
    from pipeline.preferences.labels import Batch, State
    from pipeline.preferences.ledger import Ledger

    rows = ctx.load_rows("data")
    items, left_out = items_of(rows.train + rows.held_out)
    if left_out:
        were, they = agreeing(left_out, "was", "were"), agreeing(left_out, "it repeats", "they repeat")
        ctx.note(f"{counted(left_out, 'pair')} {were} left out: {they} another, or both answers are the same")
    batch = Batch(items, config.labels_per_item, config.overlap)
    ledger = Ledger(ledger_url(config, ctx.work.parents[2]), config.batch or ctx.name)
    state = State().take(ledger.events())
    done, full = batch.progress(state)
    if done < full:
        remedy = f"`trueup collect RECIPE {ctx.name}` opens the labelling app; run again when they are there"
        statement = f"waiting for people: {done} of {counted(full, 'label')}"
        raise PipelineError(Problem(statement, "", remedy), exit_code=ExitCode.WAITING)
    preferences, without = exported(items, state)
    if not preferences:
        raise PipelineError(Problem("no label prefers one answer", "at least one that does", "collect more pairs"))
    with (ctx.out / FILE).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in preferences)
    agreed = agreement(items, state)
    metrics: dict[str, Any] = {
        "labels": float(done),
        "pairs": float(len(preferences)),
        "left_out": float(without.total()),
    }
    if agreed.pairs:
        metrics["agreement"] = agreed.same / agreed.pairs
    if agreed.alpha is not None:
        metrics["krippendorff_alpha"] = agreed.alpha
    reasons = ", ".join(f"{count} {why}" for why, count in sorted(without.items()))
    ctx.runtime_report["ledger"] = {"event": state.number, "head": state.head}
    return StageResult(
        metrics=metrics,
        rows={"pairs": len(preferences), "labels": done},
        summary=f"{counted(len(preferences), 'preference')} from {counted(done, 'label')}"
        + (f"; no row of {reasons}" if reasons else ""),
    )
