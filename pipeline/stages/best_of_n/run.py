"""Chooses the best of several answers; `config.py` names the references."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.evaluation.best_of_n.curve import ScoredAnswers, measure, write_curve
from pipeline.evaluation.best_of_n.record import BestOfN
from pipeline.evaluation.best_of_n.render import conclusion
from pipeline.evaluation.stats.estimate import rounded
from pipeline.evaluation.stats.intervals import Bootstrap
from pipeline.plain_data import JsonObject, Row, ShapedRow
from pipeline.preferences.candidates import OF_SAMPLING, is_usable
from pipeline.records.shapes.plain import mark_of
from pipeline.rl.rewards.functions import call_reward
from pipeline.rl.rewards.sources import RewardSources
from pipeline.rl.rewards.texts import Answered, scores_by_model, unreadable
from pipeline.stage import StageContext, StageResult
from pipeline.stages.best_of_n.config import Config
from pipeline.training.arguments import prepare_torch
from pipeline.training.data.encoding import nothing_encoded
from pipeline.training.data.sources import set_faults_aside

DEMOS, PAIRS = "demos.jsonl", "pairs.jsonl"
"""Files of the artifact."""


@dataclass(frozen=True)
class Answer:
    """An answer that may be chosen.

    Attributes:
        text: the answer.
        times: how often it was sampled.
        policies: models and temperatures of its samples; an empty text stands for one that is not known.
        score: its score.
        gold: its gold score; None without gold.
    """

    text: str
    times: int
    policies: frozenset[str]
    score: float = 0.0
    gold: float | None = None


@dataclass(frozen=True)
class Choice:
    """What is chosen of a prompt's answers.

    Attributes:
        best: the answer with the highest score.
        other: the worse answer of the pair; None if there is none.
        equals: number of answers with the highest score, of which `best` was drawn.
    """

    best: Answer
    other: Answer | None
    equals: int


def run(ctx: StageContext, config: Config) -> StageResult:
    """Score the answers, choose, and write demonstrations, pairs and the report."""
    ctx = prepare_torch(ctx)
    started = time.perf_counter()
    rows = _rows(ctx)
    answers = _scored(ctx, config, rows, [_usable(row) for row in rows])
    choices = [
        _choice(own, config.against, random.Random(f"{ctx.seed}/{i}")) if own else None for i, own in enumerate(answers)
    ]
    _tell(ctx, rows, answers, choices)
    demos, pairs = _write(ctx.out, rows, choices)
    if not demos:
        raise PipelineError(
            Problem("no prompt has an answer to choose", "one that is not empty", "check the candidates")
        )
    curve = _curve(ctx, config, answers)
    write_curve(curve, ctx.out)
    last = curve.last
    metrics = {
        "demos": float(demos),
        "pairs": float(pairs),
        "n": float(last.n),
        "score_of_one": curve.points[0].score.value,
    }
    metrics |= {"score": last.score.value, "score_low": last.score.low, "score_high": last.score.high}
    if last.kl is not None:
        metrics["kl_bound"] = last.kl
    if curve.gold_gain is not None:
        gain = curve.gold_gain
        metrics |= {"gold_gain": gain.value, "gold_gain_low": gain.low, "gold_gain_high": gain.high}
    return StageResult(
        metrics={name: rounded(value) for name, value in metrics.items()},
        trainer_seconds=time.perf_counter() - started,
        rows={"prompts": len(rows), "demos": demos, "pairs": pairs},
        summary=f"{counted(demos, 'demonstration')}, {counted(pairs, 'pair')}. {conclusion(curve).replace('**', '')}",
    )


def _rows(ctx: StageContext) -> list[ShapedRow]:
    """Return the rows whose prompts every reward model can render; the others join the source's rejected rows."""
    rows = ctx.load_rows("data")
    sides = (rows.train, rows.held_out)
    faults = [unreadable(ctx, "reward", side) for side in sides]
    train, held_out = (nothing_encoded()._replace(faults=[own[i] for i in sorted(own)]) for own in faults)
    set_faults_aside(ctx, "data", rows, train, held_out)
    return [row for side, own in zip(sides, faults, strict=True) for i, row in enumerate(side) if i not in own]


def _usable(row: Row) -> list[Answer]:
    """Return the answers of a row that may be chosen."""
    answers = []
    for one in row["candidates"]:
        if is_usable(one):
            also = [str(origin).rpartition("/")[0] for origin in one.get("also") or ()]
            answers.append(Answer(one["text"], 1 + len(also), frozenset([_policy(one), *also])))
    return answers


def _policy(candidate: Row) -> str:
    """Return model and temperature of an answer, as `also` names them; empty if they are not known."""
    model, temperature = candidate.get("model"), candidate.get("temperature")
    return f"{model}/{temperature:g}" if model and isinstance(temperature, int | float) else ""


