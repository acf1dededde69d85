"""From the answers of several models to the report that compares them.

Owns which statistic each metric is given. Knows nothing of how answers were sampled or scored, nor how they are shown.

Shape legend: N prompts, S samples per prompt (scores may be (N,) or (N, S)).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pipeline.errors import PipelineError, Problem
from pipeline.evaluation.answers import Answers, Prompt, checked, default_judge, from_samples
from pipeline.evaluation.differences import paired_difference
from pipeline.evaluation.divergence import Divergence, SequenceKL, summarized
from pipeline.evaluation.estimate import Delta, Estimate
from pipeline.evaluation.gaming import assess, spread
from pipeline.evaluation.intervals import LEVEL, RESAMPLES, mean_interval, wilson
from pipeline.evaluation.report import Gaming, Judge, ModelMetrics, Report, TaskMetrics, WinCounts
from pipeline.evaluation.samples import Sample
from pipeline.evaluation.winrate import win_rate

_SHARE = (0.0, 1.0)


def compare(
    answers: Sequence[Answers],
    prompts: Sequence[Prompt],
    *,
    baseline: str,
    seed: int,
    judge: Judge | None = None,
    reference: str | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Report:
    """Compare models on the same prompts.

    Args:
        answers: one entry per model, in the order the report shows them; the baseline is among them.
        prompts: what was asked.
        baseline: name of the model the others are compared with.
        seed: of every bootstrap and permutation.
        judge: whose scores decide a win: ``gold`` or ``reward``; by default gold when all models have it.
        reference: name of the model KL was measured to, whose own KL is 0; the baseline by default.
        resamples: of every bootstrap.
        level: confidence level of every interval.

    Raises:
        PipelineError: the baseline is not among the answers, names repeat, a model did not answer every prompt, or
            no judge scored all models.
    """
    against = checked(answers, prompts, baseline)
    judge = judge or default_judge(answers)
    settings = _Settings(seed=seed, resamples=resamples, level=level, judge=judge)
    tasks = [prompt.task for prompt in prompts]
    measured = {each.name: _model(each, against, tasks, settings) for each in answers}
    gaming = _gaming(answers, against, tasks, measured, settings)
    measured = {name: metrics.model_copy(update={"gaming": gaming.get(name)}) for name, metrics in measured.items()}
    reference = reference or baseline
    if reference in measured and measured[reference].kl is None and any(m.kl for m in measured.values()):
        zero = Estimate(value=0.0, low=0.0, high=0.0, n=len(prompts))
        nowhere = {"kl": zero, "kl_k3": zero, "kl_per_token": zero}
        measured[reference] = measured[reference].model_copy(update=nowhere)
    return Report(
        baseline=baseline,
        judge=judge,
        prompts=len(prompts),
        seed=seed,
        level=level,
        resamples=resamples,
        models=measured,
    )


def recomputed(report: Report, samples: Sequence[Sample]) -> Report:
    """Return a report made again from its samples: every figure, with its interval, is that of ``report``.

    Raises:
        PipelineError: as `compare` does, or the report does not tell its seed.
    """
    if report.seed is None:
        raise PipelineError(Problem("report tells no seed", "one of schema 2", "evaluate again"))
    answers, prompts = from_samples(samples)
    made = compare(
        answers,
        prompts,
        baseline=report.baseline,
        judge=report.judge,
        seed=report.seed,
        resamples=report.resamples or RESAMPLES,
        level=report.level,
    )
    models = {
        name: metrics.model_copy(update={"ref": report.models[name].ref, "variant": report.models[name].variant})
        for name, metrics in made.models.items()
    }
    known = {key: getattr(report, key) for key in ("available", "sampled_by", "warnings")}
    return made.model_copy(update={"models": models, **known})


@dataclass(frozen=True)
class _Settings:
    """How intervals are made."""

    seed: int
    resamples: int
    level: float
    judge: Judge

    def mean(self, values: ArrayLike, bounds: tuple[float, float] | None = None) -> Estimate:
        return mean_interval(values, seed=self.seed, resamples=self.resamples, level=self.level, bounds=bounds)

    def share(self, values: ArrayLike) -> Estimate:
        """Wilson's interval for 0/1 values, a bounded bootstrap for shares."""
        array = np.asarray(values, dtype=np.float64)
        if array.ndim == 1 and array.size and np.isin(array, (0.0, 1.0)).all():
            return wilson(float(array.sum()), len(array), level=self.level)
        return self.mean(array, _SHARE)

    def difference(self, policy: ArrayLike | None, baseline: ArrayLike | None) -> Delta | None:
        """Return the paired difference of two scores, where both models have them."""
        if policy is None or baseline is None:
            return None
        return paired_difference(policy, baseline, seed=self.seed, resamples=self.resamples, level=self.level)

    def divergence(self, found: SequenceKL | None) -> Divergence | None:
        """Return the KL with its intervals, where it was measured."""
        if found is None:
            return None
        return summarized(found, seed=self.seed, resamples=self.resamples, level=self.level)

    def delta(self, policy: ArrayLike, baseline: ArrayLike) -> Delta:
        return paired_difference(
            policy, baseline, seed=self.seed, resamples=self.resamples, level=self.level, bounds=_SHARE
        )


