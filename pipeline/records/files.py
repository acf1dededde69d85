"""Reads one data file row by row: JSON Lines, a JSON list, CSV, TSV, Parquet or plain text, each also compressed.

Owns bytes to rows. A row that cannot be read is not an error here: it comes out as a `RawRow` with a fault, so that
whoever reads decides whether to stop or to skip. A file that cannot be read at all raises. Knows nothing of what the
columns of a row mean.

Compression is told by the first bytes, the file type by the suffix; a `.json` or `.jsonl` file may hold either a list
or one object per line; a `.txt` file is one document. A JSON list, a text, a compressed Parquet file and a zstd file
are held in memory whole while they are read.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

from pipeline.errors import PipelineError, Problem

MAX_ROW_BYTES = 64 * 2**20
"""A longer line or field is a bad row: such a file is hardly ever what its name says."""

SHOWN_OF_LONG_ROW = 200
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
FILE_TYPES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
SPACE = re.compile(r"[ \t\r\n]*")


class RawRow(NamedTuple):
    """One row as it stands in its file.

    Attributes:
        number: 1-based line the row starts at; for Parquet and hub data the 1-based row.
        value: the columns, or None when the row cannot be read.
        fault: why it cannot be read, e.g. ``is not JSON: …``; empty for a good row.
        raw: text of a row that cannot be read.
    """

    number: int
    value: dict[str, Any] | None
    fault: str = ""
    raw: str = ""


def read_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a file.

    Raises:
        PipelineError: the file is missing, damaged, truncated, of an unknown type, or holds no rows.
    """
    read = _READERS[file_type(path)]
    count = 0
    try:
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
        raise PipelineError(Problem("file holds no rows", "at least one row", "remove it or fill it", shown(path)))


def file_type(path: Path) -> str:
    """Return the suffix that names the type of a file, with compression suffixes taken off.

    Raises:
        PipelineError: the suffix is not one of `FILE_TYPES`.
    """
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    suffix = Path(name).suffix
    if suffix not in FILE_TYPES:
        expected = f"{', '.join(FILE_TYPES)}, also with {', '.join(COMPRESSIONS)}"
        raise PipelineError(Problem(f"unknown type of file `{path.name}`", expected, "write it as one", shown(path)))
    return suffix


