"""Computes the report that compares the answers of several models.

Owns the choice of statistic for each metric. Knows nothing of how answers are sampled, scored or shown.

Shape legend: N prompts, S samples per prompt (scores may be (N,) or (N, S)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from pipeline.errors import PipelineError, Problem
from pipeline.evaluation.answers import Answers, Prompt, checked, default_judge, from_samples
from pipeline.evaluation.gaming import JudgeScores, assess, spread
from pipeline.evaluation.report.record import Gaming, Judge, ModelMetrics, Report, RoundStep, TaskMetrics, WinCounts
from pipeline.evaluation.report.samples import Sample
from pipeline.evaluation.stats.differences import paired_difference
from pipeline.evaluation.stats.divergence import Divergence, SequenceKL, summarized
from pipeline.evaluation.stats.estimate import Delta, Estimate
from pipeline.evaluation.stats.intervals import (
    RESAMPLES,
    Bootstrap,
    Floats,
    mean_interval,
    ratio_interval,
    wilson,
)
from pipeline.evaluation.stats.winrate import win_rate
from pipeline.evaluation.sweep import summarized_anew

_SHARE = (0.0, 1.0)


def compare(
    answers: Sequence[Answers],
    prompts: Sequence[Prompt],
    *,
    baseline: str,
    bootstrap: Bootstrap,
    judge: Judge | None = None,
    reference: str | None = None,
    rounds: Sequence[str] = (),
) -> Report:
    """Compare models on the same prompts.

    Args:
        answers: one entry per model, in the order of the report; the baseline is among them.
        prompts: the prompts of the evaluation.
        baseline: name of the model the others are compared with.
        bootstrap: how intervals and tests are computed.
        judge: the judge whose scores decide a win, ``gold`` or ``reward``; by default gold when all models have it.
        reference: name of the reference model of the KL, whose own KL is 0; the baseline by default.
        rounds: names of the models of one round after another, each of which is also compared with the one before.

    Raises:
        PipelineError: the baseline is not among the answers, names repeat, a model did not answer every prompt, or
            no judge scored all models.
    """
    baseline_answers = checked(answers, prompts, baseline)
    judge = judge or default_judge(answers)
    settings = _Settings(bootstrap, judge)
    tasks = [prompt.task for prompt in prompts]
    measured = {each.name: _model(each, baseline_answers, tasks, settings) for each in answers}
    gaming = _gaming(answers, baseline_answers, tasks, measured, settings)
    measured = {name: metrics.model_copy(update={"gaming": gaming.get(name)}) for name, metrics in measured.items()}
    reference = reference or baseline
    if reference in measured and measured[reference].kl is None and any(m.kl for m in measured.values()):
        zero = Estimate(value=0.0, low=0.0, high=0.0, n=len(prompts))
        no_divergence = {"kl": zero, "kl_k3": zero, "kl_per_token": zero}
        measured[reference] = measured[reference].model_copy(update=no_divergence)
    return Report(
        baseline=baseline,
        judge=judge,
        prompts=len(prompts),
        models=measured,
        rounds=_rounds(answers, rounds, settings) if rounds else None,
        **bootstrap.options,
    )


def recomputed(report: Report, samples: Sequence[Sample]) -> Report:
    """Recompute a report from its samples: every figure and interval equals that of ``report``.

    Raises:
        PipelineError: as `compare` does, or the report does not contain its seed.
    """
    if report.seed is None:
        raise PipelineError(Problem("report tells no seed", "one of schema 2", "evaluate again"))
    answers, prompts = from_samples(samples)
    remade = compare(
        answers,
        prompts,
        baseline=report.baseline,
        judge=report.judge,
        bootstrap=Bootstrap(report.seed, report.resamples or RESAMPLES, report.level),
        rounds=[report.rounds[0].before, *(step.model for step in report.rounds)] if report.rounds else (),
    )
    models = {
        name: metrics.model_copy(update={"ref": report.models[name].ref, "variant": report.models[name].variant})
        for name, metrics in remade.models.items()
    }
    known = {key: getattr(report, key) for key in ("available", "sampled_by", "warnings", "best_of_n")}
    remade = remade.model_copy(update={"models": models, **known})
    return summarized_anew(remade, report.sweep or [])


@dataclass(frozen=True)
class _Settings:
    """Settings of every interval and test, and the judge."""

    bootstrap: Bootstrap
    judge: Judge

    def mean(self, values: ArrayLike, bounds: tuple[float, float] | None = None) -> Estimate:
        return mean_interval(values, bounds=bounds, **self.bootstrap.options)

    def share(self, values: ArrayLike) -> Estimate:
        """Return the mean of shares, with Wilson's interval for 0/1 values and a bounded bootstrap for others."""
        array = np.asarray(values, dtype=np.float64)
        if array.ndim == 1 and array.size and np.isin(array, (0.0, 1.0)).all():
            return wilson(float(array.sum()), len(array), level=self.bootstrap.level)
        return self.mean(array, _SHARE)

    def difference(self, policy: ArrayLike | None, baseline: ArrayLike | None) -> Delta | None:
        """Return the paired difference of two models' scores; None when one has none."""
        if policy is None or baseline is None:
            return None
        return paired_difference(policy, baseline, **self.bootstrap.options)

    def divergence(self, sums: SequenceKL | None) -> Divergence | None:
        """Return the KL with its intervals; None when it was not measured."""
        if sums is None:
            return None
        return summarized(sums, **self.bootstrap.options)

    def per_token(self, sums: tuple[Floats, Floats] | None) -> Estimate | None:
        """Return the sum over all responses by their tokens; None when it was not measured."""
        return None if sums is None else ratio_interval(*sums, **self.bootstrap.options)

    def delta(self, policy: ArrayLike, baseline: ArrayLike) -> Delta:
        return paired_difference(policy, baseline, bounds=_SHARE, **self.bootstrap.options)


