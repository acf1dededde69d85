"""From the answers of several models to the report that compares them.

Owns which statistic each metric is given. Knows nothing of how answers were sampled or scored, nor how they are shown.

Shape legend: N prompts, S samples per prompt (scores may be (N,) or (N, S)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pipeline.errors import PipelineError, Problem, listed, nearest
from pipeline.evaluation.differences import paired_difference
from pipeline.evaluation.divergence import Divergence
from pipeline.evaluation.estimate import Delta, Estimate
from pipeline.evaluation.gaming import assess, spread
from pipeline.evaluation.intervals import LEVEL, RESAMPLES, Floats, mean_interval, wilson
from pipeline.evaluation.report import Answer, Gaming, Judge, ModelMetrics, Report, Sample, TaskMetrics, WinCounts
from pipeline.evaluation.winrate import win_rate

_SHARE = (0.0, 1.0)


@dataclass(frozen=True)
class Prompt:
    """A prompt all models answered.

    Attributes:
        text: as a person reads it.
        task: group for correctness per task; empty when the data has none.
    """

    text: str
    task: str = ""


@dataclass(frozen=True)
class Answers:
    """What one model answered to every prompt, in the order of the prompts.

    Attributes:
        name: of the model in the report, e.g. ``dpo`` or ``sft (greedy)``.
        responses: one text per prompt, shown among the samples (the first one when several were sampled).
        lengths: tokens per response, (N,) or (N, S).
        ended: whether the response ended with EOS before the limit, (N,) or (N, S).
        gold: scores by the gold function, (N,) or (N, S).
        reward: scores by the reward model, (N,) or (N, S).
        correct: 1, 0, or a share, (N,) or (N, S); NaN or None where the prompt has no checkable answer.
        divergence: from the reference; none for the reference itself or for greedy answers, which sample nothing.
        ref: how the store names the checkpoint.
    """

    name: str
    responses: Sequence[str]
    lengths: ArrayLike
    ended: ArrayLike
    gold: ArrayLike | None = None
    reward: ArrayLike | None = None
    correct: Sequence[float | None] | ArrayLike | None = None
    divergence: Divergence | None = None
    ref: str = ""

    def scores(self, judge: Judge) -> Floats | None:
        """Return the scores by one judge, (N,) or (N, S)."""
        scores = self.gold if judge == "gold" else self.reward
        return None if scores is None else np.asarray(scores, dtype=np.float64)


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
    against = _checked(answers, prompts, baseline)
    judge = judge or default_judge(answers)
    settings = _Settings(seed=seed, resamples=resamples, level=level, judge=judge)
    tasks = [prompt.task for prompt in prompts]
    measured = {each.name: _model(each, against, tasks, settings) for each in answers}
    gaming = _gaming(answers, against, tasks, settings)
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
        level=level,
        resamples=resamples,
        models=measured,
    )


def samples(
    answers: Sequence[Answers], prompts: Sequence[Prompt], *, baseline: str, judge: Judge | None = None
) -> list[Sample]:
    """Return every prompt with the answers and scores of all models, in the order of the prompts.

    Args:
        answers: one entry per model.
        prompts: what was asked.
        baseline: name of the model the others are compared with.
        judge: whose scores are shown.

    Raises:
        PipelineError: as `compare` does.
    """
    _checked(answers, prompts, baseline)
    judge = judge or default_judge(answers)
    found = []
    columns = {each.name: (_per_prompt(each.scores(judge)), _per_prompt(_correct(each))) for each in answers}
    for row, prompt in enumerate(prompts):
        shown = {}
        for each in answers:
            scores, correct = columns[each.name]
            shown[each.name] = Answer(
                text=each.responses[row],
                score=None if scores is None else float(scores[row]),
                correct=None if correct is None or np.isnan(correct[row]) else float(correct[row]),
            )
        found.append(Sample(prompt=prompt.text, task=prompt.task, answers=shown))
    return found


def default_judge(answers: Sequence[Answers]) -> Judge:
    """Return ``gold`` when every model was scored by the gold function, else ``reward``.

    Raises:
        PipelineError: neither scored every model.
    """
    judges: tuple[Judge, ...] = ("gold", "reward")
    for judge in judges:
        if all(each.scores(judge) is not None for each in answers):
            return judge
    raise PipelineError(
        Problem("no judge scored all models", "gold scores or rewards", "give `gold` or `reward` to the stage")
    )


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
    return ModelMetrics(
        ref=each.ref,
        win_rate=won.estimate if won else None,
        win_counts=WinCounts(**won.model_dump(include={"wins", "ties", "losses", "decided", "p_value"}))
        if won
        else None,
        gold=None if gold is None else settings.mean(gold),
        reward=None if reward is None else settings.mean(reward),
        correct=overall.correct if overall else None,
        delta=overall.delta if overall else None,
        kl=each.divergence.k1_per_sequence if each.divergence else None,
        kl_k3=each.divergence.k3_per_sequence if each.divergence else None,
        kl_per_token=each.divergence.k1_per_token if each.divergence else None,
        length=settings.mean(each.lengths),
        eos_rate=settings.share(each.ended),
        tasks={task: metrics for task, metrics in per_task.items() if metrics},
    )


def _task(each: Answers, against: Answers, chosen: np.ndarray, settings: _Settings) -> TaskMetrics | None:
    """Measure correctness on some prompts; none when no prompt among them has a checkable answer."""
    correct, other = _correct(each), _correct(against)
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
    answers: Sequence[Answers], against: Answers, tasks: Sequence[str], settings: _Settings
) -> dict[str, Gaming]:
    """Compare reward model and gold, by model; nothing where one of the two is missing or never varies."""
    scored = {each.name: (each.reward, each.gold) for each in answers}
    units = []
    for place in (0, 1):
        own = scored[against.name][place]
        others = [
            scores for name, pair in scored.items() if name != against.name and (scores := pair[place]) is not None
        ]
        units.append(0.0 if own is None else spread(own, others))
    base_reward, base_gold = scored[against.name]
    if base_reward is None or base_gold is None or 0 in units:
        return {}
    return {
        name: assess(
            (reward, base_reward),
            (gold, base_gold),
            (units[0], units[1]),
            tasks,
            seed=settings.seed,
            resamples=settings.resamples,
            level=settings.level,
        )
        for name, (reward, gold) in scored.items()
        if name != against.name and reward is not None and gold is not None
    }


def _correct(each: Answers) -> Floats | None:
    """Return correctness as floats, NaN where a prompt has no checkable answer."""
    return None if each.correct is None else np.asarray(each.correct, dtype=np.float64)


def _per_prompt(values: Floats | None) -> Floats | None:
    return None if values is None else values.reshape(len(values), -1).mean(axis=1)


def _checked(answers: Sequence[Answers], prompts: Sequence[Prompt], baseline: str) -> Answers:
    """Return the baseline's answers, after checking that all can be paired."""
    names = [each.name for each in answers]
    problems = []
    if not prompts:
        problems.append(Problem("no prompts", "one or more", "check that the data source has rows left"))
    if baseline not in names:
        problems.append(Problem(f"baseline `{baseline}`", f"one of {listed(names)}", nearest(baseline, names)))
    problems += [
        Problem(f"model `{name}` {names.count(name)} times", "once")
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    for each in answers:
        columns = {
            "responses": each.responses,
            "lengths": each.lengths,
            "ended": each.ended,
            "gold": each.gold,
            "reward": each.reward,
            "correct": each.correct,
        }
        for column, values in columns.items():
            if values is not None and len(np.asarray(values)) != len(prompts):
                found = f"`{each.name}` has {len(np.asarray(values))} {column}"
                problems.append(Problem(found, f"one for each of the {len(prompts)} prompts"))
    if problems:
        raise PipelineError(*problems)
    return answers[names.index(baseline)]
