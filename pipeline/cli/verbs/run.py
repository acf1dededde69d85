"""The verb `run`, and the execution of a plan with its progress and report."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifacts import Store
from pipeline.cli.display.ending import print_report, report_data
from pipeline.cli.display.views import display
from pipeline.cli.options import (
    ForceOption,
    JsonOption,
    NodeOption,
    OnlyOption,
    ProfileOption,
    RecipeArgument,
    RecipeStoreOption,
    SetOption,
    UntilOption,
)
from pipeline.cli.survey import RecipeOptions, survey_of
from pipeline.cli.terminal import print_json
from pipeline.cli.verbs.check import checked
from pipeline.cli.verbs.plan import print_plan
from pipeline.plan import Plan
from pipeline.preflight.forecast import resolve_auto
from pipeline.run.cluster import Request, run_on_cluster
from pipeline.run.runner import run as execute
from pipeline.run.slurm import tool_problems
from pipeline.run.worker_node import run_worker_node


def run(
    recipe: RecipeArgument,
    override: SetOption = None,
    only: OnlyOption = None,
    until: UntilOption = None,
    force: ForceOption = None,
    store: RecipeStoreOption = None,
    profile: ProfileOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    node_rank: NodeOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Run what a recipe still misses; resumes what was cut off."""
    options = RecipeOptions(recipe, override, store, profile, only, until, force)
    if dry_run:
        plan, artifact_store = survey_of(options).sound()
        print_plan(plan, artifact_store, as_json=as_json)
        return
    plan, artifact_store, problems = survey_of(options)
    on_cluster = not node_rank and any(stage.spec.compute.launcher == "slurm" for stage in plan.pending)
    if on_cluster:
        problems += tool_problems()
    if problems:
        checked(plan, artifact_store, problems)  # raises them together with the problems of the check
    if on_cluster:
        _submit_and_print(plan, artifact_store, recipe, override or [], profile, as_json=as_json)
    else:
        run_and_print(plan, artifact_store, recipe, as_json=as_json, node_rank=node_rank)


def _submit_and_print(
    plan: Plan, store: Store, recipe: Path, override: list[str], profile: str | None, *, as_json: bool
) -> None:
    """Check a plan, run it as Slurm jobs, follow them and print the report."""
    checked(plan, store)
    with display(sys.stderr if as_json else sys.stdout) as view:
        report = run_on_cluster(plan, store, view, Request(recipe, tuple(override), profile))
    if as_json:
        print_json(report_data(report, store))
    else:
        print_report(report, store, recipe)


def run_and_print(plan: Plan, store: Store, recipe: Path | None, *, as_json: bool, node_rank: int = 0) -> None:
    """Check and execute a plan, show its progress and print the report; with JSON, progress goes to standard error."""
    if not node_rank:  # node 0 checks the plan and resolves `auto` for all nodes
        plan = replace(plan, notes=(*plan.notes, *checked(plan, store).notes))
        plan = resolve_auto(plan, store)
    with display(sys.stderr if as_json else sys.stdout) as view:
        report = run_worker_node(plan, store, view, node_rank) if node_rank else execute(plan, store, view)
    if as_json:
        print_json(report_data(report, store))
    else:
        print_report(report, store, recipe)
