"""Loads a data source in a shape a stage takes: reads, checks, counts and splits its rows; reports every dropped row.

Owns the order of rows, the treatment of bad rows, and `LoadedRows`. Knows nothing of stages.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from pipeline.errors import PipelineError, Problem, listed
from pipeline.plain_data import Row, ShapedRow
from pipeline.recipe.paths import suffix_of
from pipeline.records.columns.contradictions import Contradictions
from pipeline.records.columns.renaming import (
    KNOWN,
    TALKS,
    hidden_vote_problem,
    remedy_of,
    renamed,
    renamed_where_possible,
    suggested,
)
from pipeline.records.columns.two_answers import two_answers_problem
from pipeline.records.columns.unused import Unused
from pipeline.records.digests import combined, digest_of, hub_digest
from pipeline.records.faults import BadRowError
from pipeline.records.files.csv_files import naming_command
from pipeline.records.files.json_files import lists_problem, table_problem
from pipeline.records.files.opening import RawRow, piped, place, shown, unpacked_name
from pipeline.records.files.reader import NoRowsError, read_rows
from pipeline.records.shapes.comparisons import LISTS, votes_problem
from pipeline.records.shapes.conversion import shaped
from pipeline.records.shapes.detection import detected_format
from pipeline.records.shapes.formats import FORMATS
from pipeline.records.sources import Source, files_of, hub_place, hub_rows
from pipeline.records.split import empty_part_problem, is_within, split
from pipeline.stage import Shape, Shapes

LISTED_BAD_ROWS = 20
FEW_BAD_ROWS = 3
"""Up to this many bad rows are listed one by one even if all have the same reason."""
HEADERS: dict[Shape, tuple[str, ...]] = {
    "text": ("text",),
    "messages": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "labelled": ("prompt", "completion", "label"),
    "prompt": ("prompt",),
    "candidates": ("prompt", "candidates"),
}
"""Likely column names of a file without a header, by the shape the stage takes."""
LISTED = frozenset({*KNOWN, *LISTS, *TALKS})
"""Columns of a row that may hold a list of objects."""
LINES_TO_PROMPTS = "jq -cR 'select(. != \"\") | {prompt: .}'"


@dataclass(frozen=True)
class LoadedRows:
    """Checked rows of one shape.

    Attributes:
        shape: shape of all rows.
        train: rows to train on.
        held_out: rows split off by prompt; empty when the source asks for no split.
        places: ``file:line`` of each row, those of `train` first.
        rejected: number of bad rows left out, each written to the rejects file.
        digest: digest of the source's content, as `digest` returns it.
        unused: columns that nothing reads, and keys of turns as ``messages[].id``; columns of prompt rows are
            not listed, because a reward function may read them.
        detected: the format taken and the reason, one sentence for each format that files were read in.
        notes: further notes on the rows, one sentence each.
        outside: number of rows whose prompt is not in the source's part.
    """

    shape: Shape
    train: list[ShapedRow]
    held_out: list[ShapedRow]
    places: list[str] = field(compare=False)
    rejected: int
    digest: str
    unused: tuple[str, ...] = ()
    detected: str = field(default="", compare=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    outside: int = 0


class _Batch(NamedTuple):
    """The rows of one file or hub data set, which have one format."""

    name: str  # for messages
    kept_as: str  # for the rejects file: the same on every machine
    digest: str
    rows: list[RawRow]


class _Layout(NamedTuple):
    """The format of a batch's rows and the shape they are converted to."""

    format: str
    shape: Shape | None  # None when no row can be read
    why: str = ""


class _BadRow(NamedTuple):
    where: str
    kept_as: str
    reason: str
    row: RawRow


