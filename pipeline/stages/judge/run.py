"""Judges pairs of responses and writes those with a preference; `config.py` names the references."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.evaluation.judges.measures import JudgedPair, figures_of
from pipeline.evaluation.judges.pairs import REPEATED, Pair, pairs_of
from pipeline.evaluation.judges.report import Spent, metrics_of, page
from pipeline.evaluation.judges.verdicts import OrderVerdict
from pipeline.evaluation.stats.estimate import rounded, stable
from pipeline.plain_data import JsonObject
from pipeline.records.shapes.plain import mark_of
from pipeline.stage import StageContext, StageResult
from pipeline.stages.judge.calls import Verdicts, failure_of, judge_by_calls
from pipeline.stages.judge.config import Config
from pipeline.stages.judge.scores import judge_by_comparing, judge_by_scores

PREFERENCES, VERDICTS, REPORT = "preferences.jsonl", "verdicts.jsonl", "report.md"
"""Files of the artifact."""

LEFT_OUT = (
    ("empty", "answer", "is empty and in no pair", "are empty and in no pair"),
    ("names a model", "answer", "names a model and is in no pair", "name a model and are in no pair"),
    (REPEATED, "pair", "repeats another and is left out", "repeat others and are left out"),
)
"""What is said of responses and pairs that are not used: noun, and the rest of the sentence for one and for many."""


def run(ctx: StageContext, config: Config) -> StageResult:
    """Judge, write, and report how the judge judges."""
    started = time.perf_counter()
    pairs = _pairs(ctx, config)
    verdicts = _verdicts(ctx, config, pairs)
    judged = verdicts.judged
    told_in = ctx.work / VERDICTS
    failure = failure_of(verdicts, config.max_errors, told_in)
    if failure is not None:
        _write(told_in, map(_verdict_row, judged))
        raise failure
    preferences = [_preference(one) for one in judged if one.outcome in ("first", "second")]
    people = ctx.load_rows("people") if config.people is not None else None
    people_rows = [*people.train, *people.held_out] if people is not None else []
    figures = figures_of(judged, seed=ctx.seed, people=people_rows)
    if people is not None and figures.people is None:
        ctx.note("people: they compared none of these pairs, so no agreement is known")
    if figures.errors:
        are = agreeing(figures.errors, "has", "have")
        ctx.note(
            f"{counted(figures.errors, 'pair')} {are} no verdict and {agreeing(figures.errors, 'is', 'are')} left out"
        )
    if not preferences:
        _write(told_in, map(_verdict_row, judged))
        ties, flips = counted(figures.ties + figures.equal, "tie"), counted(figures.flips, "verdict")
        statement = f"no pair has a preference: {ties}, and {flips} that flipped with the order"
        remedy = f"{told_in} has what the judge said; bring more pairs, or another judge"
        raise PipelineError(Problem(statement, "one at least", remedy))
    _write(ctx.out / PREFERENCES, preferences)
    _write(ctx.out / VERDICTS, map(_verdict_row, judged))
    (ctx.out / REPORT).write_text(page(figures, verdicts.spent, _name(ctx, config)), encoding="utf-8")
    ctx.report(judge={"calls_sent": verdicts.calls, "cached": verdicts.cached})
    return StageResult(
        metrics={**metrics_of(figures, verdicts.spent), "cached": float(verdicts.cached)},
        tokens=verdicts.spent.tokens,
        trainer_seconds=time.perf_counter() - started,
        rows={"pairs": len(preferences), "judged": len(judged)},
        summary=f"{counted(len(preferences), 'preference')} from {counted(len(judged), 'pair')}"
        + (f"; {counted(figures.flips, 'verdict')} flipped" if figures.flip_rate is not None else ""),
    )


def _pairs(ctx: StageContext, config: Config) -> list[Pair]:
    """Return the pairs to judge, and say what is left out.

    Raises:
        PipelineError: there is none.
    """
    rows = ctx.load_rows("data")
    choice = pairs_of(
        [*rows.train, *rows.held_out],
        rows.shape,
        per_prompt=config.pairs_per_prompt,
        limit=config.limit,
        seed=ctx.seed,
    )
    for reason, noun, one, many in LEFT_OUT:
        if number := choice.left_out[reason]:
            ctx.note(f"{counted(number, noun)} {agreeing(number, one, many)}")
    if config.pairs_per_prompt is not None and rows.shape == "preference":
        ctx.note("pairs_per_prompt has no effect: the data has pairs, not candidates")
    if not choice.pairs:
        raise PipelineError(
            Problem("no two answers to compare", "one pair at least", "raise n of the stage that samples")
        )
    return choice.pairs


def _verdicts(ctx: StageContext, config: Config, pairs: Sequence[Pair]) -> Verdicts:
    if config.endpoint is not None:
        return judge_by_calls(ctx, config.endpoint, pairs, config.max_errors)
    judge = judge_by_comparing if config.pairwise else judge_by_scores
    return Verdicts(judge(ctx, config, pairs), Spent(), 0, 0, "")


def _name(ctx: StageContext, config: Config) -> str:
    if config.endpoint is not None:
        return config.endpoint.model
    return config.function or ctx.input("reward").name


def _preference(one: JudgedPair) -> JsonObject:
    """Return a row to train on; its margin is the probability of the chosen response less that of the other."""
    assert one.probability is not None, "a preference has a probability"
    pair = one.pair
    chosen, rejected = (pair.first, pair.second) if one.outcome == "first" else (pair.second, pair.first)
    row: JsonObject = {"prompt": pair.row["prompt"], "chosen": chosen, "rejected": rejected, **mark_of(pair.row)}
    if "tools" in pair.row:
        row["tools"] = pair.row["tools"]
    return {**row, "margin": rounded(abs(2 * one.probability - 1))}


def _verdict_row(one: JudgedPair) -> JsonObject:
    """Return a pair with everything that the judge said of it."""
    row: JsonObject = {
        "row": one.pair.place,
        "prompt": one.pair.row["prompt"],
        "first": one.pair.first,
        "second": one.pair.second,
        "outcome": one.outcome,
        "probability": one.probability,
    }
    if one.orders:
        row["orders"] = [_order(verdict, one.unreadable.get(i, "")) for i, verdict in enumerate(one.orders)]
    if one.scores is not None:
        row["scores"] = list(one.scores)
    if one.error:
        row["error"] = one.error
    return row


def _order(verdict: OrderVerdict | None, unreadable: str) -> JsonObject | None:
    """Return the verdict in one order, or a reply without one; the second order shows the second response as A."""
    if verdict is None:
        return {"verdict": None, "reply": unreadable} if unreadable else None
    row: JsonObject = {"verdict": verdict.choice, "probability": verdict.probability}
    if verdict.criteria:
        row["criteria"] = dict(verdict.criteria)
    if verdict.text:
        row["reply"] = verdict.text
    return row


def _write(file: Path, rows: Iterable[JsonObject]) -> None:
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(stable(row), ensure_ascii=False) + "\n" for row in rows)
