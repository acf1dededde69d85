"""What a plan says beside its stages: requests it cannot meet, and what makes it hard to reproduce.

Knows nothing of fingerprints and of why a stage runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from pipeline.errors import Problem, counted, listed, nearest
from pipeline.plan.graph import Graph
from pipeline.plan.model import PlannedStage
from pipeline.recipe import DataSource, Recipe
from pipeline.stage import kind_of

_COMMIT = re.compile(r"[0-9a-f]{7,64}")


def with_variants(recipe: Recipe, names: Sequence[str]) -> list[str]:
    """Return stages asked for, a stage of a sweep as all of its variants."""
    return [each for name in names for each in recipe.variants.get(name, (name,))]


def unknown_stages(recipe: Recipe, names: Sequence[str]) -> list[Problem]:
    """Return a problem for every name that is not a stage."""
    known = [*recipe.stages, *recipe.broken]
    return [
        Problem(
            f"no stage `{name}`",
            f"one of {listed(recipe.copies.get(name, known))}",
            f"`{name}` is made anew in each round" if name in recipe.copies else nearest(name, known),
            recipe.where("stages"),
        )
        for name in dict.fromkeys(names)
        if name not in known
    ]


def not_run(graph: Graph, planned: dict[str, PlannedStage | None], wanted: set[str]) -> list[Problem]:
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


def notes(recipe: Recipe, graph: Graph, wanted: set[str]) -> tuple[str, ...]:
    """Return notes on variables, a sweep, parts, remote code and unpinned hub revisions, to be read before a run."""
    lines = [
        f"environment variable {variable.name} is `{variable.value}`"
        if variable.is_set
        else f"environment variable {variable.name} is not set: `{variable.value}`, its default, is used"
        for variable in recipe.variables
    ]
    lines += _sweep_notes(recipe, graph)
    read = {name for stage in graph.order if stage in wanted for name in graph.data[stage].values()}
    lines += _part_notes({name: source for name, source in recipe.data.items() if name in read})
    if recipe.trust_remote_code:
        lines.append("trust_remote_code is on: Python code that comes with models of the hub or a folder will run")
    for name in (name for name in graph.order if name in wanted):
        for references in graph.inputs[name].values():
            for reference in references:
                hub_id, _, revision = (reference.hub or "").partition("@")
                if hub_id and not _COMMIT.fullmatch(revision):
                    lines.append(_unpinned("model", hub_id, revision, f"{hub_id}@COMMIT"))
        for source_name in graph.data[name].values():
            source = recipe.data.get(source_name)
            if source is not None and source.hub and not _COMMIT.fullmatch(source.revision or "main"):
                lines.append(_unpinned("data set", source.hub, source.revision or "main", "revision: COMMIT"))
    return tuple(dict.fromkeys(lines))


def _sweep_notes(recipe: Recipe, graph: Graph) -> Iterator[str]:
    """Yield what a sweep makes of each stage that it changes, and which of them no report compares."""
    reports = [name for name, spec in recipe.stages.items() if kind_of(spec.kind).makes == "report"]
    compared = graph.with_ancestors(reports) - set(reports)
    for stage, settings in recipe.swept.items():
        variants = recipe.variants.get(stage, ())
        yield f"sweep: {stage} is {counted(len(variants), 'stage')} ({settings})"
        if not compared & set(variants) and not set(variants) & set(recipe.broken):
            is_model = any(kind_of(recipe.stages[name].kind).makes == "model" for name in variants)
            named = f"`{stage}`" if is_model else "a model that is trained with them"
            yield f"nothing compares the variants of {stage}: name {named} in the `models` of an `evaluate` stage"


def _part_notes(sources: Mapping[str, DataSource]) -> Iterator[str]:
    """Yield a note for two sources of the same rows whose parts meet, unless one lies within the other."""
    for (one, first), (other, second) in combinations(sources.items(), 2):
        if first.part is None or second.part is None or not _same_rows(first, second):
            continue
        (low, high), (least, most) = sorted((first.part, second.part))
        if low < least < high < most:
            yield f"data {one} and data {other} share the prompts from {least:g} to {high:g}: their parts meet there"


def _same_rows(first: DataSource, second: DataSource) -> bool:
    """Return whether two sources have a file, a hub data set or an artifact in common."""
    if first.path is not None and second.path is not None:
        return not set(first.files).isdisjoint(second.files)
    return (first.hub, first.artifact) == (second.hub, second.artifact) != (None, None)


def _unpinned(what: str, hub_id: str, revision: str, remedy: str) -> str:
    return f"{what} {hub_id} is read at `{revision}`, which can move: not reproducible; pin it with `{remedy}`"
