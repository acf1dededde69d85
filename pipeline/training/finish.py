"""What every training stage writes at its end: weights, the loss curve, and the metrics of the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.artifacts.provenance import AppliedAdapter, descended, label
from pipeline.evaluation.curves.loss_curve import write_curve
from pipeline.models.load.adapter_config import Adapter
from pipeline.models.load.adapters import base_of_adapter
from pipeline.models.load.pretrained import is_tied, stored_bits
from pipeline.models.save.artifact import save_model
from pipeline.plain_data import JsonObject, JsonView
from pipeline.stage import ResolvedInput, StageContext, StageResult
from pipeline.training.loop import Trained
from pipeline.training.setup import OpenedModel

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_trained(
    ctx: StageContext,
    model: PreTrainedModel | PeftModel | None,
    tokenizer: PreTrainedTokenizerBase,
    source: ResolvedInput,
    adapter: Adapter | None,
    rows: Sequence[Sequence[int]],
) -> JsonObject:
    """Save a trained model and return its lineage; an adapter is merged into the weights, and also saved by itself.

    The written files are compared with the trained model; a difference fails the stage.

    An artifact with an adapter holds full merged weights, so the next stage reads it like any other, and the adapter
    alone in `adapter/`. Earlier adapters are already merged into the base: none is lost, none is applied twice.

    Args:
        ctx: the stage's context.
        model: model with full weights (`consolidated_model`); None on all processes but the first.
        tokenizer: tokenizer to save with it.
        source: model the stage started from.
        adapter: the adapter that was trained; None when all weights were.
        rows: token ids of some training rows, for the comparison.

    Raises:
        PipelineError: the written files differ from the trained model.
    """
    lineage = descended(source.manifest.get("lineage", {}), source.name, source.fingerprint)
    if adapter is not None:
        on = label(source.name, source.fingerprint)
        bits = adapter.quantize or stored_bits(source, ctx.trust_remote_code) or None
        lineage["adapters"].append(AppliedAdapter(ctx.name, on, adapter.r, bits).record())
    if model is not None:
        ctx.phase("writing the model and comparing it with what was trained")
        save_model(model, tokenizer, ctx.out, rows, base=base_of_adapter(source) if adapter is not None else None)
        if adapter is not None and adapter.targets != "all-linear" and _was_untied(ctx, source):
            ctx.note("the adapter is on a weight that two layers shared: the output layer has its own from here on")
    return lineage


def _was_untied(ctx: StageContext, source: ResolvedInput) -> bool:
    """Whether the starting model ties its embeddings and the written model does not."""
    written = source.model_copy(update={"path": str(ctx.out)})
    return is_tied(source, ctx.trust_remote_code) and not is_tied(written, ctx.trust_remote_code)


def finish(
    ctx: StageContext,
    trained: Trained,
    *,
    metrics: Mapping[str, float],
    rows: Mapping[str, int],
    lineage: JsonView,
    summary: str,
) -> StageResult:
    """Write `metrics.jsonl` and `loss.svg` into the artifact and return the stage's result."""
    ctx.phase("writing the artifact")
    write_curve(trained.history, ctx.out, title=ctx.name)
    return StageResult(
        metrics={**trained.metrics, **metrics},
        best=trained.best,
        tokens=trained.tokens,
        trainer_seconds=trained.seconds,
        scoring_seconds=trained.scoring_seconds,
        rows=rows,
        lineage=lineage,
        summary=f"{summary}; weights of step {trained.best['step']:g}" if trained.keeps_best else summary,
    )


def save_and_finish(
    ctx: StageContext,
    trained: Trained,
    model: PreTrainedModel | PeftModel | None,
    opened: OpenedModel,
    seen: Sequence[Sequence[int]],
    *,
    rows: Mapping[str, int],
    summary: str,
) -> StageResult:
    """Save a trained policy (`save_trained`) and return the stage's result (`finish`).

    Args:
        ctx: the stage's context.
        trained: what the training run measured.
        model: model with full weights (`consolidated_model`); None on all processes but the first.
        opened: the model that the stage started from, its tokenizer, and the adapter that was trained.
        seen: token ids of some training rows, for the comparison with the written files.
        rows: numbers of rows for the manifest.
        summary: short sentence for the end-of-run table.

    Raises:
        PipelineError: the written files differ from the trained model.
    """
    lineage = save_trained(ctx, model, opened.tokenizer, ctx.input("model"), opened.adapter, seen)
    return finish(ctx, trained, metrics={}, rows=rows, lineage=lineage, summary=summary)
