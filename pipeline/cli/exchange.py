"""What `trueup labels export` and `trueup labels import` do with the labels of a collection.

Needs the libraries of the optional extra `collect`.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from pipeline.cli.collection import Collection, said_until
from pipeline.cli.terminal import print_line
from pipeline.errors import PipelineError, Problem, agreeing, counted, listed
from pipeline.machine.disk import writing
from pipeline.plain_data import JsonObject
from pipeline.preferences.agreement import LabelledPair, edited_pairs, majority
from pipeline.preferences.events import LedgerEvent, NewEvent
from pipeline.preferences.exchange.cautions import SINGLE, cautions
from pipeline.preferences.exchange.export import FORMATS, Labels, Rows, split_rows
from pipeline.preferences.exchange.files import content_of
from pipeline.preferences.exchange.importing import Matcher, events_of
from pipeline.preferences.exchange.ranking_import import RANKING_READERS, ranking_format
from pipeline.preferences.exchange.ranking_rows import RANKING_FORMATS
from pipeline.preferences.exchange.reading import READ_AS, READERS, Said, pair_format, said_in, unread_columns
from pipeline.preferences.items import is_ranked
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.labels import State
from pipeline.preferences.people import check_name
from pipeline.preferences.rankings import implied
from pipeline.records.files.reader import read_rows
from pipeline.stages.collect.aggregation import aggregated

HELD_OUT = "held-out"
"""Added to the name of a file: what `--split` holds out."""

NOUNS = {"preference": "preference", "hh": "preference", "unpaired": "answer", "argilla": "record"}
NOUNS |= {"label-studio": "task"}


class ExportOptions(NamedTuple):
    """The options of an export.

    Attributes:
        row_format: one of `FORMATS`.
        out: the file; None prints it.
        until: number of the last event of the ledger to count; None counts all.
        ties: whether pairs without a preference make rows of margin 0.
        share: share of the prompts that is held out in a file of its own; 0 for none.
        pseudonyms: whether names of annotators are replaced.
        aggregate: how several labels of a pair become one; None as the stage does.
    """

    row_format: str
    out: Path | None
    until: int | None
    ties: bool
    share: float
    pseudonyms: bool
    aggregate: str | None


def export(collection: Collection, options: ExportOptions) -> None:
    """Write labels in a format; print on standard error how many rows there are, and what makes none and why.

    Raises:
        PipelineError: an option does not fit the format, or the file cannot be written.
    """
    _check(options)
    if options.aggregate is not None and collection.live:
        expected = "a batch of pairs: nobody else sees a person's dialogue"
        raise PipelineError(Problem(f"--aggregate {options.aggregate} of live dialogues", expected))
    collection.note_head()
    events = said_until(collection.ledger, options.until)
    given = _given(collection, events, options)
    labels = _labels(collection, given, options)
    rows, without = _rows(labels, options.row_format)
    if options.share:
        train, held_out = split_rows(rows, options.share)
        assert options.out is not None
        _write(train, options.row_format, options.out)
        _write(held_out, options.row_format, held_out_file(options.out))
    else:
        train, held_out = [one.row for one in rows], []
        _write(train, options.row_format, options.out)
    said = "".join(f", {count} {why}" for why, count in sorted(without.items()))
    beside = f", {len(held_out)} of them held out in {held_out_file(options.out)}" if options.out and held_out else ""
    noun = NOUNS.get(options.row_format, "row")
    number = events[-1].number if events else 0
    print_line(f"{counted(len(rows), noun)} as of event {number}{beside}{said}", stream=sys.stderr)
    for caution in cautions(given, [*train, *held_out], options.row_format):
        print_line(caution, stream=sys.stderr)


def _given(collection: Collection, events: list[LedgerEvent], options: ExportOptions) -> Labels:
    """Return the labels as they were given."""
    times = {event.number: event.at for event in events}
    how = (options.ties, options.pseudonyms)
    return Labels(collection.batch_of(events).items, State().take(events), times, majority, *how)


def _labels(collection: Collection, given: Labels, options: ExportOptions) -> Labels:
    """Return the labels that a format has: those that were given, or of pairs to aggregate, which rankings imply."""
    if options.row_format in SINGLE:
        return given
    pairs = implied(given.items, given.state)
    decide = aggregated(options.aggregate or collection.aggregate, pairs)
    return given._replace(items=pairs.items, state=pairs.state, decide=decide)


def _rows(labels: Labels, row_format: str) -> Rows:
    rankings = RANKING_FORMATS.get(row_format) if is_ranked(labels.items) else None
    if rankings is not None:
        return rankings(labels)
    rows, without = FORMATS[row_format](labels)
    has_edits = any(one.details and one.details.edit for own in labels.state.answers.values() for one in own.values())
    if row_format == "preference" and has_edits:
        without["of an edited answer"] = edited_pairs([cast(LabelledPair, one.row) for one in rows], labels.items)
    return rows, without


def _check(options: ExportOptions) -> None:
    row_format = options.row_format
    if row_format not in FORMATS:
        raise PipelineError(Problem(f"--format {row_format}", f"one of {', '.join(FORMATS)}"))
    if options.aggregate is not None and options.aggregate not in ("majority", "dawid_skene"):
        raise PipelineError(Problem(f"--aggregate {options.aggregate}", "majority or dawid_skene"))
    is_aggregated = row_format not in SINGLE
    if options.aggregate is not None and not is_aggregated:
        statement = f"--aggregate with --format {row_format}, which has every label for itself"
        raise PipelineError(Problem(statement, "preference, unpaired or hh"))
    if options.ties and row_format != "preference":
        why = "has no margin that could be 0" if is_aggregated else "has ties in any case"
        raise PipelineError(Problem(f"--ties with --format {row_format}, which {why}", "--format preference"))
    if options.pseudonyms and is_aggregated:
        raise PipelineError(Problem(f"--pseudonyms with --format {row_format}, which names nobody", "leave it out"))
    if options.share and options.out is None:
        raise PipelineError(Problem("--split writes two files", "the name of the first", "--out FILE"))
    if row_format == "parquet" and options.out is None:
        raise PipelineError(Problem("--format parquet is not text that can be printed", "a file", "--out FILE"))


def held_out_file(out: Path) -> Path:
    """Return the file of the rows that are held out: ``pairs.held-out.jsonl`` beside ``pairs.jsonl``."""
    return out.with_name(f"{out.stem}.{HELD_OUT}{out.suffix}")


def _write(rows: list[JsonObject], row_format: str, out: Path | None) -> None:
    content = content_of(rows, row_format)
    if out is None:
        sys.stdout.write(content.decode())
        return
    try:
        with writing(out):
            out.write_bytes(content)
    except OSError as error:
        statement = f"cannot write {out}: {error.strerror}"
        raise PipelineError(Problem(statement, "a file in a folder that exists")) from error


def import_labels(collection: Collection, files: Sequence[str], row_format: str | None, person: str) -> None:
    """Append the labels of a file to the ledger, in one transaction; print what became of each row.

    Args:
        collection: the items and their ledger.
        files: one file with rows of another tool or of an export.
        row_format: one of the formats; None finds it out.
        person: who gave the labels that name nobody.

    Raises:
        PipelineError: the batch has live dialogues, there is not one file, it cannot be read or is of
            no known format, or a name is missing or is not an annotator's.
    """
    if collection.live:
        expected = "a batch of pairs: a choice in a dialogue also says how it goes on"
        raise PipelineError(Problem("an import into live dialogues", expected))
    if len(files) != 1:
        raise PipelineError(Problem(f"an import of {counted(len(files), 'file')}", "one file, after the stage"))
    file = Path(files[0])
    rows = [row.value for row in read_rows(file)]
    first_row = next((row for row in rows if row is not None), {})
    if collection.batch.is_ranked:
        readers, formats, format_of = RANKING_READERS, [*RANKING_FORMATS], ranking_format
    else:
        readers, formats, format_of = READERS, [name for name in FORMATS if name != "unpaired"], pair_format
    if row_format is not None and row_format not in formats:
        raise PipelineError(Problem(f"--format {row_format} of an import", f"one of {', '.join(formats)}"))
    row_format = READ_AS.get(row_format or "", row_format) or format_of(first_row)
    counts = Counter[str]()
    said = list(said_in(rows, row_format, counts, readers))
    if not person and any(not one.person for one in said):
        remedy = "--as NAME says whose they are"
        raise PipelineError(Problem(f"{file}: labels name no person", "a name for each", remedy))
    queue = LabelQueue(collection.batch, collection.ledger, hands_out=False)  # gives a new batch its secret
    known = queue.people()
    for name in {one.person.strip() or person for one in said}:
        check_name(name)
        if name in known and known[name].role == "lead":
            raise PipelineError(Problem(f"{file}: {name} is a lead here", "annotators", "give them another name"))
    matcher = Matcher(collection.batch.items)
    there = dict.fromkeys(known)

    def decide(state: State) -> list[NewEvent] | None:
        there.update(dict.fromkeys(state.answers))
        made = events_of(said, matcher, state, file.name, person)
        counts.update(made.counts)
        return made.events or None

    written = queue.record(decide)
    collection.note_head()
    beside = "".join(f"; {counted(count, *_plural(what))}" for what, count in sorted(counts.items()))
    for caution in _cautions(said, there, unread_columns(rows, row_format)):
        print_line(caution, stream=sys.stderr)
    people = len({event.body["annotator"] for event in written})
    of = f" of {counted(people, 'person', 'people')}" if written else ""
    print_line(f"{counted(len(written), 'label')}{of} imported{beside}")


def _cautions(said: Iterable[Said], people: Iterable[str], unread: Sequence[str]) -> Iterator[str]:
    """Yield what to look at in an import: columns that nobody reads, and names that are nearly those of others."""
    if unread:
        yield f"{listed(unread)}: {agreeing(len(unread), 'this column is', 'these columns are')} not read"
    names = dict.fromkeys([*people, *(one.person.strip() for one in said if one.person.strip())])
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[" ".join(name.split()).casefold()].append(name)
    for own in alike.values():
        if len(own) > 1:
            yield f"{listed(own)} are {len(own)} people, whose names differ in case or white space only"


def _plural(what: str) -> tuple[str, str]:
    """Return a count's words for one and for several: the first word takes an s, and its verb goes with it."""
    noun, _, rest = what.partition(" ")
    for one, several in ((" is ", " are "), (" differs ", " differ "), (" names ", " name ")):
        rest = f" {rest}".replace(one, several)[1:]
    return what, f"{noun}s {rest}"
