"""Surveys a recipe for a verb: reads it and plans as many of its stages as its problems allow."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pipeline.artifacts import Store
from pipeline.cli.options import open_store
from pipeline.errors import PipelineError, Problem
from pipeline.plan import Plan
from pipeline.plan import survey as survey_graph
from pipeline.recipe import inspect
from pipeline.stages import load_all


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
    load_all()
    parsed, problems = inspect(recipe, overrides=override or (), profile=profile)
    artifact_store = open_store(store, parsed)
    plan, plan_problems = survey_graph(parsed, artifact_store, only=only or (), until=until, force=force or ())
    return Survey(plan, artifact_store, [*problems, *plan_problems])