def _rounds(answers: Sequence[Answers], rounds: Sequence[str], settings: _Settings) -> list[RoundStep]:
    """Compare the model of each round with the one of the round before, on the same prompts."""
    scores = {each.name: each.scores(settings.judge) for each in answers}
    steps = []
    for before, name in pairwise(rounds):
        own, other = scores[name], scores[before]
        delta = settings.difference(own, other)
        if own is None or other is None or delta is None:
            raise PipelineError(
                Problem(f"`{name}` or `{before}` has no {settings.judge} scores", "scores for every round")
            )
        won = win_rate(own, other, **settings.bootstrap.options)
        steps.append(RoundStep(model=name, before=before, win_rate=won.estimate, delta=delta))
    return steps


def _model(model: Answers, baseline: Answers, tasks: Sequence[str], settings: _Settings) -> ModelMetrics:
    """Compute all metrics of one model."""
    is_baseline = model.name == baseline.name
    won = None
    if not is_baseline:
        own, other = model.scores(settings.judge), baseline.scores(settings.judge)
        if own is None or other is None:
            raise PipelineError(
                Problem(f"`{model.name}` or `{baseline.name}` has no {settings.judge} scores", "scores for every model")
            )
        won = win_rate(own, other, **settings.bootstrap.options)
    everything = np.ones(len(tasks), dtype=bool)
    overall = _task(model, baseline, everything, settings)
    per_task = {
        task: _task(model, baseline, np.array([name == task for name in tasks]), settings)
        for task in dict.fromkeys(tasks)
        if task
    }
    gold, reward = model.scores("gold"), model.scores("reward")
    divergence = settings.divergence(model.sequence_kl)
    return ModelMetrics(
        ref=model.ref,
        variant=model.is_variant and not is_baseline,
        win_rate=won.estimate if won else None,
        win_counts=WinCounts(**won.model_dump(exclude={"estimate"})) if won else None,
        gold=None if gold is None else settings.mean(gold),
        reward=None if reward is None else settings.mean(reward),
        gold_delta=None if is_baseline else settings.difference(gold, baseline.scores("gold")),
        reward_delta=None if is_baseline else settings.difference(reward, baseline.scores("reward")),
        correct=overall.correct if overall else None,
        delta=overall.delta if overall else None,
        kl=divergence.k1_per_sequence if divergence else None,
        kl_k3=divergence.k3_per_sequence if divergence else None,
        kl_per_token=divergence.k1_per_token if divergence else None,
        nll=settings.per_token(model.nll_and_tokens),
        length=None if model.lengths is None else settings.mean(model.lengths),
        eos_rate=None if model.ended is None else settings.share(model.ended),
        tasks={task: metrics for task, metrics in per_task.items() if metrics},
    )


def _task(model: Answers, baseline: Answers, chosen: np.ndarray, settings: _Settings) -> TaskMetrics | None:
    """Compute correctness on the ``chosen`` prompts; None when none of them has a checkable answer."""
    correct, other = model.correctness, baseline.correctness
    if correct is None:
        return None
    own_rows = chosen & ~np.isnan(correct.reshape(len(correct), -1)).any(axis=1)
    if not own_rows.any():
        return None
    delta = None
    if other is not None and model.name != baseline.name:
        both = own_rows & ~np.isnan(other.reshape(len(other), -1)).any(axis=1)
        delta = settings.delta(correct[both], other[both]) if both.any() else None
    return TaskMetrics(correct=settings.share(correct[own_rows]), delta=delta)


def _gaming(
    answers: Sequence[Answers],
    baseline: Answers,
    tasks: Sequence[str],
    measured: Mapping[str, ModelMetrics],
    settings: _Settings,
) -> dict[str, Gaming]:
    """Compare the gains by reward model and by gold, for each model that has both scores.

    A judge that scores all answers equally has standard deviation 0; its unit is then 1 and every gain 0.
    """
    scored = {each.name: (each.reward, each.gold) for each in answers}
    units = []
    for judge in (0, 1):
        own = scored[baseline.name][judge]
        others = [
            scores for name, pair in scored.items() if name != baseline.name and (scores := pair[judge]) is not None
        ]
        units.append(1.0 if own is None else spread(own, others) or 1.0)
    base_reward, base_gold = scored[baseline.name]
    if base_reward is None or base_gold is None:
        return {}
    return {
        name: assess(
            JudgeScores(reward, base_reward, units[0]),
            JudgeScores(gold, base_gold, units[1]),
            tasks,
            settings.bootstrap,
            correct=_correct_deltas(measured[name]),
        )
        for name, (reward, gold) in scored.items()
        if name != baseline.name and reward is not None and gold is not None
    }


def _correct_deltas(metrics: ModelMetrics) -> dict[str, Delta]:
    """Return the differences of correctness by task; the key of all prompts is the empty name."""
    deltas = {task: each.delta for task, each in metrics.tasks.items()} | {"": metrics.delta}
    return {task: delta for task, delta in deltas.items() if delta is not None}
