"""What the user of an exported file should know: answers that it lacks, people whom texts name, cells like formulas."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from pipeline.errors import agreeing, counted
from pipeline.plain_data import JsonObject
from pipeline.preferences.exchange.export import Labels
from pipeline.preferences.items import is_ranked
from pipeline.preferences.probes import is_probe
from pipeline.preferences.stored_items import ids_of

WRITTEN = ("comment", "reason", "edit", "ratings")
"""Columns with what people wrote."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a cell that a spreadsheet takes for a formula.

Reference: OWASP, CSV Injection. The texts are not changed, since who reads the file with a program wants them as they
are.
"""


SINGLE = ("raw", "csv", "parquet", "argilla", "label-studio")
"""Formats that have every label for itself; the others have one decision of all labels of a pair."""


def cautions(labels: Labels, rows: Sequence[JsonObject], row_format: str) -> Iterator[str]:
    """Yield a sentence for each thing that is to be known of an exported file.

    Args:
        labels: what was exported, as it was given.
        rows: the rows of the file.
        row_format: their format.
    """
    known = frozenset(ids_of(labels.items))
    answered = (item for own in labels.state.answers.values() for item in own)
    if gone := sum(item not in known and not is_probe(item) for item in answered):
        of = f"{counted(gone, 'answer')} to {'groups' if is_ranked(labels.items) else 'pairs'}"
        yield f"{of} that the data do not have now {agreeing(gone, 'is', 'are')} left out"
    if row_format in SINGLE:
        yield from _overruled(labels, known)
    if labels.pseudonyms and (named := _naming(labels, rows)):
        what = counted(named, "row has a text", "rows have texts")
        yield f"{what} that {agreeing(named, 'names', 'name')} a person: --pseudonyms changes nothing that people wrote"
    if row_format == "csv":
        cells = (value for row in rows for value in row.values() if isinstance(value, str))
        if count := sum(cell.startswith(FORMULA) for cell in cells):
            begin = agreeing(count, "begins", "begin")
            yield f"{counted(count, 'cell')} {begin} like a formula: a spreadsheet should import the columns as text"


def _overruled(labels: Labels, known: frozenset[str]) -> Iterator[str]:
    """Yield what decides pairs beside the labels that the rows have."""
    noun = "group" if is_ranked(labels.items) else "pair"
    if final := len(labels.state.adjudicated.keys() & known):
        by = f"{counted(final, noun)} {agreeing(final, 'is', 'are')} decided by a lead"
        yield f"{by}, whose verdict is nobody's label: --format preference has it"
    if dropped := sum(bool(labels.state.given.get(item)) for item in labels.state.dropped.keys() & known):
        were = agreeing(dropped, "was", "were")
        yield f"{counted(dropped, noun)} with answers {were} dropped; these answers are rows too"


def _naming(labels: Labels, rows: Iterable[JsonObject]) -> int:
    """Return the number of rows with a text that names an annotator."""
    people = [name for name, own in labels.state.answers.items() if own]
    if not people:
        return 0
    names = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, people))})(?!\w)", re.IGNORECASE)
    return sum(any(names.search(str(row.get(column) or "")) for column in WRITTEN) for row in rows)
