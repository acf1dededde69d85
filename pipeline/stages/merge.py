"""Merge: adapters folded into full weights, each exactly once, in the order given.

A model this program trained holds its adapters in its weights already, so `adapters` names only further ones: folders
or hub ids of a LoRA adapter, or stages trained with one. An adapter of a stage is taken alone and must have been
trained on just what it is put on, so the adapter of an adapter needs its parent's before it:

    full: {kind: merge, model: base, adapters: [sft, dpo]}    # the weights of dpo, from base

The base is loaded in full precision, also where an adapter was trained on a quantised one (QLoRA): the sum then differs
from what was trained by the rounding of the base, and the stage says so.

Reference: Hu et al. 2021 (LoRA), arXiv:2106.09685, section 4.1: W = W0 + alpha / r · B A.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.errors import PipelineError, Problem
from pipeline.stage import Input, ResolvedInput, StageConfig, StageContext, StageResult, stage


class Config(StageConfig):
    """Configuration of a merge.

    Attributes:
        model: what the adapters are put on.
        adapters: in the order they are folded in.
        dtype: of the weights written.
    """

    model: Annotated[str, Input(external=True)]
    adapters: Annotated[list[str], Input(external=True), Field(min_length=1)]
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"


@stage("merge", version=1, config=Config, makes="model")
def run(ctx: StageContext, config: Config) -> StageResult:
    """Fold the adapters in and write full weights with tokenizer and chat template."""
    import torch

    from pipeline.models.adapters import fold_in
    from pipeline.models.load import load_causal_lm, load_tokenizer, save_model

    source = ctx.input("model")
    lineage = _lineage(source, ctx.inputs["adapters"])
    tokenizer = load_tokenizer(source, ctx.trust_remote_code)
    model = load_causal_lm(source, trust_remote_code=ctx.trust_remote_code)
    for adapter in ctx.inputs["adapters"]:
        ctx.stop_if_asked()
        ctx.phase(f"folding in {adapter.name}")
        settings = adapter.manifest.get("config", {}).get("config", {})
        quantised = (settings.get("adapter") or {}).get("quantize")
        if quantised:
            ctx.note(f"{adapter.name} was trained on a {quantised} base; it is folded into the full-precision one")
        model = fold_in(model, adapter)
    model = model.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.dtype])
    ctx.phase("writing the artifact")
    save_model(model, tokenizer, ctx.out)
    count = sum(parameter.numel() for parameter in model.parameters())
    return StageResult(
        metrics={"parameters": float(count)},
        lineage=lineage,
        summary=f"{len(config.adapters)} adapters folded into {source.name}, {config.dtype}",
    )


def _lineage(source: ResolvedInput, adapters: list[ResolvedInput]) -> dict[str, Any]:
    """Return what the merged weights stand on.

    Raises:
        PipelineError: an adapter is in the weights already, or was trained on other weights than it is put on.
    """
    before = source.manifest.get("lineage", {})
    names, below = list(before.get("adapters", [])), source
    for adapter in adapters:
        own = adapter.manifest.get("lineage", {})
        name = own["adapters"][-1] if own.get("adapters") else f"{adapter.name}@{adapter.fingerprint[:12]}"
        if name in names:
            found = f"the adapter {name} is in the weights of {source.name} already"
            raise PipelineError(Problem(found, "each adapter once", "remove it from `adapters`"))
        if own and own.get("parent") != below.fingerprint:
            found = f"{adapter.name} was not trained on {below.name}@{below.fingerprint[:12]}"
            raise PipelineError(Problem(found, "the model it was trained on, or its parent's adapter before it"))
        names.append(name)
        below = adapter
    return {"base": before.get("base") or source.fingerprint, "parent": source.fingerprint, "adapters": names}
