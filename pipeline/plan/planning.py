"""Makes a plan from a recipe and a store.

Owns the walk over the graph: fingerprints, cached stages, stages to run and the reasons. Has no side effects except
reading files and caching digests.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, Store
from pipeline.errors import PipelineError, Problem, listed, nearest
from pipeline.plan.fingerprint import digest_of, payload
from pipeline.plan.folders import folder_digest
from pipeline.plan.graph import Graph, Reference, build_graph
from pipeline.plan.model import FORCED, Plan, PlannedData, PlannedInput, PlannedStage
from pipeline.plan.staleness import reasons
from pipeline.recipe import Recipe
from pipeline.records import digest

_COMMIT = re.compile(r"[0-9a-f]{7,64}")


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
        raise PipelineError(*dict.fromkeys([*problems, *plan_problems]))
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
    problems = [*graph.problems, *_unknown_stages(recipe, [*only, *([until] if until else []), *force])]
    named = [name for name in only if name in recipe.stages]
    wanted = set(named) if only else set(recipe.stages)
    if until and until in recipe.stages:
        wanted &= graph.with_ancestors([until])
    planner = _Planner(recipe, store, graph, frozenset(force))
    needed = graph.with_ancestors(list(wanted))
    planned = {name: planner.plan(name) for name in graph.order if name in needed}
    stages = tuple(stage for name in graph.order if name in wanted and (stage := planned[name]) is not None)
    problems += planner.problems + _not_run(graph, planned, wanted)
    unplanned = tuple(name for name in recipe.stages if name in wanted and planned.get(name) is None)
    return Plan(recipe, stages, _notes(recipe, graph, wanted), planner.data_artifacts, unplanned), problems


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
            self.problems += [
                Problem(p.found, p.expected, p.remedy, p.where or spec.where, name) for p in error.problems
            ]
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
        self,
        name: str,
        content: dict[str, Any],
        inputs: dict[str, list[PlannedInput]],
        data: dict[str, PlannedData],
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
        if reference.stage is not None:
            stage = self.planned.get(reference.stage)
            if stage is None:
                raise _UnplannableError
            path = stage.artifact.path if stage.artifact else None
            return self._input(reference, reference.stage, stage.spec.kind, stage.fingerprint, path)
        if reference.artifact is not None:
            return self._of_artifact(reference, reference.artifact)
        if reference.folder is not None:
            fingerprint = folder_digest(reference.folder, self.cache)
            return self._input(
                reference, reference.folder.name, "external", fingerprint, reference.folder, external=True
            )
        hub = str(reference.hub)
        name = hub.partition("@")[0].rpartition("/")[2]
        return self._input(reference, name, "external", f"hub:{hub}", None, external=True)

    def _of_artifact(self, reference: Reference, artifact: Artifact) -> PlannedInput:
        manifest = artifact.manifest
        return self._input(reference, manifest.name, manifest.kind, manifest.fingerprint, artifact.path)

    def _input(
        self, reference: Reference, name: str, kind: str, fingerprint: str, path: Path | None, *, external: bool = False
    ) -> PlannedInput:
        return PlannedInput(reference.field, reference.ref, name, kind, fingerprint, path, external)

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
        return None, [
            Problem(f"data.{source_name}: {p.found}", p.expected, p.remedy, p.where or where) for p in error.problems
        ]
    return (content.digest, content.rows), []


def _unknown_stages(recipe: Recipe, names: Sequence[str]) -> list[Problem]:
    """Return a problem for every name that is not a stage."""
    known = [*recipe.stages, *recipe.broken]
    return [
        Problem(f"no stage `{name}`", f"one of {listed(known)}", nearest(name, known), recipe.where("stages"))
        for name in dict.fromkeys(names)
        if name not in known
    ]


def _not_run(graph: Graph, planned: dict[str, PlannedStage | None], wanted: set[str]) -> list[Problem]:
    """Return a problem for each needed stage that is neither requested nor in the store."""
    problems = []
    for name in graph.order:
        stage = planned.get(name) if name in wanted else None
        for need in dict.fromkeys(graph.needs(name)) if stage is not None else ():
            other = planned.get(need)
            if need not in wanted and other is not None and other.status == "pending" and stage is not None:
                remedy = f"run `{need}` first, or use `--until {name}`"
                statement = f"needs `{need}`, which is not in the store as the recipe has it"
                problems.append(Problem(statement, "", remedy, stage.spec.where, name))
    return problems


def _notes(recipe: Recipe, graph: Graph, wanted: set[str]) -> tuple[str, ...]:
    """Return notes on remote code and unpinned hub revisions, for the user before running a plan."""
    notes = []
    if recipe.trust_remote_code:
        notes.append("trust_remote_code is on: Python code that comes with models of the hub or a folder will run")
    for name in (name for name in graph.order if name in wanted):
        for references in graph.inputs[name].values():
            for reference in references:
                hub_id, _, revision = (reference.hub or "").partition("@")
                if hub_id and not _COMMIT.fullmatch(revision):
                    notes.append(_unpinned("model", hub_id, revision, f"{hub_id}@COMMIT"))
        for source_name in graph.data[name].values():
            source = recipe.data.get(source_name)
            if source is not None and source.hub and not _COMMIT.fullmatch(source.revision or "main"):
                notes.append(_unpinned("data set", source.hub, source.revision or "main", "revision: COMMIT"))
    return tuple(dict.fromkeys(notes))


def _unpinned(what: str, hub_id: str, revision: str, remedy: str) -> str:
    return f"{what} {hub_id} is read at `{revision}`, which can move: not reproducible; pin it with `{remedy}`"
