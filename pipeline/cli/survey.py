"""Surveys a recipe for a verb: reads it and plans as many of its stages as its problems allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class RecipeOptions:
    """A recipe and the options with which a verb reads and plans it; None is an option that was not given.

    Attributes:
        recipe: the recipe file.
        override: `--set`: keys to override.
        store: `--store`.
        profile: `--profile`.
        only: `--only`: stages to run.
        until: `--until`: stage to run with what it needs.
        force: `--force`: stages to run again.
    """

    recipe: Path
    override: Sequence[str] | None
    store: str | None
    profile: str | None
    only: Sequence[str] | None = None
    until: str | None = None
    force: Sequence[str] | None = None


def survey_of(options: RecipeOptions) -> Survey:
    """Read a recipe and plan as many of its stages as its problems allow."""
    load_all()
    parsed, problems = inspect(options.recipe, overrides=options.override or (), profile=options.profile)
    artifact_store = open_store(options.store, parsed)
    plan, plan_problems = survey_graph(
        parsed, artifact_store, only=options.only or (), until=options.until, force=options.force or ()
    )
    return Survey(plan, artifact_store, [*problems, *plan_problems])
