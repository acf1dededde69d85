"""Evaluates checkpoints: sample, score, compare, report; `config.py` names the references."""

from __future__ import annotations

import time
from dataclasses import replace

from pipeline.evaluation.answers import Answers, Prompt, samples
from pipeline.evaluation.best_of_n.baseline import best_of_baseline
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.judging import judge_warning
from pipeline.evaluation.prompts import ask
from pipeline.evaluation.report.conclusion import summary
from pipeline.evaluation.report.record import BestOfBaseline, Report
from pipeline.evaluation.report.writing import write
from pipeline.evaluation.stats.intervals import Bootstrap
from pipeline.evaluation.sweep import with_sweep
from pipeline.models.load.pretrained import load_tokenizer
from pipeline.plain_data import ShapedRow
from pipeline.stage import StageContext, StageResult
from pipeline.stages.evaluate.answers import sample_all
from pipeline.stages.evaluate.config import Config
from pipeline.stages.evaluate.endpoints import ask_all, kl_notes, with_endpoints
from pipeline.stages.evaluate.scores import score_all
from pipeline.training.arguments import prepare_torch
from pipeline.training.data.encoding import ANSWER, RowFault, encode_labelled, encode_prompts, nothing_encoded
from pipeline.training.data.sources import set_faults_aside


def run(ctx: StageContext, config: Config) -> StageResult:
    """Sample, score, compare, and write the report."""
    ctx = prepare_torch(ctx)
    started = time.perf_counter()
    warnings = _warnings(ctx, config)
    asked = ask(
        _prompts(ctx),
        group_by=config.group_by,
        reference=config.reference,
        limit=config.limit,
        seed=ctx.seed,
    )
    told = ask_all(ctx, config, asked)
    sampled, reused = sample_all(ctx, config, asked)
    if not ctx.is_first:  # the functions that score are called once
        return StageResult()
    is_stratified = asked.is_grouped and len(asked.rows) < asked.available
    asked, sampled = with_endpoints(ctx, asked, sampled, told)
    ctx.phase("scoring")
    answers = score_all(ctx, config, asked.rows, sampled)
    prompts = [
        Prompt(_shown(row["prompt"]), group, place, ctx.seed, right)
        for row, group, place, right in zip(asked.rows, asked.groups, asked.places, asked.references, strict=True)
    ]
    ctx.phase("comparing")
    bootstrap = Bootstrap(ctx.seed, config.resamples)
    answers, best_of_n = _best_of_n(config, answers, bootstrap)
    report = compare(
        answers, prompts, baseline=config.baseline, judge=config.judge, bootstrap=bootstrap, rounds=config.rounds or ()
    )
    sample = {
        "best_of_n": best_of_n,
        "available": asked.available,
        "sampled_by": config.group_by if is_stratified else "",
    }
    report = with_sweep(report.model_copy(update={**sample, "warnings": warnings}), config.variants)
    shown = samples(answers, prompts, baseline=config.baseline, judge=config.judge)
    write(report, ctx.out, shown, title=config.title)
    is_reused = reused or told.cached
    metrics = _metrics(report)
    if config.endpoints:
        metrics["errors"] = float(len(told.failures))
    return StageResult(
        metrics=metrics,
        tokens=sum(sum(each.lengths) for each in sampled),
        trainer_seconds=0.0 if is_reused else time.perf_counter() - started,  # reused tokens took no time to sample
        rows={"prompts": len(prompts)},
        summary=summary(report),
    )


def _best_of_n(
    config: Config, answers: list[Answers], bootstrap: Bootstrap
) -> tuple[list[Answers], BestOfBaseline | None]:
    """Return the answers without the further ones of the baseline, and what choosing the best of these gains."""
    draws = [one for one in answers if one.name in (config.baseline, *config.draws)]
    others = [one for one in answers if one.name not in config.draws]
    return others, best_of_baseline(draws, bootstrap) if config.draws else None


def _warnings(ctx: StageContext, config: Config) -> list[str]:
    """Return the plan's warnings and one on the reward model as a judge, which is also noted while the stage runs."""
    unmeasured = kl_notes(config)
    for text in unmeasured:
        ctx.note(text)
    if config.reward is None:
        return [*ctx.warnings, *unmeasured]
    source = ctx.input("reward")
    warning = judge_warning(source.name, source.manifest.get("metrics", {}), judges=config.judges_by_reward)
    if warning:
        ctx.note(f"warning: {warning}")
    return [*ctx.warnings, *unmeasured, *([warning] if warning else [])]


def _prompts(ctx: StageContext) -> list[ShapedRow]:
    """Return the prompts that all models and the judge can render; write the others to the rejects file.

    Raises:
        PipelineError: a prompt cannot be rendered, and the source stops at bad rows.
    """
    rows = ctx.load_rows("data")
    prompts = rows.held_out or rows.train
    asked = [{**row, "completion": [ANSWER], "label": True} for row in prompts]
    faults: dict[int, RowFault] = {}
    for field in ("models", "reward"):
        for source in ctx.inputs.get(field, []):
            tokenizer = load_tokenizer(source, ctx.trust_remote_code)
            encoded = encode_prompts(tokenizer, prompts) if field == "models" else encode_labelled(tokenizer, asked)
            for fault in encoded.faults:
                faults.setdefault(fault.index, replace(fault, reason=f"{fault.reason} (model {source.name})"))
    faulty = nothing_encoded()._replace(faults=[faults[i] for i in sorted(faults)])
    sides = (nothing_encoded(), faulty) if rows.held_out else (faulty, nothing_encoded())
    set_faults_aside(ctx, "data", rows, *sides)
    return [row for i, row in enumerate(prompts) if i not in faults]


def _metrics(report: Report) -> dict[str, float]:
    """Return the report's main figures as flat metrics for the manifest: `dpo/win_rate`, `dpo/correct`, …."""
    figures = ("win_rate", "gold", "reward", "correct", "kl", "nll", "length", "eos_rate")
    return {
        f"{name}/{figure}": getattr(model, figure).value
        for name, model in report.models.items()
        for figure in figures
        if getattr(model, figure) is not None
    }


def _shown(prompt: list[dict[str, str]]) -> str:
    """Return a prompt as text for readers: a single turn without its role, several turns with roles."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
