"""The verb `plan`, and the printing of a plan with its forecasts."""

from __future__ import annotations

from pipeline.artifacts import Store
from pipeline.cli.display.forecasts import forecast_data, print_forecasts
from pipeline.cli.display.plans import plan_data
from pipeline.cli.display.plans import print_plan as print_stages
from pipeline.cli.options import (
    ForceOption,
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
from pipeline.plain_data import JsonObject
from pipeline.plan import Plan
from pipeline.preflight.checks.requests import stage_requests
from pipeline.preflight.forecast import forecasts, resolve_auto


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
    planned, artifact_store = survey_of(RecipeOptions(recipe, override, store, profile, only, until, force)).sound()
    print_plan(planned, artifact_store, as_json=as_json)


def print_plan(plan: Plan, store: Store, *, as_json: bool) -> None:
    """Print the stages of a plan, why each runs, and what each needs."""
    needs, unknown = forecasts(resolve_auto(plan, store), store)
    requests = list(stage_requests(plan, store))
    unknown += [text for one in requests for text in (one.note, str(one.problem or "")) if text]
    if as_json:
        data: JsonObject = plan_data(plan)
        rows = [forecast_data(need) for need in needs]
        asked = [{"stage": one.stage, **one.forecast.data()} for one in requests if one.forecast is not None]
        print_json({**data, "needs": rows, "needs_notes": unknown, "requests": asked, "store": str(store.root)})
    else:
        print_stages(plan)
        print_forecasts(needs, unknown)