def load(
    source: Source,
    shape: Shapes,
    *,
    seed: int,
    name: str,
    artifact: Path | None = None,
    rejects: Path | None = None,
) -> LoadedRows:
    """Read a source into checked rows of one shape.

    Rows keep their order in a file. Files are ordered by their digests, so that neither their names nor the order in
    the recipe change the result.

    Args:
        source: where the rows are and how to read them.
        shape: shape the stage takes; of several shapes, the first that all files can give.
        seed: seed of the stage. The split does not depend on it, and nothing else here is random.
        name: name of the source in the recipe.
        artifact: payload folder, when the source names an artifact.
        rejects: JSON Lines file for the bad rows of a source that skips them; written only when there are any.

    Raises:
        PipelineError: a file cannot be read, rows have an unknown or the wrong format, a row is bad and the source
            stops on bad rows, no row is left, or all labels are the same.
    """
    shapes = (shape,) if isinstance(shape, str) else shape
    batches = _batches(source, artifact)
    layouts = [_layout_of(batch, source, shapes, name) for batch in batches]
    shape = _one_shape(batches, layouts, name) or shapes[0]
    _check_options(source, shape, name)
    converted = _Converted(source, shape)
    for batch, layout in zip(batches, layouts, strict=True):
        converted.take(batch, layout.format)
    good, bad, places = converted.good, converted.bad, converted.places
    unused, contradictions = converted.unused, converted.contradictions
    outside, can_skip = converted.outside, bool(good or converted.outside)
    if bad and (source.on_bad_row == "stop" or not can_skip):
        columns = {} if good or source.columns else suggested([one.row.value for one in bad if one.row.value], shapes)
        advice = remedy_of(columns) if columns else ""
        raise PipelineError(*_bad_rows(bad, len(good) + len(bad) + outside, name, advice, can_skip=can_skip))
    problems = [one for one in (unused.problem(name, source.columns), contradictions.problem(name)) if one]
    if source.part and not good:
        raise PipelineError(empty_part_problem(source.part, outside, name))
    if problems:
        raise PipelineError(*problems)
    if bad and rejects is not None:
        _write_rejects(bad, rejects)
    train, held_out = split(good, source.held_out, shape)
    if shape == "labelled":
        _check_labels(train, name)
    content = hub_digest(source) if source.hub is not None else combined(batch.digest for batch in batches)
    where = [place(*places[id(row)]) for row in (*train, *held_out)]
    detected = "; ".join(dict.fromkeys(layout.why for layout in layouts if layout.why))
    notes = tuple(contradictions.notes())
    return LoadedRows(
        shape, train, held_out, where, len(bad), content, unused.names(), detected, notes, outside=outside
    )


def _check_options(source: Source, shape: Shape, name: str) -> None:
    if shape == "text" and source.system:
        raise PipelineError(Problem(f"data {name}: `system` is set", "text rows have no turns", "remove `system`"))
    twice = [new for new, count in Counter(source.columns.values()).items() if count > 1]
    if twice:
        raise PipelineError(Problem(f"data {name}: `columns` gives two columns the name `{twice[0]}`", "one each"))


def _batches(source: Source, artifact: Path | None) -> list[_Batch]:
    if source.hub is not None:
        rows = list(hub_rows(source))
        if not rows:
            raise PipelineError(Problem("data set has no rows", "at least one row", "", hub_place(source)))
        return [_Batch(hub_place(source), hub_place(source), "", rows)]
    files = files_of(source, artifact)
    root = Path(os.path.commonpath([path.parent for path in files]))
    batches = []
    for path in files:
        try:
            rows = list(read_rows(path))
        except NoRowsError:
            continue
        is_alone = len(rows) == 1 and suffix_of(path.name) in (".json", ".jsonl", ".ndjson")
        alone = rows[0].value if is_alone else None
        problem = (table_problem(path, alone) or lists_problem(path, alone, LISTED)) if alone else None
        if problem is not None:
            raise PipelineError(problem)
        batches.append(_Batch(shown(path), path.relative_to(root).as_posix(), digest_of(rows).digest, rows))
    if not batches:
        raise NoRowsError(files[0])
    return sorted(batches, key=lambda batch: batch.digest)


