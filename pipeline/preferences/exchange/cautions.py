"""What the user of an exported file should know: answers that it lacks, people whom texts name, cells like formulas."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from pipeline.errors import agreeing, counted
from pipeline.plain_data import JsonObject
from pipeline.preferences.exchange.export import Labels
from pipeline.preferences.probes import is_probe
from pipeline.preferences.stored_items import ids_of

WRITTEN = ("comment", "reason", "edit", "ratings")
"""Columns with what people wrote."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of a cell that a spreadsheet takes for a formula.

Reference: OWASP, CSV Injection. The texts are not changed, since who reads the file with a program wants them as they
are.
"""


def cautions(labels: Labels, rows: Sequence[JsonObject], row_format: str) -> Iterator[str]:
    """Yield a sentence for each thing that is to be known of an exported file.

    Args:
        labels: what was exported.
        rows: the rows of the file.
        row_format: their format.
    """
    known = frozenset(ids_of(labels.items))
    answered = (item for own in labels.state.answers.values() for item in own)
    if gone := sum(item not in known and not is_probe(item) for item in answered):
        yield f"{counted(gone, 'answer')} to pairs that the data do not have now {agreeing(gone, 'is', 'are')} left out"
    if labels.pseudonyms and (named := _naming(labels, rows)):
        what = counted(named, "row has a text", "rows have texts")
        yield f"{what} that {agreeing(named, 'names', 'name')} a person: --pseudonyms changes nothing that people wrote"
    if row_format == "csv":
        cells = (value for row in rows for value in row.values() if isinstance(value, str))
        if count := sum(cell.startswith(FORMULA) for cell in cells):
            begin = agreeing(count, "begins", "begin")
            yield f"{counted(count, 'cell')} {begin} like a formula: a spreadsheet should import the columns as text"


def _naming(labels: Labels, rows: Iterable[JsonObject]) -> int:
    """Return the number of rows with a text that names an annotator."""
    people = [name for name, own in labels.state.answers.items() if own]
    if not people:
        return 0
    names = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, people))})(?!\w)", re.IGNORECASE)
    return sum(any(names.search(str(row.get(column) or "")) for column in WRITTEN) for row in rows)
