"""The answers of models to the prompts of an evaluation, and their conversion to and from samples.

Owns `Answers`, the input of a comparison, and the conversion to the rows of `samples.jsonl` and back. Knows nothing of
statistics beyond which model won a prompt.

Shape legend: N prompts, S samples per prompt (scores may be (N,) or (N, S)).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pipeline.errors import PipelineError, Problem, counted, listed, nearest
from pipeline.evaluation.report.record import Judge
from pipeline.evaluation.report.samples import Answer, Result, Sample, StopReason
from pipeline.evaluation.stats.divergence import SequenceKL
from pipeline.evaluation.stats.intervals import Floats
from pipeline.evaluation.stats.winrate import outcomes

_EVEN = 0.5
_JUDGES: tuple[Judge, ...] = ("gold", "reward")


@dataclass(frozen=True)
class Prompt:
    """A prompt that all models answered.

    Attributes:
        text: the prompt as readable text.
        task: group for correctness per task; empty when the data has none.
        row: index among the prompts of the data source.
        seed: seed of the answers' random numbers, together with `row`.
        reference: the reference answer in the data.
    """

    text: str
    task: str = ""
    row: int | None = None
    seed: int | None = None
    reference: Any = None


@dataclass(frozen=True)
class Answers:
    """The answers and scores of one model, in the order of the prompts.

    Attributes:
        name: name of the model in the report, e.g. ``dpo`` or ``sft (greedy)``.
        responses: one text per prompt, shown among the samples (the first when several were sampled).
        lengths: tokens per response, (N,) or (N, S); None when unknown.
        ended: whether the response ended with EOS before the limit, (N,) or (N, S); None when unknown.
        gold: scores by the gold function, (N,) or (N, S).
        reward: scores by the reward model, (N,) or (N, S).
        correct: 1, 0, or a share, (N,) or (N, S); NaN or None for a prompt without a checkable answer.
        kl: k1 estimate of each response's KL to the reference, its log-ratio under the two models, (N,); NaN for an
            empty response. None for the reference itself and for greedy answers, which are not samples.
        kl_k3: the k3 estimate of the same.
        nll: negative log-likelihood of each response under the baseline in nats, (N,); NaN for an empty response.
        stop_reasons: why each response stopped; derived from `ended` when empty.
        ref: ref of the checkpoint in the store.
        is_variant: whether it is the baseline's checkpoint with other decoding.
    """

    name: str
    responses: Sequence[str]
    lengths: ArrayLike | None
    ended: ArrayLike | None
    gold: ArrayLike | None = None
    reward: ArrayLike | None = None
    correct: Sequence[float | None] | ArrayLike | None = None
    kl: ArrayLike | None = None
    kl_k3: ArrayLike | None = None
    nll: ArrayLike | None = None
    stop_reasons: Sequence[StopReason] = ()
    ref: str = ""
    is_variant: bool = False

    @property
    def correctness(self) -> Floats | None:
        """Correctness as floats, NaN for a prompt without a checkable answer."""
        return None if self.correct is None else np.asarray(self.correct, dtype=np.float64)

    @property
    def sequence_kl(self) -> SequenceKL | None:
        """KL sums of each response, without empty responses; None when KL was not measured."""
        if self.kl is None or self.kl_k3 is None or self.lengths is None:
            return None
        k1_N, k3_N, tokens_N = (np.asarray(each, dtype=np.float64) for each in (self.kl, self.kl_k3, self.lengths))
        is_measured = ~np.isnan(k1_N)
        return SequenceKL(k1_N[is_measured], k3_N[is_measured], tokens_N[is_measured]) if is_measured.any() else None

    @property
    def nll_and_tokens(self) -> tuple[Floats, Floats] | None:
        """Negative log-likelihood and tokens of each response that is not empty, (N,) each; None if not measured."""
        if self.nll is None or self.lengths is None:
            return None
        nll_N, tokens_N = (np.asarray(each, dtype=np.float64) for each in (self.nll, self.lengths))
        is_measured = ~np.isnan(nll_N)
        return (nll_N[is_measured], tokens_N[is_measured]) if is_measured.any() else None

    def scores(self, judge: Judge) -> Floats | None:
        """Return the scores by one judge, (N,) or (N, S)."""
        scores = self.gold if judge == "gold" else self.reward
        return None if scores is None else np.asarray(scores, dtype=np.float64)


def samples(
    answers: Sequence[Answers], prompts: Sequence[Prompt], *, baseline: str, judge: Judge | None = None
) -> list[Sample]:
    """Return one sample per prompt, with the answers and scores of all models.

    Args:
        answers: one entry per model.
        prompts: the prompts of the evaluation.
        baseline: name of the model the others are compared with.
        judge: the judge whose scores are shown.

    Raises:
        PipelineError: as `compare` does.
    """
    baseline_answers = checked(answers, prompts, baseline)
    judge = judge or default_judge(answers)
    columns = {each.name: _columns(each, baseline_answers, judge) for each in answers}
    return [
        Sample(
            prompt=prompt.text,
            task=prompt.task,
            row=prompt.row,
            seed=prompt.seed,
            reference=prompt.reference,
            answers={name: _answer(values, row) for name, values in columns.items()},
        )
        for row, prompt in enumerate(prompts)
    ]


def _answer(columns: Mapping[str, Sequence[Any]], row: int) -> Answer:
    return Answer(**{key: values[row] for key, values in columns.items()})


def from_samples(samples: Sequence[Sample]) -> tuple[list[Answers], list[Prompt]]:
    """Invert `samples`; several answers per prompt are not recovered, but their means.

    Samples of an older version contain neither length nor stop reason; both are then None.

    Raises:
        PipelineError: a model has no answer to a prompt.
    """
    names = list(dict.fromkeys(name for each in samples for name in each.answers))
    missing = [
        Problem(
            f"`{name}` has answers to {count} of {counted(len(samples), 'prompt')}",
            "one to every prompt",
            "evaluate again",
        )
        for name in names
        if (count := sum(name in each.answers for each in samples)) < len(samples)
    ]
    if missing:
        raise PipelineError(*missing)
    prompts = [Prompt(each.prompt, each.task, each.row, each.seed, each.reference) for each in samples]

    def column(answers: Sequence[Answer], key: str) -> list[float] | None:
        values = [getattr(answer, key) for answer in answers]
        return None if all(value is None for value in values) else [np.nan if v is None else v for v in values]

    models = []
    for name in names:
        answers = [each.answers[name] for each in samples]
        stops = [answer.stop_reason for answer in answers if answer.stop_reason is not None]
        lengths = [answer.length for answer in answers if answer.length is not None]
        are_known = len(stops) == len(answers)
        models.append(
            Answers(
                name=name,
                responses=[answer.text for answer in answers],
                lengths=lengths if len(lengths) == len(answers) else None,
                ended=[stop == "eos" for stop in stops] if are_known else None,
                stop_reasons=stops if are_known else (),
                gold=column(answers, "gold"),
                reward=column(answers, "reward"),
                correct=column(answers, "correct"),
                kl=column(answers, "kl"),
                kl_k3=column(answers, "kl_k3"),
                nll=column(answers, "nll"),
            )
        )
    return models, prompts


def default_judge(answers: Sequence[Answers]) -> Judge:
    """Return ``gold`` when every model was scored by the gold function, else ``reward``.

    Raises:
        PipelineError: neither scored every model.
    """
    for judge in _JUDGES:
        if all(each.scores(judge) is not None for each in answers):
            return judge
    raise PipelineError(
        Problem("no judge scored all models", "gold scores or rewards", "give `gold` or `reward` to the stage")
    )


def _columns(model: Answers, baseline: Answers, judge: Judge) -> dict[str, Sequence[Any]]:
    """Return the fields of one model's `Answer` records as columns; several answers per prompt are averaged."""
    nothing = [None] * len(model.responses)

    def column(values: ArrayLike | None) -> Sequence[float | None]:
        means = _per_prompt(None if values is None else np.asarray(values, dtype=np.float64))
        return nothing if means is None else [None if np.isnan(value) else float(value) for value in means]

    own, other = model.scores(judge), baseline.scores(judge)
    results: Sequence[Result | None] = nothing
    if model.name != baseline.name and own is not None and other is not None:
        results = ["win" if won > _EVEN else "loss" if won < _EVEN else "tie" for won in outcomes(own, other)]
    stops: Sequence[StopReason | None] = model.stop_reasons or nothing
    if not model.stop_reasons and model.ended is not None:
        ended = np.asarray(model.ended, dtype=np.float64).reshape(len(nothing), -1).min(axis=1)
        stops = ["eos" if one else "max_new_tokens" for one in ended]
    return {
        "text": model.responses,
        "score": column(own),
        "gold": column(model.gold),
        "reward": column(model.reward),
        "correct": column(model.correctness),
        "result": results,
        "kl": column(model.kl),
        "kl_k3": column(model.kl_k3),
        "nll": column(model.nll),
        "length": column(model.lengths),
        "stop_reason": stops,
    }


def _per_prompt(values: Floats | None) -> Floats | None:
    return None if values is None else values.reshape(len(values), -1).mean(axis=1)


def checked(answers: Sequence[Answers], prompts: Sequence[Prompt], baseline: str) -> Answers:
    """Check that the answers of all models can be paired, and return the baseline's."""
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
                statement = f"`{each.name}` has {len(np.asarray(values))} {column}"
                problems.append(Problem(statement, f"one for each of the {counted(len(prompts), 'prompt')}"))
        problems += _unscored(each)
    if problems:
        raise PipelineError(*problems)
    return answers[names.index(baseline)]


def _unscored(each: Answers) -> Iterator[Problem]:
    """Yield a problem for each judge with missing or infinite scores, on which no win can be decided."""
    for judge in _JUDGES:
        scores = each.scores(judge)
        if scores is not None and not np.isfinite(scores).all():
            bad = int((~np.isfinite(scores.reshape(len(scores), -1))).any(axis=1).sum())
            statement = f"`{each.name}` has no finite {judge} score for {bad} of {counted(len(scores), 'prompt')}"
            yield Problem(statement, "a finite number for each", "correct what scores, or leave these prompts out")
