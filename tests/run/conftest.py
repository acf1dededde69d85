"""Runs recipes in this process through the real runner, with a view that remembers what it was shown."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Store
from pipeline.errors import PipelineError, Problem
from pipeline.plan import Plan, make_plan, survey
from pipeline.preflight import CheckReport, check_plan
from pipeline.recipe import inspect, load
from pipeline.run.runner import RunReport, run


class Seen:
    """A view of a run: every call as ``(what, stage)``, and all events."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.events: list[Any] = []
        self.resumed: dict[str, bool] = {}
        self.problems: tuple[Any, ...] = ()

    def run_started(self, plan: Plan, run_dir: Path) -> None:
        self.calls.append(("run_started", ""))

    def stage_cached(self, stage: Any, artifact: Any) -> None:
        self.calls.append(("cached", stage.spec.name))

    def stage_started(self, stage: Any, *, resumed: bool) -> None:
        self.calls.append(("started", stage.spec.name))
        self.resumed[stage.spec.name] = resumed

    def stage_waiting(self, stage: Any) -> None:
        self.calls.append(("waiting", stage.spec.name))

    def stage_event(self, stage: Any, event: Any) -> None:
        self.events.append(event)

    def stage_stopping(self, stage: Any) -> None:
        self.calls.append(("stopping", stage.spec.name))

    def stage_done(self, stage: Any, artifact: Any, seconds: float) -> None:
        self.calls.append(("done", stage.spec.name))

    def stage_failed(self, stage: Any, problems: tuple[Any, ...], exit_code: int) -> None:
        self.calls.append(("failed", stage.spec.name))
        self.problems = problems


class Runs:
    """A recipe, a store that may begin as a copy of the finished chain's, and what runs of it showed."""

    def __init__(self, recipe: Path, store: Path) -> None:
        self.recipe = recipe
        self.store = Store(store)
        self.seen = Seen()

    def plan(self, *overrides: str, **options: Any) -> Plan:
        return make_plan(load(self.recipe, overrides=overrides), self.store, **options)

    def check(self, *overrides: str) -> CheckReport:
        """Check the recipe as the command does: read, planned and checked as far as its problems allow."""
        recipe, problems = inspect(self.recipe, overrides=overrides)
        plan, more = survey(recipe, self.store)
        return check_plan(plan, self.store, problems=[*problems, *more])

    def problems(self, *overrides: str) -> tuple[Problem, ...]:
        """Return what a check refuses the recipe for."""
        with pytest.raises(PipelineError) as error:
            self.check(*overrides)
        return error.value.problems

    def __call__(self, *overrides: str, **options: Any) -> RunReport:
        self.seen = Seen()
        return run(self.plan(*overrides, **options), self.store, self.seen)


@pytest.fixture
def fresh(tmp_path: Path, tiny_recipe: Path) -> Runs:
    """Nothing has run yet."""
    return Runs(tiny_recipe, tmp_path / "store")


@pytest.fixture
def finished(tmp_path: Path, tiny_recipe: Path, chain: Any) -> Runs:
    """Everything has run: the store is a copy of the chain's, without its journal."""
    shutil.copytree(chain.store.root, tmp_path / "store", ignore=shutil.ignore_patterns(".runs"))
    return Runs(tiny_recipe, tmp_path / "store")


@pytest.fixture
def checkpoints() -> Callable[[Store, str], list[int]]:
    """Return the steps of the checkpoints an unfinished stage has left."""

    def steps(store: Store, name: str) -> list[int]:
        folders = store.root.glob(f".work/{name}-*/work/checkpoints/checkpoint-*")
        return sorted(int(folder.name.rpartition("-")[2]) for folder in folders)

    return steps
