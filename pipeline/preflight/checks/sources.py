"""Reads the data sources of a plan: counts training, held-out and rejected rows for each stage, and finds problems.

Owns reading every source once for each requested shape, and caching the counts by the source's digest. Knows nothing
of tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts import Store
from pipeline.errors import PipelineError, Problem, agreeing, counted, listed
from pipeline.machine.disk import keep_if_possible
from pipeline.plain_data import JsonObject, JsonView
from pipeline.plan import Plan
from pipeline.plan.overlap import remember_prompts
from pipeline.recipe import DataSource, StageSpec
from pipeline.records import DataDigest, digest, load
from pipeline.stage import Data, Shapes, kind_of

REMEMBERED_FILE = "checked-sources-5.json"
"""The number in the name is raised when the file's format changes, or the reader rejects more rows."""

Progress = Callable[[str], None]
"""Is called with a description of the current step."""


class SourceUse(NamedTuple):
    """A field of a stage that reads rows.

    Attributes:
        stage: name of the stage.
        field: field of its configuration.
        source_name: name of the data source in the recipe.
        shapes: shapes of which the stage takes one.
        seed: seed of the stage.
        artifact: payload folder of the rows, when the source is an artifact.
    """

    stage: str
    field: str
    source_name: str
    shapes: Shapes
    seed: int
    artifact: Path | None


@dataclass(frozen=True)
class SourceCount:
    """Row counts of a data source in one shape.

    Attributes:
        source: name of the source in the recipe.
        shape: shape of its rows, e.g. ``preference``.
        train: number of training rows.
        held_out: number of held-out rows.
        rejected: number of bad rows left out.
        detected: the row format taken and the reason.
        unused: columns and keys of turns that nothing reads.
        unread: names in its folder that are not data files.
        margins: number of training pairs with a margin.
        remarks: further notes on its rows, one sentence each.
    """

    source: str
    shape: str
    train: int
    held_out: int
    rejected: int
    detected: str = ""
    unused: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    margins: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        """Number of usable rows, training and held-out."""
        return self.train + self.held_out

    @property
    def notes(self) -> Iterator[str]:
        """Notes on the source for the user, one sentence each."""
        if self.rejected:
            rows, are = self.kept + self.rejected, agreeing(self.rejected, "is", "are")
            yield f"data {self.source}: {self.rejected:,} of {counted(rows, 'row')} {are} bad and {are} left out"
        if self.unread:
            yield f"data {self.source}: these lie in the folder and are not read: {listed(self.unread)}"
        yield from (f"data {self.source}: {remark}" for remark in self.remarks)


class SourceReport(NamedTuple):
    """Results of reading the sources of a plan.

    Attributes:
        counts: row counts by use.
        problems: problems of the sources.
    """

    counts: dict[SourceUse, SourceCount]
    problems: list[Problem]

    def unused(self, plan: Plan) -> dict[str, list[str]]:
        """Return, by source, the columns and keys of turns that no stage reads."""
        stages = {stage.spec.name: stage.spec for stage in plan.stages}
        unread: dict[str, list[str]] = {}
        for use, count in self.counts.items():
            read = _columns_of(stages[use.stage]) if use.stage in stages else frozenset[str]()
            names = [name for name in count.unused if name not in read]
            before = unread.get(use.source_name, names)
            unread[use.source_name] = [name for name in before if name in names]
        return {source: names for source, names in unread.items() if names}


def read_sources(plan: Plan, store: Store, progress: Progress | None = None) -> SourceReport:
    """Read every source of pending and of unplanned stages, except hub data sets, which are read when the stage runs.

    Args:
        plan: plan of a recipe, with the stages that could not be planned.
        store: caches the counts of sources without problems.
        progress: is called with the name of the source being read.
    """
    remembered = _Remembered(store.root / ".cache" / REMEMBERED_FILE)
    counts: dict[SourceUse, SourceCount] = {}
    problems: dict[str, Problem] = {}  # by text: a bad row that two stages read is reported once
    outcomes: dict[str, SourceCount | tuple[Problem, ...]] = {}
    for use in uses_of(plan):
        source = plan.recipe.data[use.source_name]
        where = plan.recipe.where("data", use.source_name)
        options = json.dumps([use.source_name, str(use.artifact or ""), use.shapes])
        if options not in outcomes:
            outcomes[options] = _read(source, use, where, store, remembered, progress)
        outcome = outcomes[options]
        if isinstance(outcome, SourceCount):
            counts[use] = outcome
        else:
            problems |= {str(problem): problem for problem in outcome}
    remembered.save()
    return SourceReport(counts, list(problems.values()))


