"""Reads one data file row by row: JSON Lines, a JSON list, CSV, TSV, Parquet or plain text, each also compressed.

The suffix of a file chooses its reader. An unreadable row is no error here: it becomes a `RawRow` with a fault, and the
caller decides whether to stop or to skip it. A file that cannot be read at all raises. Knows nothing of what the
columns of a row mean.

A `.txt` file is one document. A JSON list, a text, a compressed Parquet file and a zstd file are read into memory as a
whole.
"""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, Problem
from pipeline.recipe.paths import COMPRESSIONS, FILE_TYPES, suffix_of
from pipeline.records.files.csv_files import delimited_rows
from pipeline.records.files.json_files import json_rows
from pipeline.records.files.opening import (
    MAX_ROW_BYTES,
    RawRow,
    encoding_hint,
    open_bytes,
    oversized,
    refuse_other,
    shown,
    skip_bom,
)


class NoRowsError(PipelineError):
    """A file holds no rows; the caller may skip it if other files of the source do."""

    def __init__(self, path: Path) -> None:
        super().__init__(Problem("file holds no rows", "at least one row", "remove it or fill it", shown(path)))


def read_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a file.

    Raises:
        PipelineError: the file is missing, damaged, truncated, or of an unknown type.
        NoRowsError: it holds no rows.
    """
    read = _READERS[file_type(path)]
    count = 0
    try:
        refuse_other(path)
        for row in read(path):
            count += 1
            yield row
    except EOFError as error:
        raise _unreadable(path, "ends in the middle of its compressed data", "a whole file", error) from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise _unreadable(path, f"is damaged ({error})", "intact compressed data", error) from error
    except OSError as error:
        raise _unreadable(path, f"cannot be read ({error.strerror or error})", "a data file", error) from error
    if count == 0:
        raise NoRowsError(path)


def file_type(path: Path) -> str:
    """Return the suffix that names the type of a file, without compression suffixes.

    Raises:
        PipelineError: the suffix is not one of `FILE_TYPES`.
    """
    suffix = suffix_of(path.name)
    if suffix not in FILE_TYPES:
        expected = f"{', '.join(FILE_TYPES)}, also with {', '.join(COMPRESSIONS)}"
        remedy = "leave it out of `path`, or write it as one of these"
        raise PipelineError(Problem(f"unknown type of file `{path.name}`", expected, remedy, shown(path)))
    return suffix


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow.parquet  # slow to load; only Parquet files need it

    number = 0
    try:
        with open_bytes(path) as handle:
            is_seekable = isinstance(handle, io.BufferedReader)
            file = pyarrow.parquet.ParquetFile(handle if is_seekable else io.BytesIO(handle.read()))
            _refuse_twice(path, file.schema_arrow, pyarrow.types)
            for batch in file.iter_batches(1024):
                for value in batch.to_pylist():
                    number += 1
                    yield RawRow(number, value)
    except (pyarrow.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise _unreadable(path, f"is not readable as Parquet ({reason})", "a whole Parquet file", error) from error


def _refuse_twice(path: Path, fields: Iterable[Any], types: Any) -> None:
    """Raise if two columns of a table, or two fields of an object in it, have the same name, which is ambiguous.

    Args:
        path: the file, for the message.
        fields: pyarrow's fields.
        types: the module `pyarrow.types`.
    """
    names: set[str] = set()
    for one in fields:
        if one.name in names:
            expected = "each name once"
            raise PipelineError(
                Problem(f"file has `{one.name}` twice", expected, "rename one and write the file again", shown(path))
            )
        names.add(one.name)
        kind = one.type
        while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            kind = kind.value_type
        if types.is_struct(kind):
            _refuse_twice(path, [kind.field(at) for at in range(kind.num_fields)], types)


def _text_rows(path: Path) -> Iterator[RawRow]:
    """Yield the whole file as one document."""
    with open_bytes(path) as handle:
        skip_bom(path, handle)
        content = handle.read(MAX_ROW_BYTES + 1)
        if len(content) > MAX_ROW_BYTES:
            yield oversized(1, content, iter(lambda: handle.read(2**20), b""))
            return
    try:
        if content:
            yield RawRow(1, {"text": content.decode("utf-8")})
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        fault = f"is not UTF-8: byte 0x{content[error.start]:02x}{encoding_hint(path, content)}"
        yield RawRow(number, None, fault, content.decode("utf-8", "backslashreplace"))


def _unreadable(path: Path, statement: str, expected: str, error: Exception) -> PipelineError:
    missing = isinstance(error, FileNotFoundError)
    remedy = "check the path" if missing else "fetch or write it again"
    return PipelineError(Problem(f"file {statement}", expected, remedy, shown(path)))


_READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": json_rows,
    ".ndjson": json_rows,
    ".json": json_rows,
    ".csv": lambda path: delimited_rows(path, ","),
    ".tsv": lambda path: delimited_rows(path, "\t"),
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}
