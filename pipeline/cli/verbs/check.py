"""The verb `check`, and the check that precedes every run."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.artifacts import Store
from pipeline.cli.display.checks import check_data, check_progress, print_check
from pipeline.cli.options import JsonOption, ProfileOption, RecipeArgument, RecipeStoreOption, SetOption
from pipeline.cli.survey import RecipeOptions, survey_of
from pipeline.cli.terminal import print_json
from pipeline.errors import Problem
from pipeline.plan import Plan
from pipeline.preflight import CheckReport, check_plan


def check(
    recipe: RecipeArgument,
    override: SetOption = None,
    store: RecipeStoreOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Validate a recipe and its data; tells every problem at once."""
    plan, artifact_store, problems = survey_of(RecipeOptions(recipe, override, store, profile))
    report = checked(plan, artifact_store, problems)
    if as_json:
        print_json({"ok": True, "problems": [], **check_data(plan, report)})
    else:
        print_check(recipe, plan, report)


def checked(plan: Plan, store: Store, problems: Sequence[Problem] = ()) -> CheckReport:
    """Check a plan; on a terminal, show the progress of the check.

    Raises:
        PipelineError: there are ``problems``, or the check has some; it has all of them.
    """
    with check_progress() as progress:
        return check_plan(plan, store, problems=problems, progress=progress)