def _model(each: Answers, against: Answers, tasks: Sequence[str], settings: _Settings) -> ModelMetrics:
    """Measure one model."""
    is_baseline = each.name == against.name
    won = None
    if not is_baseline:
        own, other = each.scores(settings.judge), against.scores(settings.judge)
        if own is None or other is None:
            raise PipelineError(
                Problem(f"`{each.name}` or `{against.name}` has no {settings.judge} scores", "scores for every model")
            )
        won = win_rate(own, other, seed=settings.seed, resamples=settings.resamples, level=settings.level)
    everything = np.ones(len(tasks), dtype=bool)
    overall = _task(each, against, everything, settings)
    per_task = {
        task: _task(each, against, np.array([name == task for name in tasks]), settings)
        for task in dict.fromkeys(tasks)
        if task
    }
    gold, reward = each.scores("gold"), each.scores("reward")
    divergence = settings.divergence(each.sequence_kl)
    return ModelMetrics(
        ref=each.ref,
        variant=each.is_variant and not is_baseline,
        win_rate=won.estimate if won else None,
        win_counts=WinCounts(**won.model_dump(exclude={"estimate"})) if won else None,
        gold=None if gold is None else settings.mean(gold),
        reward=None if reward is None else settings.mean(reward),
        gold_delta=None if is_baseline else settings.difference(gold, against.scores("gold")),
        reward_delta=None if is_baseline else settings.difference(reward, against.scores("reward")),
        correct=overall.correct if overall else None,
        delta=overall.delta if overall else None,
        kl=divergence.k1_per_sequence if divergence else None,
        kl_k3=divergence.k3_per_sequence if divergence else None,
        kl_per_token=divergence.k1_per_token if divergence else None,
        length=None if each.lengths is None else settings.mean(each.lengths),
        eos_rate=None if each.ended is None else settings.share(each.ended),
        tasks={task: metrics for task, metrics in per_task.items() if metrics},
    )


def _task(each: Answers, against: Answers, chosen: np.ndarray, settings: _Settings) -> TaskMetrics | None:
    """Measure correctness on some prompts; none when no prompt among them has a checkable answer."""
    correct, other = each.correctness, against.correctness
    if correct is None:
        return None
    own_rows = chosen & ~np.isnan(correct.reshape(len(correct), -1)).any(axis=1)
    if not own_rows.any():
        return None
    delta = None
    if other is not None and each.name != against.name:
        both = own_rows & ~np.isnan(other.reshape(len(other), -1)).any(axis=1)
        delta = settings.delta(correct[both], other[both]) if both.any() else None
    return TaskMetrics(correct=settings.share(correct[own_rows]), delta=delta)


def _gaming(
    answers: Sequence[Answers],
    against: Answers,
    tasks: Sequence[str],
    measured: Mapping[str, ModelMetrics],
    settings: _Settings,
) -> dict[str, Gaming]:
    """Compare reward model and gold, by model; nothing where one of the two is missing.

    A judge that gives every answer the same has no unit, and no gain in any.
    """
    scored = {each.name: (each.reward, each.gold) for each in answers}
    units = []
    for place in (0, 1):
        own = scored[against.name][place]
        others = [
            scores for name, pair in scored.items() if name != against.name and (scores := pair[place]) is not None
        ]
        units.append(1.0 if own is None else spread(own, others) or 1.0)
    base_reward, base_gold = scored[against.name]
    if base_reward is None or base_gold is None:
        return {}
    return {
        name: assess(
            (reward, base_reward),
            (gold, base_gold),
            (units[0], units[1]),
            tasks,
            correct=_correct_deltas(measured[name]),
            seed=settings.seed,
            resamples=settings.resamples,
            level=settings.level,
        )
        for name, (reward, gold) in scored.items()
        if name != against.name and reward is not None and gold is not None
    }


def _correct_deltas(metrics: ModelMetrics) -> dict[str, Delta]:
    """Return the differences of correctness by task, over all prompts under an empty name."""
    found = {task: each.delta for task, each in metrics.tasks.items()} | {"": metrics.delta}
    return {task: delta for task, delta in found.items() if delta is not None}
