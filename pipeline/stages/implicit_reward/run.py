"""Joins a policy and its reference into a reward, and reports on held-out pairs; `config.py` names the papers."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.artifacts.implicit_reward import REFERENCE_FOLDER, ImplicitSettings, model_files, write_settings
from pipeline.artifacts.provenance import descended
from pipeline.errors import PipelineError, Problem
from pipeline.evaluation.judging import card_summary
from pipeline.machine.disk import keep_if_possible
from pipeline.models.implicit_reward import ImplicitReward, local_folder
from pipeline.models.load.pretrained import load_tokenizer, refuse_unsafe, source_of
from pipeline.models.prompted_response import PromptedResponse
from pipeline.models.scoring import finite, score
from pipeline.models.tokenizer.contract import facts, pair_problem
from pipeline.stage import ResolvedInput, StageContext, StageResult
from pipeline.stages.implicit_reward.config import Config
from pipeline.training.arguments import prepare_torch
from pipeline.training.data.encoding import encode_pairs
from pipeline.training.data.sources import encode_source
from pipeline.training.pair_report import full_sequences, report_on_pairs
from pipeline.training.report_columns import ReportColumns
from pipeline.training.reward_models import open_scorer

AT_ONCE = 256
"""Responses between two reports of progress; what is scored by then is kept for a stage that is stopped."""


def run(ctx: StageContext, config: Config) -> StageResult:
    """Write both models into one artifact, and report how often it prefers the chosen response of held-out pairs."""
    ctx = prepare_torch(ctx)
    policy, reference = ctx.input("policy"), ctx.input("reference")
    _check(ctx, policy, reference, config.reference_weight)
    ctx.phase("writing the policy and the reference")
    _take(policy, ctx.out)
    _take(reference, ctx.out / REFERENCE_FOLDER)
    write_settings(ctx.out, ImplicitSettings(config.beta, config.reference_weight))
    _note_other_beta(ctx, policy, config.beta)
    for text in ctx.warnings:
        ctx.note(f"warning: {text}")
    started = time.perf_counter()
    metrics, rows = _report(ctx, config)
    lineage = descended(policy.manifest.get("lineage", {}), policy.name, policy.fingerprint)
    return StageResult(
        metrics=metrics,
        scoring_seconds=time.perf_counter() - started,
        rows=rows,
        lineage=lineage,
        summary=card_summary(metrics),
    )


def _check(ctx: StageContext, policy: ResolvedInput, reference: ResolvedInput, weight: float) -> None:
    """Check that the two are language models with one tokenizer, and that they make a reward.

    One model may be both if the reference weighs less than 1: the reward is then its likelihood.

    Raises:
        PipelineError: every reward would be 0, one of them is a reward model, or their tokenizers differ.
    """
    if policy.fingerprint == reference.fingerprint and weight == 1:
        statement = f"`{policy.ref}` and `{reference.ref}` are the same weights: every reward would be 0"
        raise PipelineError(Problem(statement, "the model that the policy was trained from as `reference`"))
    for field, source in (("policy", policy), ("reference", reference)):
        refuse_unsafe(source_of(source))
        if _gives_scores(source):
            statement = f"{field}: `{source.ref}` is a reward model: it gives a score, and no probabilities"
            raise PipelineError(Problem(statement, "a language model, such as one of kind dpo"))
    known, others = (facts(load_tokenizer(one, ctx.trust_remote_code), one.ref) for one in (policy, reference))
    problem = pair_problem(known, others)
    if problem is not None:
        raise PipelineError(problem)


def _gives_scores(source: ResolvedInput) -> bool:
    """Return whether a model is a sequence classification model; with a tied output layer it would load as any other.

    Raises:
        PipelineError: it has no configuration that can be read.
    """
    file = local_folder(source) / "config.json"
    if not file.is_file():
        remedy = "if it is an adapter alone, fold it into its base with a `merge` stage"
        raise PipelineError(Problem(f"`{source.ref}` has no config.json", "a folder with whole weights", remedy))
    try:
        names = json.loads(file.read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise PipelineError(Problem(f"{file} cannot be read", "the configuration of a model")) from error
    return any(str(name).endswith("ForSequenceClassification") for name in names)


def _take(source: ResolvedInput, out: Path) -> None:
    """Put the files of a model and its tokenizer into a folder of the payload.

    Those of an artifact are linked, since no file of an artifact changes; those of a user's folder are copied.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in model_files(local_folder(source)):
        target = out / file.name
        target.unlink(missing_ok=True)  # of a run that was killed
        if source.manifest:
            try:
                os.link(file, target)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(file, target)
        else:
            shutil.copyfile(file, target)