class _Converted:
    """The rows of a source in one shape, batch after batch, and what was noticed about them.

    Attributes:
        good: rows in the shape.
        places: name of the file and number of each good row, by its `id`: the split moves rows without copying them.
        bad: rows that cannot be converted.
        unused: columns that nothing reads.
        contradictions: columns that contradict one another.
        outside: number of rows whose prompt is not in the source's part.
    """

    def __init__(self, source: Source, shape: Shape) -> None:
        self._source, self._shape = source, shape
        self.good: list[ShapedRow] = []
        self.places: dict[int, tuple[str, int]] = {}
        self.bad: list[_BadRow] = []
        self.outside = 0
        self.unused, self.contradictions = Unused(shape), Contradictions(source.columns)

    def take(self, batch: _Batch, row_format: str) -> None:
        """Convert the rows of a batch, up to the source's limit."""
        limit = self._source.limit
        for row in batch.rows:
            if limit is not None and len(self.good) >= limit:
                break
            try:
                if self._convert(row, row_format):
                    self.places[id(self.good[-1])] = (batch.name, row.number)
            except BadRowError as fault:
                where, kept_as = place(batch.name, row.number), place(batch.kept_as, row.number)
                self.bad.append(_BadRow(where, kept_as, str(fault), row))

    def _convert(self, row: RawRow, row_format: str) -> bool:
        """Add a row to the good ones if its prompt is in the source's part; return whether it is.

        Raises:
            BadRowError: it cannot be read, or its columns cannot be converted.
        """
        if row.value is None:
            raise BadRowError(row.fault)
        columns = renamed(row.value, self._source.columns) if self._source.columns else row.value
        shaped_row = shaped(columns, row_format, self._shape, self._source.system)
        if self._source.part and not is_within(shaped_row, self._source.part, self._shape):
            self.outside += 1
            return False
        if self._shape in ("preference", "messages"):
            self.contradictions.look(columns, row_format)
        self.good.append(shaped_row)
        self.unused.look(columns, row_format, shaped_row)
        return True


def _layout_of(batch: _Batch, source: Source, shapes: Sequence[Shape], name: str) -> _Layout:
    """Return the format of a batch's rows, named by the recipe or detected, and the shape it gives.

    Raises:
        PipelineError: the format is unknown or gives none of the shapes.
    """
    chosen, why = source.format, f"format {source.format}: the recipe names it"
    raw = [row.value for row in batch.rows if row.value is not None]
    readable = [renamed_where_possible(row, source.columns) for row in raw] if source.columns else raw
    if chosen == "auto":
        if not readable:
            return _Layout("", None)  # no row can be read, so every row is bad in any format
        detected = detected_format(readable, shapes)
        if detected is None:
            raise PipelineError(_no_format(batch, raw, source, shapes, name))
        chosen, why = detected.format, f"format {detected.format}: {detected.why}"
    known = FORMATS[chosen]
    gives = (*known.shapes, *known.asked) if source.format != "auto" else known.shapes
    shape = next((shape for shape in shapes if shape in gives), None)
    if shape is None:
        raise PipelineError(_wrong_format(batch, raw, source, shapes, name, why))
    hidden = hidden_vote_problem(raw, source.columns, name) if source.columns else None
    unclear = votes_problem(readable, name) if chosen == "comparison" else None
    if shape == "prompt" and suffix_of(batch.name) == ".txt" and any("\n" in row["text"].strip() for row in raw):
        path = Path(batch.name)
        command = f"{piped(path, LINES_TO_PROMPTS)} > {quote(unpacked_name(path).rpartition('.')[0] + '.jsonl')}"
        statement = "file is one document of several lines"
        raise PipelineError(Problem(statement, "prompts", f"write one row per line: `{command}`", batch.name))
    if hidden or unclear:
        raise PipelineError(*(replace(one, where=batch.name) for one in (hidden, unclear) if one))
    return _Layout(chosen, shape, why)


def _wrong_format(
    batch: _Batch, rows: Sequence[Row], source: Source, shapes: Sequence[Shape], name: str, why: str
) -> Problem:
    """Return the problem of rows whose format gives none of the shapes, with a way to use them if there is one."""
    chosen = why.removeprefix("format ").partition(":")[0]
    remedy = f"set `format: {chosen}` to use them so" if set(shapes) & set(FORMATS[chosen].asked) else ""
    columns = {} if remedy or source.columns else suggested(rows, shapes)
    if not columns and not remedy and not source.columns and "preference" in shapes:
        problem = two_answers_problem(rows, name, batch.name)
        if problem is not None:
            return problem
    remedy = remedy or (remedy_of(columns) if columns else "name another data source")
    statement = f"data {name}: rows are of {why.replace(':', ' (', 1).replace('( ', '(')})"
    return Problem(statement, " or ".join(map(_rows_of, shapes)), remedy, batch.name)


def _rows_of(shape: Shape) -> str:
    formats = " or ".join(name for name, one in FORMATS.items() if shape in one.shapes)
    return f"{shape} rows (format {formats}{', and a label' if shape == 'labelled' else ''})"


