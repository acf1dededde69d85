"""Verbs on Slurm jobs: `cancel`, and the hidden `stage-job` that a job runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.display.views import PlainDisplay
from pipeline.cli.options import (
    JsonOption,
    OnlyOption,
    ProfileOption,
    RecipeArgument,
    RecipeStoreOption,
    SetOption,
    UntilOption,
)
from pipeline.cli.survey import RecipeOptions, survey_of
from pipeline.cli.terminal import print_json
from pipeline.errors import PipelineError
from pipeline.preflight.forecast import fitting_problems, resolve_auto
from pipeline.run.cluster import ProgressRecorder, cancel_jobs, check_unchanged
from pipeline.run.runner import run
from pipeline.run.worker_node import run_worker_node


def cancel(
    recipe: RecipeArgument,
    override: SetOption = None,
    only: OnlyOption = None,
    until: UntilOption = None,
    store: RecipeStoreOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cancel the Slurm jobs of a recipe; what they did is kept, and `run` resumes it."""
    plan, artifact_store = survey_of(RecipeOptions(recipe, override, store, profile, only, until)).sound()
    jobs = cancel_jobs(plan, artifact_store)
    if as_json:
        print_json({"cancelled": jobs})
        return
    for name, job in jobs.items():
        print(f"cancelled {name} (job {job})")
    if not jobs:
        print("nothing to cancel: no job of this recipe is in the queue")


def stage_job(
    recipe: RecipeArgument,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="Stage to run.")],
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where its journal and log go.")],
    fingerprint: Annotated[str, typer.Option("--fingerprint", help="What the stage had when it was submitted.")],
    override: SetOption = None,
    store: RecipeStoreOption = None,
    profile: ProfileOption = None,
    again: Annotated[bool, typer.Option("--again", help="Run it even if it is in the store.")] = False,
    node_rank: Annotated[int, typer.Option("--node-rank", min=0, help="Which node of the job this is.")] = 0,
    rendezvous: Annotated[str | None, typer.Option("--rendezvous", help="Where the nodes of the job meet.")] = None,
) -> None:
    """Run one stage inside a job of a cluster."""
    overrides = list(override or ())
    if rendezvous is not None:
        overrides.append(f"stages.{stage}.compute.rendezvous={rendezvous}")
    options = RecipeOptions(recipe, overrides, store, profile, only=[stage], force=[stage] if again else None)
    plan, artifact_store = survey_of(options).sound()
    check_unchanged(plan, fingerprint)
    if problems := list(
        fitting_problems(plan, artifact_store, elsewhere=False)
    ):  # the device is known only inside the job
        raise PipelineError(*problems)
    with PlainDisplay() as view:
        if node_rank:
            run_worker_node(plan, artifact_store, view, node_rank)
        else:
            run(resolve_auto(plan, artifact_store), artifact_store, ProgressRecorder(view, folder), folder)