def _note_other_beta(ctx: StageContext, policy: ResolvedInput, beta: float) -> None:
    trained = policy.manifest.get("config", {}).get("config", {}).get("train", {}).get("beta")
    if isinstance(trained, int | float) and trained != beta:
        times = f"rewards are {beta / trained:g} times as large"
        ctx.note(f"{policy.name} was trained with beta {trained:g}: with {beta:g} {times}")


def _report(ctx: StageContext, config: Config) -> tuple[dict[str, float], dict[str, int]]:
    """Score the pairs of `test` and write the reward card; return its main figures and the number of pairs.

    Raises:
        PipelineError: no pair fits the context of both models, or the report cannot read its columns.
        Interrupted: the run was asked to stop.
    """
    if config.test is None:
        return {}, {}
    rows, columns = ctx.load_rows("test"), ReportColumns.of(config)
    columns.check(rows.held_out or rows.train)
    written = ctx.input("policy").model_copy(update={"name": ctx.name, "ref": ctx.name, "path": str(ctx.out)})
    tokenizer = load_tokenizer(written, ctx.trust_remote_code)
    model = open_scorer(ctx, written, tokenizer)
    assert isinstance(model, ImplicitReward), "it was written as one"
    encode = functools.partial(encode_pairs, tokenizer)
    encoded = encode_source(ctx, "test", rows, encode, what="pairs to test", max_length=model.context)
    pairs = full_sequences(encoded.held_out, rows.held_out) or full_sequences(encoded.train, rows.train)
    if not pairs:
        remedy = "bring shorter pairs, or leave `test` out"
        raise PipelineError(Problem("no pair of `test` fits", f"pairs of at most {model.context} tokens", remedy))
    scorer = _KeptScorer(ctx, model, tokenizer.pad_token_id, 2 * len(pairs))
    return report_on_pairs(ctx, pairs, scorer, columns), {"held_out": len(pairs)}


class _KeptScorer:
    """Scores responses some at a time; what is scored stays in the scratch folder for a stage that is stopped.

    Attributes:
        ctx: the stage's context.
        model: the implicit reward.
        pad_id: padding id of its tokenizer.
        total: number of all responses.
        done: number of responses that are scored.
    """

    def __init__(self, ctx: StageContext, model: ImplicitReward, pad_id: int, total: int) -> None:
        self.ctx, self.model, self.pad_id, self.total, self.done = ctx, model, pad_id, total, 0

    def __call__(self, answers: Sequence[PromptedResponse]) -> list[float]:
        """Return the score of each response.

        Raises:
            PipelineError: a score is not finite.
            Interrupted: the run was asked to stop.
        """
        scores: list[float] = []
        for first in range(0, len(answers), AT_ONCE):
            part = answers[first : first + AT_ONCE]
            scores += self._scored(part)
            self.done += len(part)
            self.ctx.progress(self.done, self.total)
            self.ctx.stop_if_asked()
        return scores

    def _scored(self, answers: Sequence[PromptedResponse]) -> list[float]:
        file = self.ctx.work / "scores" / f"{hashlib.sha256(json.dumps(answers).encode()).hexdigest()}.json"
        if file.is_file():
            kept: list[float] = json.loads(file.read_text(encoding="utf-8"))
            return kept
        scores = finite(score(self.model, answers, self.pad_id), self.ctx.name)
        file.parent.mkdir(exist_ok=True)
        keep_if_possible(file, json.dumps(scores))
        return scores
