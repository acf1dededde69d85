"""The items and the labels of a `collect` stage: opening them, and what `trueup labels` shows of them.

Needs the libraries of the optional extra `collect`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from pipeline.cli.display import labels as display
from pipeline.cli.survey import RecipeOptions, survey_of
from pipeline.errors import ExitCode, PipelineError, Problem
from pipeline.preferences.items import items_of
from pipeline.preferences.labels import Batch, State
from pipeline.preferences.ledger import Ledger
from pipeline.records.loading import load
from pipeline.stages.collect.config import Config, ledger_url


@dataclass(frozen=True)
class Collection:
    """The items and the label ledger of a `collect` stage."""

    name: str
    batch: Batch
    ledger: Ledger
    guidelines: str


def open_collection(options: RecipeOptions, stage: str, ledger: str | None) -> Collection:
    """Open the items and the ledger of a recipe's `collect` stage.

    Raises:
        PipelineError: the stage does not exist or is of another kind, or its input artifact is not in the store yet.
    """
    plan, artifact_store = survey_of(options).sound()
    planned = {one.spec.name: one for one in plan.stages}
    collections = [name for name, one in planned.items() if isinstance(one.spec.config, Config)]
    if stage not in collections:
        named = f"`{stage}` is a {planned[stage].spec.kind} stage" if stage in planned else f"no stage `{stage}`"
        expected = f"one of {', '.join(collections)}" if collections else "a stage of kind `collect`"
        raise PipelineError(Problem(f"{options.recipe}: {named}", expected))
    config = planned[stage].spec.config
    assert isinstance(config, Config)
    item = planned[stage].data["data"]
    artifact = item.input.artifact if item.input is not None else None
    if item.input is not None and artifact is None:
        statement = f"the answers come from `{item.input.name}`, which has not run"
        raise PipelineError(Problem(statement, "", f"trueup run {options.recipe} --until {item.input.name}"))
    source = plan.recipe.data[item.source_name]
    rows = load(source, "preference", seed=planned[stage].spec.seed, name=item.source_name, artifact=artifact)
    items, _ = items_of(rows.train + rows.held_out)
    batch = Batch(items, config.labels_per_item, config.overlap)
    label_ledger = Ledger(ledger or ledger_url(config, artifact_store.root), config.batch or stage)
    return Collection(stage, batch, label_ledger, config.guidelines)


def show_labels(collection: Collection, what: str, until: int | None, out: Path | None, *, as_json: bool) -> None:
    """Print the status, the agreement, the pairs or the verification of a collection's labels.

    Args:
        collection: the items and their ledger.
        what: ``status``, ``agreement``, ``export`` or ``verify``.
        until: number of the last event of the ledger to count; None counts all.
        out: file of an export; None prints it.
        as_json: whether to print JSON for programs.

    Raises:
        typer.Exit: a label was changed.
    """
    if what == "verify":
        problems = collection.ledger.problems()
        display.verified(collection.ledger.events(), problems, as_json=as_json)
        if problems:
            raise typer.Exit(int(ExitCode.FAILED))
        return
    state = State().take(collection.ledger.events(until=until))
    if what == "status":
        display.status(collection.batch, state, as_json=as_json)
    elif what == "agreement":
        display.agreed(collection.batch, state, as_json=as_json)
    else:
        display.export(collection.batch, state, out)
