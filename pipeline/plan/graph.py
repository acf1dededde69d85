"""The graph of a recipe: the inputs of every stage, and the order in which stages can run.

Owns resolving names to stages, artifacts, folders and hub ids, and finding inputs of the wrong kind and cycles. Knows
nothing of fingerprints or of what is cached.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline.artifacts import Artifact, Store
from pipeline.artifacts.refs import resolve
from pipeline.errors import PipelineError, Problem, listed, nearest
from pipeline.recipe import Recipe, StageSpec
from pipeline.stage import Data, Input, kind_of, markers_in

HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*([@:][^/]*)?")


@dataclass(frozen=True)
class Reference:
    """A resolved name of a stage's configuration; exactly one of the last four attributes is set.

    Attributes:
        field: configuration field that holds the name.
        ref: the name.
        stage: stage of this recipe.
        artifact: artifact in the store.
        folder: local folder.
        hub: ``ID@REVISION``.
    """

    field: str
    ref: str
    stage: str | None = None
    artifact: Artifact | None = None
    folder: Path | None = None
    hub: str | None = None


@dataclass
class Graph:
    """The inputs of a recipe's stages and their order.

    Attributes:
        inputs: stage to field to references.
        data: stage to field to name of the data source.
        sources: name of a data source to its reference, if it is an artifact.
        order: stages in topological order; stages in cycles are left out.
        unresolved: stages with an input that does not exist or has problems itself.
        problems: all problems of the graph.
    """

    inputs: dict[str, dict[str, list[Reference]]] = field(default_factory=dict)
    data: dict[str, dict[str, str]] = field(default_factory=dict)
    sources: dict[str, Reference] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    unresolved: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    def needs(self, stage: str) -> Iterator[str]:
        """Yield the stages a stage reads from directly."""
        for references in self.inputs.get(stage, {}).values():
            yield from (reference.stage for reference in references if reference.stage)
        for source in self.data.get(stage, {}).values():
            reference = self.sources.get(source)
            if reference is not None and reference.stage:
                yield reference.stage

    def with_ancestors(self, stages: list[str]) -> set[str]:
        """Return ``stages`` and all stages they need, directly or indirectly."""
        closure: set[str] = set()
        waiting = list(stages)
        while waiting:
            stage = waiting.pop()
            if stage not in closure:
                closure.add(stage)
                waiting += self.needs(stage)
        return closure


def build_graph(recipe: Recipe, store: Store) -> Graph:
    """Resolve all names of a recipe and order its stages; collect problems in the graph."""
    graph = Graph()
    resolver = _Resolver(recipe, store, graph.problems)
    for name, source in recipe.data.items():
        if source.artifact is not None:
            where = recipe.where("data", name, "artifact")
            reference = resolver.resolve(_Name(source.artifact, "artifact", where), None)
            if reference is not None:
                graph.sources[name] = reference
    for name, spec in recipe.stages.items():
        graph.inputs[name] = {}
        graph.data[name] = {}
        for field_name, marker, names in markers_in(spec.config):
            if isinstance(marker, Data):
                graph.data[name][field_name] = names[0]
            else:
                before = len(graph.problems)
                references = graph.inputs[name][field_name] = list(
                    resolver.resolve_all(spec, field_name, marker, names)
                )
                if len(references) < len(names) or len(graph.problems) > before:
                    graph.unresolved.add(name)
    graph.order = _ordered(recipe, graph)
    return graph


class _Name(NamedTuple):
    """A name in a recipe that stands for an artifact, a stage, a folder or a hub model.

    Attributes:
        text: the name.
        field: configuration field that holds it.
        where: ``file:line`` of the name.
        stage: stage whose configuration it is; empty for a data source.
    """

    text: str
    field: str
    where: str
    stage: str = ""


@dataclass(frozen=True)
class _Resolver:
    """Resolves names to references, collecting problems."""

    recipe: Recipe
    store: Store
    problems: list[Problem]

    def resolve_all(self, spec: StageSpec, field_name: str, marker: Input, names: list[str]) -> Iterator[Reference]:
        """Yield the references of the names in one field."""
        for index, text in enumerate(names):
            where = self.recipe.where("stages", spec.name, field_name, index)
            reference = self.resolve(_Name(text, field_name, where, spec.name), marker)
            if reference is not None:
                yield reference

    def resolve(self, name: _Name, marker: Input | None) -> Reference | None:
        """Resolve a name to a stage, an artifact, a folder or a hub model, tried in this order; None on a problem."""
        text = name.text
        if text in self.recipe.broken:
            return None
        if text in self.recipe.stages:
            self.check_kind(name, marker, self.recipe.stages[text].kind)
            return Reference(name.field, text, stage=text)
        external = marker is not None and marker.external
        if _REF.fullmatch(text):
            artifact = self.artifact(name, quiet=external and self.recipe.find(text) is not None)
            if artifact is not None:
                self.check_kind(name, marker, artifact.manifest.kind, artifact.manifest.makes)
                return Reference(name.field, text, artifact=artifact)
            if "@" in text or ":" in text:
                return None
        if external:
            folder = self.recipe.find(text)
            if folder is not None and folder.is_dir():
                return Reference(name.field, text, folder=folder)
            match = HUB_ID.fullmatch(text)
            if match and folder is None:
                return Reference(name.field, text, hub=f"{match['id']}@{match['revision'] or 'main'}")
        self.unknown(name, external=external)
        return None

    def artifact(self, name: _Name, *, quiet: bool) -> Artifact | None:
        """Return the artifact a ref names, or None; a missing version, fingerprint or tag is a problem."""
        text = name.text
        if "@" not in text and ":" not in text and not self.store.artifacts(text):
            return None
        try:
            return resolve(self.store, text)
        except PipelineError as error:
            if not quiet:
                own = (Problem(p.found, p.expected, p.remedy, name.where, name.stage) for p in error.problems)
                self.problems.extend(own)
            return None

    def check_kind(self, name: _Name, marker: Input | None, kind: str, makes: str | None = None) -> None:
        """Record a problem if the field of a name does not take a stage or artifact of this kind."""
        if marker is None:
            return
        wanted = f"a stage of kind {' or '.join(marker.kinds)}" if marker.kinds else "a stage that makes a model"
        if _takes(marker, kind, makes):
            return
        candidates = [
            other
            for other, spec in self.recipe.stages.items()
            if other != name.stage and _takes(marker, spec.kind, None)
        ]
        remedy = f"this recipe has {listed(candidates)}" if candidates else ""
        statement = f"{name.field}: `{name.text}` is of kind {kind}"
        self.problems.append(Problem(statement, wanted, remedy, name.where, name.stage))

    def unknown(self, name: _Name, *, external: bool) -> None:
        """Record the problem of a name that cannot be resolved."""
        text, field_name, where, stage = name
        path = self.recipe.find(text)
        if external and path is not None:
            self.problems.append(
                Problem(f"{field_name}: `{text}` is a file", "a folder with a model", "", where, stage)
            )
            return
        stages = [other for other in [*self.recipe.stages, *self.recipe.broken] if other != stage]
        known = [*stages, *(artifact.manifest.name for artifact in self.store.artifacts())]
        what = "no stage, artifact, folder or hub model" if external else "no stage or artifact"
        expected = f"one of {listed(dict.fromkeys(known))}" if known else "the recipe has no other stage"
        self.problems.append(Problem(f"{field_name}: {what} `{text}`", expected, nearest(text, known), where, stage))


def _ordered(recipe: Recipe, graph: Graph) -> list[str]:
    """Return the stages in topological order, in the recipe's order where possible; record cycles as problems."""
    order: list[str] = []
    unordered = list(recipe.stages)
    while unordered:
        ready = next((name for name in unordered if all(need in order for need in graph.needs(name))), None)
        if ready is None:
            break
        order.append(ready)
        unordered.remove(ready)
    for cycle in _cycles(graph, unordered):
        where = _where_needed(recipe, graph, cycle[0], cycle[1])
        text = f"stages need each other: {' → '.join(cycle)}"
        graph.problems.append(Problem(text, "a graph without cycles", "", where, cycle[0]))
    return order


