"""Verbs on recipes: run, plan, check, new, schema."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from pipeline.cli.app import RECIPES, verb
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
    open_store,
)

if TYPE_CHECKING:
    from pipeline.artifacts import Store
    from pipeline.errors import Problem
    from pipeline.plan import Plan
    from pipeline.preflight import CheckReport


@verb(RECIPES)
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
    if dry_run:
        plan, artifact_store = survey_of(recipe, override, only, until, force, store, profile).sound()
        _print_plan(plan, artifact_store, as_json=as_json)
        return
    plan, artifact_store, problems = survey_of(recipe, override, only, until, force, store, profile)
    on_cluster = not node_rank and any(stage.spec.compute.launcher == "slurm" for stage in plan.pending)
    if on_cluster:
        from pipeline.launch.slurm import tool_problems

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
    from pipeline.cluster import Request, run_on_cluster
    from pipeline.display.ending import print_report, report_data
    from pipeline.display.views import display
    from pipeline.terminal import print_json

    checked(plan, store)
    with display(sys.stderr if as_json else sys.stdout) as view:
        report = run_on_cluster(plan, store, view, Request(recipe, tuple(override), profile))
    if as_json:
        print_json(report_data(report, store))
    else:
        print_report(report, store, recipe)


def checked(plan: Plan, store: Store, problems: Sequence[Problem] = ()) -> CheckReport:
    """Check a plan; on a terminal, show the progress of the check.

    Raises:
        PipelineError: there are ``problems``, or the check has some; it has all of them.
    """
    from pipeline.display.checks import check_progress
    from pipeline.preflight import check_plan

    with check_progress() as progress:
        return check_plan(plan, store, problems=problems, progress=progress)


def run_and_print(plan: Plan, store: Store, recipe: Path | None, *, as_json: bool, node_rank: int = 0) -> None:
    """Check and execute a plan, show its progress and print the report; with JSON, progress goes to standard error."""
    from pipeline.display.ending import print_report, report_data
    from pipeline.display.views import display
    from pipeline.forecast import resolve_auto
    from pipeline.runner import run as execute
    from pipeline.terminal import print_json
    from pipeline.worker_node import run_worker_node

    if not node_rank:  # node 0 checks the plan and resolves `auto` for all nodes
        plan = replace(plan, notes=(*plan.notes, *checked(plan, store).notes))
        plan = resolve_auto(plan, store)
    with display(sys.stderr if as_json else sys.stdout) as view:
        report = run_worker_node(plan, store, view, node_rank) if node_rank else execute(plan, store, view)
    if as_json:
        print_json(report_data(report, store))
    else:
        print_report(report, store, recipe)


@verb(RECIPES)
def plan(
    recipe: RecipeArgument,
    override: SetOption = None,
    only: OnlyOption = None,
    until: UntilOption = None,
    force: ForceOption = None,
    store: RecipeStoreOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what would run and why, and what each stage needs: memory, hours, cost; runs nothing."""
    planned, artifact_store = survey_of(recipe, override, only, until, force, store, profile).sound()
    _print_plan(planned, artifact_store, as_json=as_json)


@verb(RECIPES)
def check(
    recipe: RecipeArgument,
    override: SetOption = None,
    store: RecipeStoreOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Validate a recipe and its data; tells every problem at once."""
    from pipeline.display.checks import check_data, print_check
    from pipeline.terminal import print_json

    plan, artifact_store, problems = survey_of(recipe, override, None, None, None, store, profile)
    report = checked(plan, artifact_store, problems)
    if as_json:
        print_json({"ok": True, "problems": [], **check_data(plan, report)})
    else:
        print_check(recipe, plan, report)


@verb(RECIPES)
def new(
    target: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Recipe to write; with --example, a folder.")
    ] = None,
    kind: Annotated[str, typer.Option("--kind", help="What it does: sft, dpo (sft, then dpo) or chain.")] = "sft",
    example: Annotated[
        str | None,
        typer.Option("--example", metavar="NAME", help="Copy an example and its data, e.g. quickstart."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a starter recipe, or copy an example with its data."""
    from pipeline.scaffold import write_example, write_starter
    from pipeline.terminal import print_command, print_json, print_line

    if example is not None:
        written = write_example(example, target or Path(example), overwrite=overwrite)
    else:
        written = write_starter(target or Path("recipe.yaml"), kind, overwrite=overwrite)
    if as_json:
        print_json({"files": [str(file) for file in written.files], "recipe": str(written.recipe)})
        return
    for file in written.files:
        print(f"wrote {file}")
    print("\nnext:")
    for line in written.next_steps:
        if line.startswith(("cd ", "trueup ")):
            print_command(line)
        else:
            print_line(f"  {line}")


@verb(RECIPES)
def schema(
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write it here instead.")] = None,
) -> None:
    """Print the JSON schema of recipes, for editors."""
    import json

    from pipeline.disk import writing
    from pipeline.recipe import json_schema
    from pipeline.stages import load_all

    load_all()
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    if out is None:
        print(text)
        return
    with writing(out):
        out.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {out}; begin a recipe with\n  # yaml-language-server: $schema={out}")


class Survey(NamedTuple):
    """A recipe planned as far as its problems allow.

    Attributes:
        plan: plan of the stages that can be planned.
        store: the store of `--store`, or the recipe's.
        problems: all problems of the recipe and of its stage graph.
    """

    plan: Plan
    store: Store
    problems: list[Problem]

    def sound(self) -> tuple[Plan, Store]:
        """Return the plan and the store of a recipe without problems.

        Raises:
            PipelineError: the recipe has problems.
        """
        from pipeline.errors import PipelineError

        if self.problems:
            raise PipelineError(*dict.fromkeys(self.problems))
        return self.plan, self.store


def survey_of(
    recipe: Path,
    override: list[str] | None,
    only: list[str] | None,
    until: str | None,
    force: list[str] | None,
    store: str | None,
    profile: str | None,
) -> Survey:
    """Read a recipe and plan as many of its stages as its problems allow."""
    from pipeline.plan import survey
    from pipeline.recipe import inspect
    from pipeline.stages import load_all

    load_all()
    parsed, problems = inspect(recipe, overrides=override or (), profile=profile)
    artifact_store = open_store(store, parsed)
    plan, plan_problems = survey(parsed, artifact_store, only=only or (), until=until, force=force or ())
    return Survey(plan, artifact_store, [*problems, *plan_problems])


def _print_plan(plan: Plan, store: Store, *, as_json: bool) -> None:
    from pipeline.display.forecasts import forecast_data, print_forecasts
    from pipeline.display.plans import plan_data, print_plan
    from pipeline.forecast import forecasts, resolve_auto
    from pipeline.terminal import print_json

    needs, unknown = forecasts(resolve_auto(plan, store), store)
    if as_json:
        data: dict[str, Any] = plan_data(plan)
        rows = [forecast_data(need) for need in needs]
        print_json({**data, "needs": rows, "needs_notes": unknown, "store": str(store.root)})
    else:
        print_plan(plan)
        print_forecasts(needs, unknown)