def shown(path: Path) -> str:
    """Return a path as messages show it: relative to the current directory when it lies in it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def place(name: str, number: int) -> str:
    """Return ``file:line``, or ``file row N`` where rows have no lines."""
    by_row = name.startswith("hub:") or ".parquet" in Path(name).name
    return f"{name} row {number}" if by_row else f"{name}:{number}"


def open_bytes(path: Path) -> io.BufferedReader:
    """Open a file for reading, decompressed; the reader can peek."""
    with path.open("rb") as handle:
        start = handle.read(6)
    opened: Any
    if start.startswith(b"\x1f\x8b"):
        opened = gzip.GzipFile(path)
    elif start.startswith(b"BZh"):
        opened = bz2.BZ2File(path)
    elif start == b"\xfd7zXZ\x00":
        opened = lzma.LZMAFile(path)  # noqa: SIM115
    elif start.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow as pa

        with pa.input_stream(str(path), compression="zstd") as stream:
            opened = io.BufferedReader(io.BytesIO(stream.read()))
    else:
        opened = path.open("rb")
    return cast(io.BufferedReader, opened)


def _skip_bom(path: Path, handle: io.BufferedReader) -> bytes:
    """Skip a UTF-8 byte order mark; return the bytes that follow, without consuming them."""
    ahead = handle.peek(4)
    if ahead[:2] in (b"\xff\xfe", b"\xfe\xff"):
        remedy = f"iconv -f UTF-16 -t UTF-8 {path.name}"
        raise PipelineError(Problem("file is UTF-16", "UTF-8", remedy, shown(path)))
    if ahead.startswith(b"\xef\xbb\xbf"):
        handle.read(3)
        ahead = handle.peek(1)
    return ahead


class RowDecoder:
    """Decodes JSON rows and notes the constants that JSON does not have (NaN, Infinity)."""

    def __init__(self) -> None:
        self._odd: list[str] = []
        self._decoder = json.JSONDecoder(parse_constant=self._odd.append)

    def decode(self, text: str, start: int, number: int) -> tuple[RawRow, int]:
        """Return the row that starts at ``text[start]`` and where it ends.

        Raises:
            ValueError: there is no JSON value at ``start`` (a `json.JSONDecodeError`), or it is nested too deeply.
        """
        self._odd.clear()
        try:
            value, end = self._decoder.raw_decode(text, start)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if self._odd:
            fault = f"has {self._odd[0]}, which JSON does not have; write null"
        elif not isinstance(value, dict):
            fault = f"is a {_JSON_NAMES[type(value)]}, expected an object with columns"
        else:
            return RawRow(number, value), end
        return RawRow(number, None, fault, text[start:end]), end


_JSON_NAMES = {list: "list", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def _json_rows(path: Path) -> Iterator[RawRow]:
    with open_bytes(path) as handle:
        if _skip_bom(path, handle).lstrip()[:1] == b"[":
            yield from _json_list(path, handle)
        else:
            yield from _json_lines(path, handle)


def _json_lines(path: Path, handle: io.BufferedReader) -> Iterator[RawRow]:
    decoder = RowDecoder()
    number = 0
    while line := handle.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            yield _oversized(number, line, _rest_of_line(line, handle))
        elif not line.isspace():
            row = _json_line(decoder, line, number)
            if number == 1 and row.fault and line.strip() == b"{":
                found = "file holds one JSON object over many lines"
                expected = "a list of objects, or one object per line"
                raise PipelineError(
                    Problem(found, expected, f"write it as JSON Lines: jq -c . {path.name}", shown(path))
                )
            yield row


def _json_line(decoder: RowDecoder, line: bytes, number: int) -> RawRow:
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        fault = f"is not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}"
        return RawRow(number, None, fault, line.decode("utf-8", "backslashreplace").strip())
    try:
        row, end = decoder.decode(text, 0, number)
    except json.JSONDecodeError as error:
        return RawRow(number, None, f"is not JSON: {error.msg} at column {error.pos + 1}", text)
    except ValueError as error:
        return RawRow(number, None, f"is not JSON: {error}", text)
    if end != len(text):
        return RawRow(number, None, f"has more text after its JSON object, at column {end + 1}", text)
    return row


def _oversized(number: int, start: bytes, rest: Iterable[bytes]) -> RawRow:
    """Pass over a row too long to hold; what is kept of it still tells its content apart."""
    content = hashlib.sha256(start)
    size_bytes = len(start)
    for more in rest:
        content.update(more)
        size_bytes += len(more)
    fault = f"is {size_bytes / 2**20:,.0f} MiB long, expected at most {MAX_ROW_BYTES / 2**20:,.0f} MiB"
    head = start[:SHOWN_OF_LONG_ROW].decode("utf-8", "backslashreplace")
    return RawRow(number, None, fault, f"{head}… ({size_bytes} bytes, sha256 {content.hexdigest()})")


def _rest_of_line(line: bytes, handle: io.BufferedReader) -> Iterator[bytes]:
    while not line.endswith(b"\n") and (line := handle.readline(2**20)):
        yield line


def _json_list(path: Path, handle: io.BufferedReader) -> Iterator[RawRow]:
    content = handle.read()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise PipelineError(
            Problem(f"byte 0x{content[error.start]:02x} is not UTF-8", "UTF-8", "", f"{shown(path)}:{line}")
        ) from error
    decoder = RowDecoder()
    number, counted = 1, 0
    at = _after_space(text, text.index("[") + 1)
    more = text[at : at + 1] != "]"
    while more:
        number += text.count("\n", counted, at)
        counted = at
        try:
            row, end = decoder.decode(text, at, number)
        except ValueError as error:
            raise _broken_list(path, text, getattr(error, "pos", at), getattr(error, "msg", str(error))) from error
        yield row
        at = _after_space(text, end)
        if text[at : at + 1] not in (",", "]"):
            raise _broken_list(path, text, at, "Expecting ',' or ']'")
        more = text[at] == ","
        at = _after_space(text, at + 1) if more else at
    if _after_space(text, at + 1) != len(text):
        raise _broken_list(path, text, at + 1, "more text after the list; a file of lists is no data file")


def _after_space(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


def _broken_list(path: Path, text: str, at: int, why: str) -> PipelineError:
    where = f"{shown(path)}:{text.count(chr(10), 0, at) + 1}"
    found = "the JSON list ends in the middle: the file is truncated" if at >= len(text) else f"broken JSON list: {why}"
    return PipelineError(Problem(found, "[{…}, {…}, …]", "mend it, or write one object per line", where))


class _Lines:
    """Iterates over lines and remembers those read since it was last asked."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._seen: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._seen.append(line)
        return line

    def seen(self) -> str:
        """Return the lines read since the last call."""
        text = "".join(self._seen)
        self._seen.clear()
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").rstrip("\r\n")


