"""Reads the data sources of a plan: counts training, held-out and rejected rows for each stage, and finds problems.

Owns reading every source once for each requested shape, and caching the counts by the source's digest. Knows nothing
of tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.artifacts import Store
from pipeline.errors import PipelineError, Problem, agreeing, counted, listed
from pipeline.machine.disk import keep_if_possible
from pipeline.plain_data import JsonObject, JsonView
from pipeline.plan import Plan
from pipeline.plan.overlap import remember_prompts
from pipeline.recipe import DataSource, StageSpec
from pipeline.records import DataDigest, LoadedRows, digest, load
from pipeline.stage import Data, Shapes, kind_of
from pipeline.training.report_columns import ColumnFacts, ReportColumns, column_facts

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
        columns: columns that the stage's reward card reads of these rows.
    """

    stage: str
    field: str
    source_name: str
    shapes: Shapes
    seed: int
    artifact: Path | None
    columns: tuple[str, ...] = ()


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
        columns: what the columns of `SourceUse.columns` hold, of training rows as ``train.NAME`` and of held-out ones
            as ``held_out.NAME``.
        outside: number of rows whose prompt is not in the source's part.
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
    columns: Mapping[str, ColumnFacts] = field(default_factory=dict, compare=False)  # no count of its own
    outside: int = 0

    @property
    def kept(self) -> int:
        """Number of usable rows, training and held-out."""
        return self.train + self.held_out

    @property
    def read(self) -> int:
        """Number of rows that were read, usable or not."""
        return self.kept + self.rejected + self.outside

    @property
    def notes(self) -> Iterator[str]:
        """Notes on the source for the user, one sentence each."""
        if self.rejected:
            are = agreeing(self.rejected, "is", "are")
            yield f"data {self.source}: {self.rejected:,} of {counted(self.read, 'row')} {are} bad and {are} left out"
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
        options = json.dumps([use.source_name, str(use.artifact or ""), use.shapes, use.columns])
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
        for name, item in stage.data.items():
            folder = item.input.artifact if item.input is not None else None
            if item.input is None or folder is not None:
                uses.append(
                    SourceUse(
                        stage.spec.name,
                        name,
                        item.source_name,
                        markers[name].shape,
                        stage.spec.seed,
                        folder,
                        _report_columns(stage.spec, name),
                    )
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
            SourceUse(name, field, source_name, markers[field].shape, spec.seed, None, _report_columns(spec, field))
            for field, source_name in data.items()
            if source_name in recipe.data and recipe.data[source_name].artifact is None
        ]
    return [use for use in uses if recipe.data[use.source_name].hub is None]


def _columns_of(spec: StageSpec) -> frozenset[str]:
    """Return the columns a stage reads in addition to those of the row format."""
    named = ReportColumns.of(spec.config).named.values()
    own = frozenset[str]().union(*(reading.columns for reading in kind_of(spec.kind).traits.reads.values()))
    return own.union(named)


def _report_columns(spec: StageSpec, data_field: str) -> tuple[str, ...]:
    """Return the columns that a stage's reward card reads of the rows of a field; none if it is not of these rows."""
    if _report_field(spec) != data_field:
        return ()
    return tuple(ReportColumns.of(spec.config).named.values())


def _report_field(spec: StageSpec) -> str:
    """Return the data field whose pairs a stage's reward card is of; empty if it writes none.

    They are those of a field that is only for tests, if the recipe gives it, and else the held-out ones of `data`.
    """
    if not hasattr(spec.config, "property_column"):
        return ""
    reads = kind_of(spec.kind).traits.reads
    return next((name for name, one in reads.items() if one.is_test and getattr(spec.config, name, None)), "data")


def report_problems(spec: StageSpec, use: SourceUse, count: SourceCount) -> Iterator[Problem]:
    """Yield what is wrong with the columns that a stage's reward card reads of a data source."""
    if not use.columns:
        return
    reading = kind_of(spec.kind).traits.reading(use.field)
    takes_split = not reading.is_test or (reading.held_out_only and bool(count.held_out))
    part = "held_out" if takes_split else "train"
    facts = {name: count.columns[f"{part}.{name}"] for name in use.columns}
    yield from ReportColumns.of(spec.config).problems(facts)


def _data_of(config: Any) -> dict[str, str]:
    """Return the names of a configuration's data sources, by field."""
    return {name: getattr(config, name) for name in type(config).markers(Data) if getattr(config, name)}


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
        read = source.model_dump(mode="json", exclude={"path"}) | ({"report": use.columns} if use.columns else {})
        key = remembered.key(content.digest, use.shapes, read)
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
                columns=_facts_of(rows, use.columns),
                outside=rows.outside,
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
    remarks = (*known.remarks, *_file_remarks(source, content), *_part_remarks(source, known))
    return replace(known, source=use.source_name, unread=source.unread_files, remarks=remarks)


def _facts_of(rows: LoadedRows, columns: Sequence[str]) -> dict[str, ColumnFacts]:
    """Return what the named columns of training and of held-out rows hold."""
    parts = {"train": rows.train, "held_out": rows.held_out}
    return {f"{part}.{name}": column_facts(some, name) for part, some in parts.items() for name in columns}


def _file_remarks(source: DataSource, content: DataDigest) -> Iterator[str]:
    """Yield notes on empty and duplicate files of a source."""
    if content.empty:
        yield f"these files hold no rows: {listed(content.empty)}"
    if source.repeated_files:
        names = listed(f"{again.name} is {first.name}" for again, first in source.repeated_files)
        yield f"a file under two names is read once: {names}"


def _part_remarks(source: DataSource, count: SourceCount) -> Iterator[str]:
    """Yield a note on the rows that the part of a source leaves to others."""
    if source.part and count.outside:
        low, high = source.part
        are = agreeing(count.outside, "is", "are")
        yield f"{count.outside:,} of {counted(count.read, 'row')} {are} not in the part from {low:g} to {high:g}"


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
        columns = {name: ColumnFacts(*facts) for name, facts in known.get("columns", {}).items()}
        lists = {name: tuple(known[name]) for name in ("unused", "remarks")}
        return SourceCount(**{**known, **lists, "unread": (), "columns": columns})

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
