"""Writes the rows of an export to a file: JSON Lines, one JSON list, CSV or Parquet, as the format asks."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from operator import itemgetter

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import to_json

from pipeline.plain_data import JsonObject
from pipeline.preferences.exchange.ranking_rows import NAMES

LISTS = ("argilla", "label-studio")
"""Formats whose file is one JSON list."""

TABLE = {
    "item": pa.string(),
    "prompt": pa.string(),
    "response_a": pa.string(),
    "response_b": pa.string(),
    "person": pa.string(),
    "kind": pa.string(),
    "verdict": pa.string(),
    "strength": pa.int64(),
    "seconds": pa.float64(),
    "left": pa.string(),
    "guidelines": pa.string(),
    "propensity": pa.float64(),
    "event": pa.int64(),
    "time": pa.float64(),
    "reason": pa.string(),
    "comment": pa.string(),
    "edit": pa.string(),
    "ratings": pa.string(),
    "flag": pa.string(),
    "tools": pa.string(),
}
"""Columns of a table of labels."""

_WORDS = ["person", "kind", "verdict", "left", "guidelines", "reason", "flag"]
"""Columns with few different texts, which Parquet writes once."""

_OF_PAIRS = {"response_a", "response_b", "verdict", "strength", "left", "edit", "ratings"}
RANKING_TABLE = {
    "item": pa.string(),
    "prompt": pa.string(),
    **dict.fromkeys(NAMES, pa.string()),
    "ranking": pa.string(),
    "shown": pa.string(),
    **{name: kind for name, kind in TABLE.items() if name not in {"item", "prompt", *_OF_PAIRS}},
}
"""Columns of a table of rankings."""


def content_of(rows: Sequence[JsonObject], row_format: str) -> bytes:
    """Return rows as the content of a file.

    Args:
        rows: rows of one format.
        row_format: name of the format, one of `pipeline.preferences.exchange.export.FORMATS`.
    """
    table = RANKING_TABLE if rows and "ranking" in rows[0] else TABLE
    if row_format == "parquet":
        columns = {name: [row[name] for row in rows] for name in table}
        sink = io.BytesIO()
        pq.write_table(
            pa.table(columns, schema=pa.schema(table)), sink, use_dictionary=[name for name in _WORDS if name in table]
        )
        return sink.getvalue()
    if row_format == "csv":
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(table)
        writer.writerows(map(itemgetter(*table), rows))
        return text.getvalue().encode()
    lines = map(to_json, rows)
    if row_format in LISTS:
        return b"[\n" + b",\n".join(lines) + b"\n]\n"
    return b"".join(line + b"\n" for line in lines)