def _one_shape(batches: Sequence[_Batch], layouts: Sequence[_Layout], name: str) -> Shape | None:
    """Return the common shape of all batches; None when no batch can be read.

    Raises:
        PipelineError: the batches have several shapes.
    """
    by_shape = {layout.shape: batch for batch, layout in zip(batches, layouts, strict=True) if layout.shape is not None}
    if len(by_shape) > 1:
        (one, first), (other, second) = list(by_shape.items())[:2]
        statement = f"data {name}: rows are {other}, those of {first.name} are {one}"
        raise PipelineError(Problem(statement, "one of the two", "make them two data sources", second.name))
    return next(iter(by_shape), None)


def _check_labels(rows: Sequence[Row], name: str) -> None:
    """Check that training rows have both labels, since neither label means anything without the other.

    Raises:
        PipelineError: all rows have the same label.
    """
    labels = {row["label"] for row in rows}
    if len(labels) == 1:
        word = str(labels.pop()).lower()
        every = "the only row" if len(rows) == 1 else f"all {len(rows):,} rows"
        missing = "false" if word == "true" else "true"
        statement = f"data {name}: the label of {every} to learn from is {word}"
        raise PipelineError(Problem(statement, "good rows and bad rows", f"add rows whose label is {missing}"))


def _no_format(batch: _Batch, rows: Sequence[Row], source: Source, shapes: Sequence[Shape], name: str) -> Problem:
    """Return the problem of rows without a known format; its remedy renames their columns if that is enough."""
    are = f"columns {listed(rows[0])} are" if len(rows[0]) > 1 else f"column {listed(rows[0]) or '(none)'} is"
    statement = f"data {name}: {are} of no known format"
    expected = " or ".join(map(_rows_of, shapes))
    columns = {} if source.columns else suggested(rows, shapes)
    if columns:
        return Problem(statement, expected, remedy_of(columns), batch.name)
    is_table = suffix_of(batch.name) in (".csv", ".tsv") and source.hub is None
    command = naming_command(Path(batch.name), list(rows[0]), HEADERS[shapes[0]]) if is_table else ""
    if command:
        expected = "names of columns in the first line"
        return Problem("the first line is a row", expected, f"put them there: `{command}`", f"{batch.name}:1")
    problem = two_answers_problem(rows, name, batch.name) if "preference" in shapes and not source.columns else None
    if problem is not None:
        return problem
    remedy = "rename them with `columns`, or write rows in one of the formats that `docs/data.md` lists"
    first = next((row for row in rows if isinstance(row.get("prompt"), Mapping) and "replies" in row["prompt"]), None)
    if first is not None or "replies" in rows[0]:
        remedy = 'write each path of the tree as one row: `{"messages": [{"role": …, "content": …}, …]}`'
    return Problem(statement, expected, remedy, batch.name)


def _bad_rows(bad: Sequence[_BadRow], total: int, name: str, advice: str, *, can_skip: bool) -> list[Problem]:
    remedy = advice or "mend the data"
    if can_skip:
        remedy += f", or set `data.{name}.on_bad_row: skip` to leave bad rows out and keep them in a file"
    if len(bad) == 1:
        return [Problem(found=f"row {bad[0].reason}", remedy=remedy, where=bad[0].where)]
    if len(bad) == total > FEW_BAD_ROWS and len({one.reason for one in bad}) == 1:  # one cause for all rows
        statement = f"data {name}: all {total} rows are bad for this reason"
        return [Problem(found=f"row {bad[0].reason}", where=bad[0].where), Problem(found=statement, remedy=remedy)]
    problems = [Problem(found=f"row {one.reason}", where=one.where) for one in bad[:LISTED_BAD_ROWS]]
    more = f" (the first {LISTED_BAD_ROWS} are listed)" if len(bad) > LISTED_BAD_ROWS else ""
    return [*problems, Problem(found=f"data {name}: {len(bad)} of {total} rows are bad{more}", remedy=remedy)]


def _write_rejects(bad: Iterable[_BadRow], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for one in bad:
            row = one.row.value if one.row.value is not None else one.row.raw
            line = {"where": one.kept_as, "reason": one.reason, "row": row}
            out.write(json.dumps(line, default=str) + "\n")
