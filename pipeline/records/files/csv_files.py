"""Reads rows of CSV and TSV files, whose first line names the columns.

If the first line does not divide by the suffix's delimiter, the other delimiters are tried.
"""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import PipelineError, Problem, counted
from pipeline.records.files.opening import (
    MAX_ROW_BYTES,
    RawRow,
    encoding_hint,
    is_unicode,
    open_bytes,
    piped,
    shown,
    skip_bom,
    unpacked_name,
)

LONGEST_NAME = 40
DELIMITERS = (",", ";", "\t", "|")
INDEX = "Unnamed: 0"
"""The name pandas gives a first column without a name, the index that it wrote."""


class _Lines:
    """Iterates over lines and remembers those read since it was last asked."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._seen: list[str] = []
        self.count = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._seen.append(line)
        self.count += 1
        return line

    def seen(self) -> str:
        """Return the text of the lines read since the last call."""
        text = "".join(self._seen)
        self._seen.clear()
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").rstrip("\r\n")


def delimited_rows(path: Path, delimiter: str) -> Iterator[RawRow]:
    """Yield the rows of a CSV or TSV file.

    Raises:
        PipelineError: the first line does not name the columns.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    with open_bytes(path) as handle:
        skip_bom(path, handle)
        lines = _Lines(io.TextIOWrapper(handle, encoding="utf-8", errors="surrogateescape", newline=""))
        header, delimiter = _header(path, lines, delimiter)
        start = lines.count
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            lines.seen()
            number = start + reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(number, None, f"is not CSV: {error}", lines.seen())
                continue
            if fields:
                fault = _field_fault(path, fields, header)
                value = None if fault else dict(zip(header, fields, strict=True))
                yield RawRow(number, value, fault, lines.seen() if fault else "")


def _header(path: Path, lines: _Lines, delimiter: str) -> tuple[list[str], str]:
    """Read the names of the columns; return them and the delimiter.

    Raises:
        PipelineError: a name is missing or given twice, or the line is not CSV.
    """
    where = f"{shown(path)}:1"
    header: list[str] = []
    fault = ""
    replayed = _Replayed(lines)
    for divider in dict.fromkeys((delimiter, *DELIMITERS)):
        try:
            names = next(filter(None, csv.reader(replayed.again(), delimiter=divider, strict=True)), [])
        except csv.Error as error:
            fault = fault or str(error)
            continue
        if not header or len(names) > 1:
            header, delimiter = names, divider if len(names) > 1 else delimiter
        if len(names) > 1:
            break
    if not header and fault:
        raise PipelineError(Problem(f"the first line is not CSV: {fault}", "names of columns", "", where))
    header = [name.strip() for name in header]
    if len(header) > 1 and not header[0] and INDEX not in header:
        header[0] = INDEX
    odd = [name or "(no name)" for position, name in enumerate(header) if not name or name in header[:position]]
    if odd:
        expected = "a first line that names every column, each once"
        raise PipelineError(Problem(f"column {odd[0]} in the first line", expected, "name the columns", where))
    return header, delimiter


def naming_command(path: Path, header: Sequence[str], columns: Sequence[str]) -> str:
    """Return the shell command that writes a copy of a file with a header; empty if its first line is a header.

    Args:
        path: the file.
        header: fields of its first line.
        columns: names for its first columns.
    """
    if len(header) < len(columns) or not any(map(_is_value, header)):
        return ""
    names = [*columns, *(f"column_{number}" for number in range(len(columns) + 1, len(header) + 1))]
    with open_bytes(path) as handle:
        line = handle.readline(MAX_ROW_BYTES).decode("utf-8", "replace")
    divider = next((one for one in ("\t", ";", "|", ",") if _divides(line, one, header)), ",")
    stem, _, suffix = unpacked_name(path).rpartition(".")
    above = f"printf '%b\\n' {shlex.quote(divider.join(names).replace(chr(9), chr(92) + 't'))}"
    return f"{{ {above}; {piped(path, 'cat')}; }} > {shlex.quote(f'{stem}.named.{suffix}')}"


def _divides(line: str, divider: str, header: Sequence[str]) -> bool:
    try:
        names = next(csv.reader([line], delimiter=divider), [])
    except csv.Error:
        return False
    return len(names) == len(header)


def _is_value(name: str) -> bool:
    """Return whether a field of the first line looks like a value, a sentence or a number, rather than a name."""
    return len(name) > LONGEST_NAME or name[-1:] in ".?!" or name.count(" ") > 2 or name.lstrip("-").isdigit()


class _Replayed:
    """An iterator of lines that can be restarted; lines read before are replayed."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._read: list[str] = []

    def again(self) -> Iterator[str]:
        yield from list(self._read)
        for line in self._lines:
            self._read.append(line)
            yield line


def _field_fault(path: Path, fields: list[str], header: list[str]) -> str:
    if len(fields) != len(header):
        return f"has {counted(len(fields), 'field')}; expected {len(header)} as in the first line"
    text = "\n".join(fields)
    if is_unicode(text):
        return ""
    return f"is not UTF-8{encoding_hint(path, text.encode('utf-8', 'surrogateescape'))}"