def uses_of(plan: Plan) -> list[SourceUse]:
    """Return the data fields of pending stages, unplanned stages, and stages with a broken configuration."""
    recipe = plan.recipe
    uses = []
    for stage in plan.pending:
        markers: dict[str, Data] = type(stage.spec.config).markers(Data)
        for field, item in stage.data.items():
            folder = item.input.artifact if item.input is not None else None
            if item.input is None or folder is not None:
                uses.append(
                    SourceUse(stage.spec.name, field, item.source_name, markers[field].shape, stage.spec.seed, folder)
                )
    without_plan: dict[str, tuple[StageSpec | None, Mapping[str, str]]] = {
        name: (recipe.stages[name], _data_of(recipe.stages[name].config)) for name in plan.unplanned
    }
    without_plan |= {name: (one.spec, one.data) for name, one in recipe.broken.items()}
    for name, (spec, data) in without_plan.items():
        if spec is None:
            continue
        markers = kind_of(spec.kind).config.markers(Data)
        uses += [
            SourceUse(name, field, source_name, markers[field].shape, spec.seed, None)
            for field, source_name in data.items()
            if source_name in recipe.data and recipe.data[source_name].artifact is None
        ]
    return [use for use in uses if recipe.data[use.source_name].hub is None]


def _columns_of(spec: StageSpec) -> frozenset[str]:
    """Return the columns a stage reads in addition to those of the row format."""
    named = getattr(spec.config, "group_by", None)
    own = frozenset[str]().union(*(reading.columns for reading in kind_of(spec.kind).traits.reads.values()))
    return own | ({named} if named else set())


def _data_of(config: Any) -> dict[str, str]:
    """Return the names of a configuration's data sources, by field."""
    return {field: getattr(config, field) for field in type(config).markers(Data) if getattr(config, field)}


def _read(
    source: DataSource,
    use: SourceUse,
    where: str,
    store: Store,
    remembered: _Remembered,
    progress: Progress | None,
) -> SourceCount | tuple[Problem, ...]:
    """Return the counts of a source, read or from the cache, or its problems."""
    if progress is not None:
        progress(f"reading data {use.source_name}")
    try:
        content = digest(source, cache=store.root / ".cache", artifact=use.artifact)
    except PipelineError as error:  # same text as the plan's problem, so that it is reported once
        named = [replace(problem, found=f"data.{use.source_name}: {problem.found}") for problem in error.problems]
        return tuple(replace(problem, where=problem.where or where) for problem in named)
    try:
        key = remembered.key(content.digest, use.shapes, source.model_dump(mode="json", exclude={"path"}))
        known = remembered.get(key)
        if known is None:
            rows = load(source, use.shapes, seed=use.seed, name=use.source_name, artifact=use.artifact)
            remember_prompts(store, content.digest, source, rows)
            known = SourceCount(
                use.source_name,
                rows.shape,
                len(rows.train),
                len(rows.held_out),
                rows.rejected,
                rows.detected,
                rows.unused,
                remarks=rows.notes,
                margins=sum(row.get("margin") is not None for row in rows.train),
            )
    except PipelineError as error:
        # A bad row is a problem of its source, not of a stage that reads it.
        return tuple(replace(problem, where=problem.where or where, stage="") for problem in error.problems)
    if source.held_out and not known.held_out:
        statement = (
            f"data {use.source_name}: held_out is {source.held_out:g}, but no row is held out: all have one prompt"
        )
        return (Problem(statement, "rows of two prompts or more", "bring more, or remove `held_out`", where),)
    remembered.put(key, known)
    remarks = (*known.remarks, *_file_remarks(source, content))
    return replace(known, source=use.source_name, unread=source.unread_files, remarks=remarks)


def _file_remarks(source: DataSource, content: DataDigest) -> Iterator[str]:
    """Yield notes on empty and duplicate files of a source."""
    if content.empty:
        yield f"these files hold no rows: {listed(content.empty)}"
    if source.repeated_files:
        names = listed(f"{again.name} is {first.name}" for again, first in source.repeated_files)
        yield f"a file under two names is read once: {names}"


class _Remembered:
    """Cache of the counts of sources without problems, by digest, shape and options."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.counts: JsonObject = {}
        self.is_changed = False
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None
        if isinstance(content, dict):
            self.counts = content

    @staticmethod
    def key(content: str, shapes: Shapes, options: JsonView) -> str:
        """Return the cache key of a source's content, the requested shapes and the source's options."""
        return hashlib.sha256(json.dumps([content, shapes, options], sort_keys=True).encode()).hexdigest()

    def get(self, key: str) -> SourceCount | None:
        """Return the cached counts; None if there are none."""
        known = self.counts.get(key)
        if known is None:
            return None
        return SourceCount(
            **{**known, "unused": tuple(known["unused"]), "unread": (), "remarks": tuple(known["remarks"])}
        )

    def put(self, key: str, count: SourceCount) -> None:
        """Add the counts of a source."""
        if key not in self.counts:
            self.counts[key] = asdict(count)
            self.is_changed = True

    def save(self) -> None:
        """Write the file if counts were added; a lost write only costs time."""
        if not self.is_changed:
            return
        keep_if_possible(self.file, json.dumps(self.counts, sort_keys=True))