def _cycles(graph: Graph, unordered: list[str]) -> Iterator[list[str]]:
    """Yield each cycle among the unordered stages once, starting at its first stage in the recipe."""
    reported: set[str] = set()
    for start in unordered:
        if start in reported:
            continue
        path = _path_back(graph, start)
        if path:
            reported |= set(path)
            yield path


def _takes(marker: Input, kind: str, makes: str | None) -> bool:
    """Return whether a field takes a stage or artifact of a kind, which makes what its kind does if not told."""
    if kind in marker.kinds:
        return True
    made = makes or kind_of(kind).makes
    return made in marker.kinds if marker.kinds else made == "model"


def _path_back(graph: Graph, start: str) -> list[str]:
    """Return a shortest path of needed stages from a stage back to itself; empty if there is none."""
    paths = [[start]]
    seen: set[str] = set()
    while paths:
        path = paths.pop(0)
        for need in graph.needs(path[-1]):
            if need == start:
                return [*path, start]
            if need not in seen:
                seen.add(need)
                paths.append([*path, need])
    return []


def _where_needed(recipe: Recipe, graph: Graph, stage: str, need: str) -> str:
    """Return ``file:line`` at which a stage names another."""
    for field_name, references in graph.inputs[stage].items():
        for index, reference in enumerate(references):
            if reference.stage == need:
                return recipe.where("stages", stage, field_name, index)
    return recipe.where("stages", stage)