def _scored(
    ctx: StageContext, config: Config, rows: Sequence[ShapedRow], answers: Sequence[Sequence[Answer]]
) -> list[list[Answer]]:
    """Return the answers with their scores."""
    asked = [{name: value for name, value in row.items() if name not in OF_SAMPLING} for row in rows]
    flat = [(row, one.text) for row, own in zip(asked, answers, strict=True) for one in own]
    answered = Answered([row for row, _ in flat], [text for _, text in flat])
    parts: dict[str, list[float]] = scores_by_model(ctx, "reward", answered)
    parts |= {
        f"{spec} {i}": _by_function(ctx, spec, answered, may_skip_rows=True)
        for i, spec in enumerate(config.reward_functions)
    }
    combined = RewardSources(tuple(parts), tuple(config.weights), (), config.reward_combine).combined(parts)
    scores = iter(map(rounded, combined))
    gold = iter(_by_function(ctx, config.gold, answered) if config.gold else [])
    return [
        [Answer(one.text, one.times, one.policies, next(scores), next(gold, None)) for one in own] for own in answers
    ]


def _by_function(ctx: StageContext, spec: str, answered: Answered, *, may_skip_rows: bool = False) -> list[float]:
    if ctx.functions is None:
        raise PipelineError(Problem(f"no way to load {spec}", stage=ctx.name))
    completions = [[{"role": "assistant", "content": text}] for text in answered.texts]
    function = ctx.functions(spec)
    scores = call_reward(function, spec, answered.rows, completions, may_skip_rows=may_skip_rows)
    return [rounded(value) for value in scores]


def _choice(answers: Sequence[Answer], against: str, rng: random.Random) -> Choice:
    """Choose the best answer and one that is worse; equals are drawn at random."""
    highest, lowest = max(one.score for one in answers), min(one.score for one in answers)
    best = [one for one in answers if one.score == highest]
    worse = [one for one in answers if one.score < highest and (against == "random" or one.score == lowest)]
    return Choice(rng.choice(best), rng.choice(worse) if worse else None, len(best))


def _curve(ctx: StageContext, config: Config, answers: Sequence[Sequence[Answer]]) -> BestOfN:
    """Measure the best of n; an answer that was sampled several times counts as often."""
    policies = {policy for own in answers for one in own for policy in one.policies}
    prompts = [
        ScoredAnswers(
            [one.score for one in own for _ in range(one.times)],
            [one.gold for one in own if one.gold is not None for _ in range(one.times)],
        )
        for own in answers
    ]
    return measure(
        prompts, Bootstrap(ctx.seed, config.resamples), is_one_policy=len(policies) == 1 and "" not in policies
    )


def _tell(
    ctx: StageContext, rows: Sequence[Row], answers: Sequence[Sequence[Answer]], choices: Sequence[Choice | None]
) -> None:
    """Say which answers were not chosen from, and which prompts have no pair, and why."""
    candidates = [one for row in rows for one in row["candidates"]]
    named = sum(bool(one.get("names_model")) for one in candidates)
    empty = sum(not one["text"].strip() for one in candidates)
    if named:
        names = agreeing(named, "names a model and is", "name a model and are")
        ctx.note(f"{counted(named, 'answer')} {names} not chosen: the model would learn to take that name")
    if empty:
        ctx.note(f"{counted(empty, 'answer')} {agreeing(empty, 'is', 'are')} empty and not chosen")
    drawn = "one of them, drawn at random, is the demonstration"
    for count, what in (
        (sum(choice is None for choice in choices), "no answer to choose: left out"),
        (sum(len(own) == 1 for own in answers), "a single answer: it is the demonstration, and there is no pair"),
        (
            sum(
                len(own) > 1 and choice is not None and choice.other is None
                for own, choice in zip(answers, choices, strict=True)
            ),
            f"answers of equal scores only: {drawn}, and there is no pair",
        ),
        (
            sum(choice is not None and choice.other is not None and choice.equals > 1 for choice in choices),
            f"several best answers: {drawn}",
        ),
    ):
        if count:
            ctx.note(f"{counted(count, 'prompt')} {agreeing(count, 'has', 'have')} {what}")


def _write(out: Path, rows: Sequence[Row], choices: Sequence[Choice | None]) -> tuple[int, int]:
    """Write demonstrations and pairs; return their numbers."""
    demos = pairs = 0
    with (out / DEMOS).open("w", encoding="utf-8") as demo_file, (out / PAIRS).open("w", encoding="utf-8") as pair_file:
        for row, choice in zip(rows, choices, strict=True):
            if choice is None:
                continue
            beside: JsonObject = {**({"tools": row["tools"]} if row.get("tools") else {}), **mark_of(row)}
            best = {"role": "assistant", "content": choice.best.text}
            demo_file.write(json.dumps({"messages": [*row["prompt"], best], **beside}, ensure_ascii=False) + "\n")
            demos += 1
            if choice.other is not None:
                sides = {"chosen": [best], "rejected": [{"role": "assistant", "content": choice.other.text}]}
                pair = {"prompt": row["prompt"], **sides, "margin": rounded(choice.best.score - choice.other.score)}
                pair_file.write(json.dumps({**pair, **beside}, ensure_ascii=False) + "\n")
                pairs += 1
    return demos, pairs
