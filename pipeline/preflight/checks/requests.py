"""Forecasts what pending stages will ask of servers, before the first request is sent.

Owns the reading of the rows for it. How many requests rows make is a trait of the kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from pipeline.artifacts import Store
from pipeline.errors import PipelineError, Problem
from pipeline.kind.traits import RequestForecast, RequestRows
from pipeline.plan import Plan, PlannedStage
from pipeline.preflight.checks.sources import SourceUse, uses_of
from pipeline.records import load
from pipeline.stage import kind_of


class StageRequests(NamedTuple):
    """The requests of a stage to one server.

    Attributes:
        stage: name of the stage.
        forecast: number of its requests and tokens; None if its rows are not there yet.
        note: the same in a sentence, or why it is not known.
        problem: that they are more than the stage may send.
    """

    stage: str
    forecast: RequestForecast | None
    note: str
    problem: Problem | None = None


def stage_requests(plan: Plan, store: Store) -> Iterator[StageRequests]:
    """Yield the requests of every pending stage that asks a server; sends none.

    Rows with problems are passed over: reading the sources reports them.
    """
    uses = {use.stage: use for use in uses_of(plan) if use.field == "data"}
    for stage in plan.pending:
        requests, name = kind_of(stage.spec.kind).traits.requests, stage.spec.name
        if requests is None or name in plan.recipe.broken or not requests.asks(stage.spec.config):
            continue
        use = uses.get(name)
        if use is None:
            waiting = f"its calls are counted once `{stage.data['data'].source_name}` is there"
            yield StageRequests(name, None, f"stage {name}: {waiting}; {requests.cap(stage.spec.config)} are sent")
            continue
        try:
            rows = _rows(plan, use, store)
        except PipelineError:
            continue
        try:
            forecasts = requests.forecast(stage.spec.config, rows)
        except PipelineError as error:
            for one in error.problems:
                yield StageRequests(name, None, "", _placed(plan, stage, one))
            continue
        for forecast, problem in forecasts:
            yield StageRequests(name, forecast, f"stage {name}: {forecast}", _placed(plan, stage, problem))


def _rows(plan: Plan, use: SourceUse, store: Store) -> RequestRows:
    rows = load(
        plan.recipe.data[use.source_name], use.shapes, seed=use.seed, name=use.source_name, artifact=use.artifact
    )
    return RequestRows([*rows.train, *rows.held_out], len(rows.held_out), rows.shape, use.seed, store.root)


def _placed(plan: Plan, stage: PlannedStage, problem: Problem | None) -> Problem | None:
    if problem is None:
        return None
    key = problem.found.split(" ")[0].split(".")
    return replace(problem, where=plan.recipe.where("stages", stage.spec.name, *key), stage=stage.spec.name)