def _delimited_rows(path: Path, delimiter: str) -> Iterator[RawRow]:
    csv.field_size_limit(MAX_ROW_BYTES)
    with open_bytes(path) as handle:
        _skip_bom(path, handle)
        lines = _Lines(io.TextIOWrapper(handle, encoding="utf-8", errors="surrogateescape", newline=""))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header = _header(path, reader)
        while True:
            lines.seen()
            number = reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(number, None, f"is not CSV: {error}", lines.seen())
                continue
            if fields:
                fault = _field_fault(fields, header)
                value = None if fault else dict(zip(header, fields, strict=True))
                yield RawRow(number, value, fault, lines.seen() if fault else "")


def _header(path: Path, reader: Any) -> list[str]:
    where = f"{shown(path)}:1"
    try:
        header = [name.strip() for name in next(filter(None, reader), [])]
    except csv.Error as error:
        raise PipelineError(Problem(f"the first line is not CSV: {error}", "names of columns", "", where)) from error
    odd = [name or "(no name)" for position, name in enumerate(header) if not name or name in header[:position]]
    if odd:
        expected = "a first line that names every column, each once"
        raise PipelineError(Problem(f"column {odd[0]} in the first line", expected, "name the columns", where))
    return header


def _field_fault(fields: list[str], header: list[str]) -> str:
    if len(fields) != len(header):
        return f"has {len(fields)} fields, expected {len(header)} as in the first line"
    return "" if is_unicode("".join(fields)) else "is not UTF-8"


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8: it holds no half of a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with open_bytes(path) as handle:
            is_seekable = isinstance(handle, io.BufferedReader)
            for batch in pq.ParquetFile(handle if is_seekable else io.BytesIO(handle.read())).iter_batches(1024):
                for value in batch.to_pylist():
                    number += 1
                    yield RawRow(number, value)
    except (pa.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise _unreadable(path, f"is not readable as Parquet ({reason})", "a whole Parquet file", error) from error


def _text_rows(path: Path) -> Iterator[RawRow]:
    """Yield the whole file as one document."""
    with open_bytes(path) as handle:
        _skip_bom(path, handle)
        content = handle.read(MAX_ROW_BYTES + 1)
        if len(content) > MAX_ROW_BYTES:
            yield _oversized(1, content, iter(lambda: handle.read(2**20), b""))
            return
    try:
        if content:
            yield RawRow(1, {"text": content.decode("utf-8")})
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        fault = f"is not UTF-8: byte 0x{content[error.start]:02x}"
        yield RawRow(number, None, fault, content.decode("utf-8", "backslashreplace"))


def _unreadable(path: Path, found: str, expected: str, error: Exception) -> PipelineError:
    missing = isinstance(error, FileNotFoundError)
    remedy = "check the path" if missing else "fetch or write it again"
    return PipelineError(Problem(f"file {found}", expected, remedy, shown(path)))


_READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".csv": lambda path: _delimited_rows(path, ","),
    ".tsv": lambda path: _delimited_rows(path, "\t"),
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}
