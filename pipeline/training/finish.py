"""What every training stage writes at its end: weights, the loss curve, and the figures of the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.artifacts.provenance import AppliedAdapter, descended, label
from pipeline.evaluation.curves import write_curve
from pipeline.models.adapter_config import Adapter
from pipeline.stage import ResolvedInput, StageContext, StageResult
from pipeline.training.loop import Trained


def save_trained(
    ctx: StageContext, model: Any | None, tokenizer: Any, source: ResolvedInput, adapter: Adapter | None
) -> dict[str, Any]:
    """Save a trained model, an adapter merged into its weights and also beside them; return its lineage.

    The artifact of an adapter holds whole weights, so the next stage reads it like any other, and the adapter alone
    in `adapter/`. Its parent's adapters are in the base already: none is lost, none is applied twice.

    Args:
        ctx: of the stage.
        model: with all its weights (`whole_model`); None on all processes but the first.
        tokenizer: saved beside it.
        source: what the stage started from.
        adapter: what was trained; None when all weights were.
    """
    from pipeline.models.adapters import base_of_adapter
    from pipeline.models.load import stored_bits
    from pipeline.models.save import save_model

    lineage = descended(source.manifest.get("lineage", {}), source.name, source.fingerprint)
    if adapter is not None:
        on = label(source.name, source.fingerprint)
        bits = adapter.quantize or stored_bits(source, ctx.trust_remote_code) or None
        lineage["adapters"].append(AppliedAdapter(ctx.name, on, adapter.r, bits).record())
    if model is not None:
        save_model(model, tokenizer, ctx.out, base=base_of_adapter(source) if adapter is not None else None)
    return lineage


def finish(
    ctx: StageContext,
    trained: Trained,
    *,
    metrics: Mapping[str, float],
    rows: Mapping[str, int],
    lineage: Mapping[str, Any],
    summary: str,
    scoring_seconds: float = 0.0,
) -> StageResult:
    """Write `metrics.jsonl` and `loss.svg` into the artifact and return the stage's result."""
    ctx.phase("writing the artifact")
    write_curve(trained.history, ctx.out, title=ctx.name)
    return StageResult(
        metrics={**trained.metrics, **metrics},
        best=trained.best,
        tokens=trained.tokens,
        trainer_seconds=trained.seconds,
        scoring_seconds=scoring_seconds,
        rows=rows,
        lineage=lineage,
        summary=f"{summary}; weights of step {trained.best['step']:g}" if trained.keeps_best else summary,
    )
