"""Writes the pairs that people prefer from their labels; `config.py` says how they are collected."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

from pipeline.endpoints.answers import AnswerEndpoint
from pipeline.errors import ExitCode, PipelineError, Problem, agreeing, counted, listed
from pipeline.evaluation.stats.annotators import krippendorff_alpha, raw_agreement
from pipeline.plain_data import Row
from pipeline.preferences import need
from pipeline.preferences.agreement import edited_pairs, exported, label_table
from pipeline.preferences.anchors import ledger_name, note_head
from pipeline.preferences.assignment import Assignment
from pipeline.preferences.candidates import items_to_label
from pipeline.preferences.events import LedgerEvent
from pipeline.preferences.items import Item
from pipeline.preferences.labels import Batch, State
from pipeline.preferences.live.dialogues import Dialogues
from pipeline.preferences.ranking_rows import ranking_rows
from pipeline.preferences.rankings import Implied, implied, tau_b
from pipeline.preferences.rating_rows import rating_rows
from pipeline.preferences.stored_items import ids_of
from pipeline.records.shapes.plain import mark_of
from pipeline.stage import Rows, StageContext, StageResult
from pipeline.stages.collect.aggregation import aggregated
from pipeline.stages.collect.config import Config, ledger_names, ledger_url

FILE = "preferences.jsonl"
"""File of the artifact with the rows to train on."""

RATINGS = "ratings.jsonl"
"""File of the artifact with what people said in each dimension, where the stage has dimensions."""

RANKINGS = "rankings.jsonl"
"""File of the artifact with the rankings, where people rank."""


def _batch(ctx: StageContext, config: Config, rows: Rows | None, events: Sequence[LedgerEvent]) -> Batch:
    """Return the pairs or groups of the data, or the pairs that the models made in the dialogues so far."""
    if rows is None:
        return Batch(Dialogues().take(events).items(), total=config.talk.labels)
    items, left_out, alone, is_ranked = items_to_label(rows, config, ctx.seed)
    if is_ranked and (problems := config.ranking_problems()):
        raise PipelineError(*problems)
    noun, few = ("group", "three") if is_ranked else ("pair", "two")
    if alone:
        has = agreeing(alone, "has", "have")
        ctx.note(f"{counted(alone, 'prompt')} {has} no {few} different answers to {'rank' if is_ranked else 'compare'}")
    if left_out:
        were, they = agreeing(left_out, "was", "were"), agreeing(left_out, "it repeats", "they repeat")
        same = "two" if is_ranked else "both"
        ctx.note(f"{counted(left_out, noun)} {were} left out: {they} another, or {same} answers are the same")
    if not items:
        raise PipelineError(Problem(f"no prompt has {few} different answers", remedy="bring more answers"))
    return Batch(items, config.labels_per_item, config.overlap)


def run(ctx: StageContext, config: Config) -> StageResult:
    """Write the preferred pairs; while labels are missing, raise with their number."""
    need("sqlalchemy", "krippendorff")
    from pipeline.preferences.ledger import Ledger  # sqlalchemy is of the optional extra `collect`

    store = ctx.work.parents[2]
    ledger = Ledger(ledger_url(config, store), config.batch or ctx.name)
    events = ledger.events()
    state = State().take(events)
    rows = None if config.is_live else ctx.load_rows("data")
    batch = _batch(ctx, config, rows, events)
    items = batch.items
    done, full = Assignment(batch, state).progress()
    if done < full:
        remedy = (
            f"`trueup collect RECIPE {ctx.name}` opens the labelling app; run again when they are there, or end with "
            f"those there are: `trueup labels close RECIPE {ctx.name}`"
        )
        statement = f"waiting for people: {done} of {counted(full, 'label')}"
        raise PipelineError(Problem(statement, "", remedy), exit_code=ExitCode.WAITING)
    pairs = implied(items, state)
    preferences, without = exported(pairs.items, pairs.state, aggregated(config.aggregate, pairs))
    if not preferences:
        raise PipelineError(Problem("no label prefers one answer", "at least one that does", "collect more pairs"))
    edits = edited_pairs(preferences, items)
    kept = [item for item in items if not _is_left_out(item.id, state)]
    _write(ctx.out / FILE, _marked(preferences, rows))
    if config.dimensions:
        _write(ctx.out / RATINGS, rating_rows(kept, state))
    if batch.is_ranked:
        _write(ctx.out / RANKINGS, ranking_rows(kept, state))
    metrics = {
        "labels": float(done),
        "pairs": float(len(preferences)),
        "edited": float(edits),
        "left_out": float(without.total()),
        **_beside(items, state),
        **_agreement(batch, state, pairs, ctx.seed),
    }
    if config.is_live:
        metrics |= _preferred(ctx, config.endpoints, events, state.dropped)
    reasons = ", ".join(f"{count} {why}" for why, count in sorted(without.items()))
    noun = "ranking" if batch.is_ranked else "label"
    note_head(store, ledger.batch, state.number, state.head, ledger.url)
    name = ledger_name(ledger.url, store)
    ctx.report(ledger={"batch": ledger.batch, "event": state.number, "head": state.head, "ledger": name})
    return StageResult(
        metrics=metrics,
        rows={"pairs": len(preferences), "labels": done},
        summary=f"{counted(len(preferences), 'preference')} from {counted(done, noun)}"
        + (f", {edits} of an edited answer" if edits else "")
        + (f"; no row of {reasons}" if reasons else ""),
    )


def _marked(preferences: Sequence[Row], rows: Rows | None) -> Iterable[Row]:
    """Return preferences with the mark of plain text where the row with their prompt has it."""
    read = [*rows.train, *rows.held_out] if rows else []
    plain = {json.dumps(row["prompt"]): mark_of(row) for row in read}
    return ({**row, **plain.get(json.dumps(row["prompt"]), {})} for row in preferences)


def _beside(items: Sequence[Item], state: State) -> dict[str, float]:
    """Return the number of skips and of flags of people, and of verdicts of leads."""
    kinds = Counter(one.kind for item in ids_of(items) if item in state.given for one in state.given[item].values())
    adjudicated = sum(item in state.adjudicated for item in ids_of(items))
    return {"skipped": float(kinds["skip"]), "flagged": float(kinds["flag"]), "adjudicated": float(adjudicated)}


def _agreement(batch: Batch, state: State, pairs: Implied, seed: int) -> dict[str, float]:
    """Return how far people agree; nothing of what has no value."""
    verdict_NA = label_table(pairs.items, pairs.state).verdict_NA
    estimates = {"agreement": raw_agreement(verdict_NA, seed=seed, cluster_N=pairs.group_N)}
    if batch.is_ranked:
        estimates["kendall_tau_b"] = tau_b(batch.items, state, seed=seed)
    metrics: dict[str, float] = {}
    for name, one in estimates.items():
        if one is not None:
            metrics |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    alpha = krippendorff_alpha(verdict_NA)
    return metrics if alpha is None else {**metrics, "krippendorff_alpha": alpha}


def _write(file: Path, rows: Iterable[Mapping[str, object]]) -> None:
    with file.open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _preferred(
    ctx: StageContext,
    endpoints: Mapping[str, AnswerEndpoint],
    events: Sequence[LedgerEvent],
    dropped: Container[str],
) -> dict[str, float]:
    """Return in which share of the preferences of live dialogues each model won; say which are not of this recipe."""
    counts = Dialogues().take(events).preferred(dropped)
    named = set(ledger_names(ctx.inputs.get("models", []), endpoints))
    older = sorted(counts.keys() - named)
    if older:
        ctx.note(
            f"people also talked with {listed(older)}, which the recipe does not name now: these choices count too"
        )
    return {f"preferred/{model}": won / of for model, (won, of) in counts.items()}


def _is_left_out(item: str, state: State) -> bool:
    """Return whether an item was dropped, or flagged and not adjudicated."""
    return item in state.dropped or (item not in state.adjudicated and state.is_flagged(item))
