"""Folds adapters into full weights and writes the model; `config.py` names the paper."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline.artifacts.provenance import AppliedAdapter, adapters_of, base_of, descended, label
from pipeline.errors import PipelineError, Problem, counted
from pipeline.models.load.adapters import config_of, load_and_merge
from pipeline.models.load.pretrained import load_causal_lm, load_tokenizer, stored_bits
from pipeline.models.load.quantized_files import TRAINABLE
from pipeline.models.save.artifact import save_model
from pipeline.plain_data import JsonObject
from pipeline.stage import ResolvedInput, StageContext, StageResult
from pipeline.stages.merge.config import Config

LANGUAGE_ONLY = "that of a language model: a reward model's artifact holds whole weights, and is used as it is"


def run(ctx: StageContext, config: Config) -> StageResult:
    """Fold the adapters in, and write full weights with tokenizer and chat template."""
    source = ctx.input("model")
    lineage = _lineage(source, ctx.inputs["adapters"])
    for adapter in ctx.inputs["adapters"]:
        _check_outside(ctx, adapter, source)
    stored = stored_bits(source, ctx.trust_remote_code)
    if stored and stored not in TRAINABLE:
        raise PipelineError(Problem(f"`{source.ref}` is kept quantised ({stored})", "whole weights, or 4 or 8 bits"))
    if stored:
        ctx.note(f"{source.name} is kept in {stored}: the adapters are folded into the values those stand for")
        lineage["adapters"] = [{**one, "merged": False} for one in lineage["adapters"]]
    tokenizer = load_tokenizer(source, ctx.trust_remote_code)
    model = load_causal_lm(source, trust_remote_code=ctx.trust_remote_code)
    for adapter in ctx.inputs["adapters"]:
        ctx.stop_if_asked()
        ctx.phase(f"folding in {adapter.name}")
        own = _own(adapter)
        if own.quantize and not stored:
            ctx.note(f"{adapter.name} was trained on a {own.quantize} base; it is folded into the full-precision one")
        model = load_and_merge(model, adapter)
    model = model.to({"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.dtype])
    ctx.phase("writing the artifact")
    save_model(model, tokenizer, ctx.out)
    count = sum(parameter.numel() for parameter in model.parameters())
    return StageResult(
        metrics={"parameters": float(count)},
        lineage={**lineage, "dtype": config.dtype},
        summary=f"{counted(len(config.adapters), 'adapter')} folded into {source.name}, {config.dtype}",
    )


def _own(adapter: ResolvedInput) -> AppliedAdapter:
    """Return the adapter of an input: the last adapter of a stage's weights, or an external one.

    Raises:
        PipelineError: the stage trained all weights, without an adapter.
    """
    if not adapter.manifest:
        return AppliedAdapter(label(adapter.name, adapter.fingerprint))
    known = adapters_of(adapter.manifest.get("lineage", {}))
    if not known or known[-1].name != adapter.name:
        statement = f"{adapter.name} holds no adapter: all its weights were trained"
        raise PipelineError(Problem(statement, "a stage trained with `adapter:`", "put the adapters on it: `model`"))
    return known[-1]


def _check_outside(ctx: StageContext, adapter: ResolvedInput, source: ResolvedInput) -> None:
    """Check the configuration of an external adapter before loading weights; note if it names another base.

    Raises:
        PipelineError: it is the adapter of a reward model.
    """
    if adapter.manifest:
        return
    config = config_of(adapter)
    if config.task_type == "SEQ_CLS":
        raise PipelineError(Problem(f"{adapter.ref} is the adapter of a reward model", LANGUAGE_ONLY))
    base = base_of(descended(source.manifest.get("lineage", {}), source.name, source.fingerprint))
    named = str(config.base_model_name_or_path or "")
    if named and named not in (source.ref.partition("@")[0], base.partition("@")[0]):
        ctx.note(f"{adapter.ref} says it was trained on {named}; it is put on {label(source.name, source.fingerprint)}")


def _lineage(source: ResolvedInput, adapters: list[ResolvedInput]) -> JsonObject:
    """Return the lineage of the merged weights.

    Raises:
        PipelineError: an adapter is in the weights already, or was trained on other weights.
    """
    lineage = descended(source.manifest.get("lineage", {}), source.name, source.fingerprint)
    keys, below = [known.key for known in adapters_of(lineage)], source
    for adapter in adapters:
        own, adapter_lineage = _own(adapter), adapter.manifest.get("lineage", {})
        if own.key in keys:
            statement = f"the adapter {own.key} is in the weights of {source.name} already"
            raise PipelineError(Problem(statement, "each adapter once", "remove it from `adapters`"))
        if adapter_lineage and adapter_lineage.get("parent") != below.fingerprint:
            statement = f"{adapter.name} was not trained on {label(below.name, below.fingerprint)}"
            statement += f", but on {own.on}" if own.on else ""
            raise PipelineError(Problem(statement, "the model it was trained on, or its parent's adapter before it"))
        keys.append(own.key)
        lineage["adapters"].append(replace(own, merged=True).record())
        below = adapter
    return lineage
