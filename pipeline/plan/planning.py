"""Makes a plan from a recipe and a store.

Owns the walk over the graph: fingerprints, cached stages, stages to run and the reasons. Has no side effects except
reading files and caching digests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.artifacts import Store
from pipeline.errors import PipelineError, Problem
from pipeline.plan.fingerprint import digest_of, payload
from pipeline.plan.folders import folder_digest
from pipeline.plan.graph import Graph, Reference, build_graph
from pipeline.plan.model import FORCED, Payload, Plan, PlannedData, PlannedInput, PlannedStage
from pipeline.plan.requests import not_run, notes, unknown_stages, with_variants
from pipeline.plan.staleness import reasons
from pipeline.recipe import Recipe, once_per_group
from pipeline.records import digest


def make_plan(
    recipe: Recipe,
    store: Store,
    *,
    only: Sequence[str] = (),
    until: str | None = None,
    force: Sequence[str] = (),
    problems: Sequence[Problem] = (),
) -> Plan:
    """Decide what has to run.

    Args:
        recipe: from `recipe.load`, or from `recipe.inspect` together with ``problems``.
        store: the artifacts that exist.
        only: plan these stages; other stages they need must be in the store.
        until: plan this stage and the stages it needs.
        force: run these stages, and those that need them, even if cached.
        problems: problems from `recipe.inspect`, reported together with those found here.

    Raises:
        PipelineError: there are problems; all of them are listed.
    """
    plan, plan_problems = survey(recipe, store, only=only, until=until, force=force)
    if problems or plan_problems:
        raise PipelineError(*once_per_group([*problems, *plan_problems], recipe.copies))
    return plan


def survey(
    recipe: Recipe, store: Store, *, only: Sequence[str] = (), until: str | None = None, force: Sequence[str] = ()
) -> tuple[Plan, list[Problem]]:
    """Plan as many stages as possible, so that a recipe with problems can be checked further.

    Args:
        recipe: from `recipe.inspect`.
        store: the artifacts that exist.
        only: plan these stages.
        until: plan this stage and the stages it needs.
        force: run these stages even if cached.

    Returns:
        A plan without the stages that cannot be planned (listed in `unplanned`), and all problems.
    """
    graph = build_graph(recipe, store)
    only, ends, force = (with_variants(recipe, names) for names in (only, [until] if until else [], force))
    problems = [*graph.problems, *unknown_stages(recipe, [*only, *ends, *force])]
    wanted = {name for name in only if name in recipe.stages} if only else set(recipe.stages)
    if any(name in recipe.stages for name in ends):
        wanted &= graph.with_ancestors([name for name in ends if name in recipe.stages])
    planner = _Planner(recipe, store, graph, frozenset(force))
    needed = graph.with_ancestors(list(wanted))
    planned = {name: planner.plan(name) for name in graph.order if name in needed}
    stages = tuple(stage for name in graph.order if name in wanted and (stage := planned[name]) is not None)
    problems += planner.problems + not_run(graph, planned, wanted)
    unplanned = tuple(name for name in recipe.stages if name in wanted and planned.get(name) is None)
    return Plan(recipe, stages, notes(recipe, graph, wanted), planner.data_artifacts, unplanned), problems


class _Planner:
    """Plans stages one by one in topological order."""

    def __init__(self, recipe: Recipe, store: Store, graph: Graph, force: frozenset[str]) -> None:
        self.recipe = recipe
        self.store = store
        self.graph = graph
        self.force = force
        self.cache = store.root / ".cache"
        self.problems: list[Problem] = []
        self.planned: dict[str, PlannedStage] = {}
        self.digests: dict[str, tuple[str, int] | None] = {}
        self.data_artifacts: dict[str, Path] = {}

    def plan(self, name: str) -> PlannedStage | None:
        """Plan a stage; return None if it, or a stage it needs, has problems."""
        spec = self.recipe.stages[name]
        if name in self.graph.unresolved:
            return None
        try:
            inputs = {
                field: [self.input(reference) for reference in references]
                for field, references in self.graph.inputs[name].items()
            }
            data = {field: self.data(field, source) for field, source in self.graph.data[name].items()}
            content = payload(
                spec,
                {field: [item.fingerprint for item in items] for field, items in inputs.items()},
                {field: (self.recipe.data[item.source_name], item.digest) for field, item in data.items()},
                self.recipe.search_dirs,
                trust_remote_code=self.recipe.trust_remote_code,
            )
            fingerprint = digest_of(content)
            artifact = self.store.find(name, fingerprint)
        except PipelineError as error:
            self.problems += [replace(p, where=p.where or spec.where, stage=name) for p in error.problems]
            return None
        except _UnplannableError:
            return None
        forced = self.forced(name)
        why = forced or (() if artifact else self.reasons(name, content, inputs, data))
        stage = PlannedStage(
            spec=spec,
            fingerprint=fingerprint,
            status="pending" if why else "cached",
            why=why,
            inputs=inputs,
            data=data,
            artifact=None if why else artifact,
            resumable=self.store.resumable(name, fingerprint),
            payload=content,
        )
        self.planned[name] = stage
        return stage

    def forced(self, name: str) -> tuple[str, ...]:
        """Return the reasons if a stage, or a stage it needs, is forced to run; empty otherwise."""
        if name in self.force:
            return (FORCED,)
        needs = [need for need in dict.fromkeys(self.graph.needs(name)) if FORCED in self.planned[need].why]
        return (FORCED, *(f"{need} is forced" for need in needs)) if needs else ()

    def reasons(
        self, name: str, content: Payload, inputs: dict[str, list[PlannedInput]], data: dict[str, PlannedData]
    ) -> tuple[str, ...]:
        """Return why a stage must run: the changes since this recipe's newest artifact of that name.

        An artifact of another recipe with that name is mentioned but not compared.
        """
        artifacts = sorted(self.store.artifacts(name), key=lambda artifact: artifact.manifest.version)
        recipe_name = self.recipe.name
        own = [artifact for artifact in artifacts if artifact.manifest.recipe.get("name", recipe_name) == recipe_name]
        if artifacts and not own:
            other = artifacts[-1]
            return (f"never run by this recipe ({other.ref} is of `{other.manifest.recipe['name']}`)",)
        return reasons(content, inputs, data, own[-1].manifest if own else None)

    def input(self, reference: Reference) -> PlannedInput:
        """Return the planned input of a reference, with its fingerprint."""
        field, ref = reference.field, reference.ref
        if reference.stage is not None:
            stage = self.planned.get(reference.stage)
            if stage is None:
                raise _UnplannableError
            path = stage.artifact.path if stage.artifact else None
            return PlannedInput(field, ref, reference.stage, stage.spec.kind, stage.fingerprint, path)
        if reference.artifact is not None:
            path, made = reference.artifact.path, reference.artifact.manifest
            return PlannedInput(field, ref, made.name, made.kind, made.fingerprint, path)
        if reference.folder is not None:
            folder, fingerprint = reference.folder, folder_digest(reference.folder, self.cache)
            return PlannedInput(field, ref, folder.name, "external", fingerprint, folder, external=True)
        name = str(reference.hub).partition("@")[0].rpartition("/")[2]
        return PlannedInput(field, ref, name, "external", f"hub:{reference.hub}", None, external=True)

    def data(self, field: str, source_name: str) -> PlannedData:
        """Return a data source with the digest of its content."""
        source = self.recipe.data.get(source_name)
        reference = self.graph.sources.get(source_name)
        if source is None or (source.artifact is not None and reference is None):
            raise _UnplannableError
        if reference is not None:
            item = self.input(reference)
            if item.artifact is not None:
                self.data_artifacts[reference.ref] = item.artifact
            return PlannedData(field, source_name, f"{item.fingerprint}/{source.file or ''}", 0, item)
        if source_name not in self.digests:
            self.digests[source_name] = None
            self.digests[source_name], problems = _digest(self.recipe, self.store, source_name)
            self.problems += problems
        known = self.digests[source_name]
        if known is None:
            raise _UnplannableError
        return PlannedData(field, source_name, *known)


class _UnplannableError(Exception):
    """A stage cannot be planned; the problem is recorded elsewhere."""


def _digest(recipe: Recipe, store: Store, source_name: str) -> tuple[tuple[str, int] | None, list[Problem]]:
    """Return digest and number of rows of a data source, or its problems."""
    try:
        content = digest(recipe.data[source_name], cache=store.root / ".cache")
    except PipelineError as error:
        where = recipe.where("data", source_name, "path")
        named = [replace(p, found=f"data.{source_name}: {p.found}", where=p.where or where) for p in error.problems]
        return None, named
    return (content.digest, content.rows), []
