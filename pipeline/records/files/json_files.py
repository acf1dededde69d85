"""Reads rows of JSON files: one object per line, concatenated objects, a list, or an object that holds one list.

A row with a duplicate key is a bad row, because it is ambiguous.
"""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, Problem, listed
from pipeline.plain_data import JsonObject
from pipeline.records.files.opening import (
    MAX_ROW_BYTES,
    RawRow,
    encoding_hint,
    open_bytes,
    oversized,
    piped,
    shown,
    skip_bom,
    unpacked_name,
)

SPACE = re.compile(r"[ \t\r\n\x1e]*")
WRAPPERS = ("data", "rows", "train", "examples", "instances", "items", "records", "samples", "dataset")
"""Keys under which an object holds the rows of a file."""

FOR_ALL = ("system", "system_prompt", "tools", "functions", "instruction", "prompt", "context")
"""Keys beside a list of rows that apply to every row."""

BY_COLUMN, BY_ROW, SPLIT = "of columns", "of rows under their numbers", "of columns and data, as pandas splits it"
TABLES = {
    BY_COLUMN: "map_values([.[]]) | range(map(length) | max) as $at | map_values(.[$at])",
    BY_ROW: ".[]",
    SPLIT: ".columns as $names | .data[] | [$names, .] | transpose | map({(.[0] | tostring): .[1]}) | add",
}
"""Layouts of a table in one object (pandas' `to_json`, `Dataset.to_dict`), with the `jq` program that writes rows."""


class RowDecoder:
    """Decodes JSON rows and records duplicate keys and constants that JSON does not have (NaN, Infinity)."""

    def __init__(self) -> None:
        self._odd: list[str] = []
        self._twice: list[str] = []
        self._decoder = json.JSONDecoder(parse_constant=self._odd.append, object_pairs_hook=self._object)

    def _object(self, pairs: list[tuple[str, Any]]) -> JsonObject:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            keys = [key for key, _ in pairs]
            self._twice.append(next(key for at, key in enumerate(keys) if key in keys[:at]))
        return mapping

    def decode(self, text: str, start: int, number: int) -> tuple[RawRow, int]:
        """Return the row that starts at ``text[start]`` and the index of its end.

        Raises:
            ValueError: there is no JSON value at ``start`` (a `json.JSONDecodeError`), or it is nested too deeply.
        """
        self._odd.clear()
        self._twice.clear()
        try:
            value, end = self._decoder.raw_decode(text, start)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if self._odd:
            fault = f"has {self._odd[0]}, which JSON does not have; write null"
        elif self._twice:
            fault = f"has the key `{self._twice[0]}` twice in one object; expected once"
        elif not isinstance(value, dict):
            fault = f"is a {_JSON_NAMES[type(value)]}; expected an object with columns"
        else:
            return RawRow(number, value), end
        return RawRow(number, None, fault, text[start:end]), end


_JSON_NAMES = {list: "list", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


def json_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a JSON or JSON Lines file.

    Raises:
        PipelineError: it cannot be read.
    """
    with open_bytes(path) as handle:
        if skip_bom(path, handle).lstrip()[:1] == b"[":
            text = _decoded(path, handle.read())
            yield from _list_rows(path, text, text.index("["))
        else:
            yield from _json_lines(path, handle)


def _json_lines(path: Path, handle: io.BufferedReader) -> Iterator[RawRow]:
    decoder = RowDecoder()
    number = 0
    is_first = True
    while line := handle.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            yield oversized(number, line, _rest_of_line(line, handle))
        elif not line.isspace():
            row = _json_line(path, decoder, line, number)
            if is_first and _may_go_on(row, line, handle):
                line += handle.read()
                rows = _objects(path, line)
                if rows is not None:
                    yield from rows
                    return
                handle = _reader_of(line)
                handle.readline()
            is_first = False
            yield row


def _may_go_on(row: RawRow, line: bytes, handle: io.BufferedReader) -> bool:
    """Return whether the first line may begin something else than one row per line."""
    if row.fault.startswith("is not JSON"):
        return line.lstrip()[:1] == b"{"
    if row.fault.startswith("has more text"):
        return b"\r" in line.rstrip()
    is_wrapper = row.value is not None and any(_is_rows(row.value[key]) for key in row.value if key in WRAPPERS)
    return is_wrapper and not handle.peek(1).strip()


def _reader_of(content: bytes) -> io.BufferedReader:
    """Return a buffered reader of bytes in memory."""
    return io.BufferedReader(io.BytesIO(content))


def _is_rows(value: object) -> bool:
    """Return whether a value is a list of rows, not of turns."""
    rows = [one for one in value if one is not None] if isinstance(value, list) else []  # null is a bad row
    is_list = bool(rows) and all(isinstance(one, dict) for one in rows)
    return is_list and not any({"role", "from"} & set(one) or _is_said(one) for one in rows)


def _is_said(value: JsonObject) -> bool:
    """Return whether an object with unknown keys is a turn: one of its values names a speaker."""
    return any(
        isinstance(one, str) and one.casefold() in ("user", "human", "assistant", "gpt") for one in value.values()
    )


def _objects(path: Path, content: bytes) -> Iterator[RawRow] | None:
    """Return the rows of concatenated objects, or of the list in a single object; None if the text is neither."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    decoder, at, rows = RowDecoder(), _after_space(text, 0), []
    ends = "\n" if "\n" in text else "\r"
    number, counted = 1, 0
    while at < len(text):
        number += text.count(ends, counted, at)
        counted = at
        try:
            row, end = decoder.decode(text, at, number)
        except ValueError:
            return None
        rows.append(row)
        at = _after_space(text, end)
    if len(rows) == 1 and rows[0].value is not None:
        return _wrapped(path, text, rows[0].value) or iter(rows)
    return iter(rows)


def _wrapped(path: Path, text: str, value: JsonObject) -> Iterator[RawRow] | None:
    """Return the rows of the list an object holds; None if it holds no list of rows.

    Raises:
        PipelineError: it holds several lists of rows, one under an unknown key, or keys that apply to every row.
    """
    lists = [key for key in value if _is_rows(value[key])]
    if not lists:
        return None
    if len(lists) > 1 or lists[0] not in WRAPPERS:
        raise PipelineError(_lists_problem(path, lists))
    beside = [key for key in FOR_ALL if value.get(key)]
    if beside:
        raise PipelineError(_beside_problem(path, lists[0], beside))
    return _list_rows(path, text, _start_of(text, lists[0]))


def _lists_problem(path: Path, lists: Sequence[str]) -> Problem:
    """Return the problem of an object with several or unnamed lists of rows; its remedy writes the likeliest list."""
    key = next((one for one in WRAPPERS if one in lists), lists[0])
    quoted = f".{key}[]" if re.fullmatch(r"[A-Za-z_]\w*", key) else f'.["{key}"][]'
    stem = unpacked_name(path).rpartition(".")[0]
    command = piped(path, f"jq -c {shlex.quote(quoted)}")
    remedy = f"write one list as a file: `{command} > {shlex.quote(f'{stem}.{key}.jsonl')}`"
    statement = f"file is one object with the list{'s' * (len(lists) > 1)} {listed(lists)}"
    return Problem(statement, "a list of rows, or one row per line", remedy, shown(path))


def _beside_problem(path: Path, key: str, beside: Sequence[str]) -> Problem:
    """Return the problem of keys that apply to every row; its remedy copies them into each row."""
    fields = ", ".join(f"{one}: $all.{one}" for one in beside)
    stem = unpacked_name(path).rpartition(".")[0]
    command = piped(path, f"jq -c {shlex.quote(f'. as $all | .{key}[] | {{{fields}}} + .')}")
    remedy = f"write it into each row: `{command} > {shlex.quote(f'{stem}.rows.jsonl')}`"
    statement = f"file has {listed(f'`{one}`' for one in beside)} beside its rows in `{key}`"
    return Problem(statement, "all that is said of a row in the row", remedy, shown(path))


def lists_problem(path: Path, value: JsonObject, known: Collection[str]) -> Problem | None:
    """Return a problem if the only row of a file holds lists of rows and no known column; else None."""
    lists = [key for key in value if _is_rows(value[key]) and len(value[key]) > 1]
    return _lists_problem(path, lists) if lists and not value.keys() & known else None


def table_problem(path: Path, value: JsonObject) -> Problem | None:
    """Return a problem if the only row of a file is a table; its remedy writes one row per line. Else None."""
    table = _table(value)
    if not table:
        return None
    target = shlex.quote(f"{unpacked_name(path).rpartition('.')[0]}.rows.jsonl")
    remedy = f"write one row per line: `{piped(path, f'jq -c {shlex.quote(TABLES[table])}')} > {target}`"
    return Problem(f"file is one object {table}", "one row per line", remedy, shown(path))


def _table(value: JsonObject) -> str:
    """Return the layout of the table in an object, a key of `TABLES`; empty if it is not a table."""
    fields = list(value.values())
    if set(value) | {"index"} == {"columns", "index", "data"} and all(isinstance(field, list) for field in fields):
        return SPLIT
    if not fields or not (all(isinstance(one, dict) for one in fields) or all(isinstance(one, list) for one in fields)):
        return ""
    if isinstance(fields[0], dict):
        if _are_numbers(value) and len(value) > 1 and not any(_are_numbers(field) for field in fields):
            return BY_ROW
        is_table = all(_are_numbers(field) and field.keys() == fields[0].keys() for field in fields)
        return BY_COLUMN if is_table else ""
    is_text = all(isinstance(one, str) for one in fields[0])
    if len({len(field) for field in fields}) > 1 or len(fields[0]) < 2 or any(_is_talk(field) for field in fields):
        return ""
    # One list of texts may be a conversation; it is a table of one column only under the name of a text column.
    return BY_COLUMN if len(fields) > 1 or not is_text or next(iter(value)) in ("text", "prompt") else ""


def _are_numbers(value: JsonObject) -> bool:
    """Return whether all keys are numbers, as in an index."""
    return bool(value) and all(key.isdigit() for key in value)


def _is_talk(field: list[Any]) -> bool:
    """Return whether a list holds turns or rows, not the values of a column."""
    return all(isinstance(one, dict) for one in field)


def _start_of(text: str, key: str) -> int:
    """Return the index at which the value of a key of the outermost object starts."""
    decoder = json.JSONDecoder()
    at = _after_space(text, text.index("{") + 1)
    while True:
        name, end = decoder.raw_decode(text, at)
        at = _after_space(text, _after_space(text, end) + 1)  # past the colon
        if name == key:
            return at
        _, end = decoder.raw_decode(text, at)
        at = _after_space(text, _after_space(text, end) + 1)  # past the comma


def _json_line(path: Path, decoder: RowDecoder, line: bytes, number: int) -> RawRow:
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        hint = encoding_hint(path, line)
        fault = f"is not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}{hint}"
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


def _rest_of_line(line: bytes, handle: io.BufferedReader) -> Iterator[bytes]:
    while not line.endswith(b"\n") and (line := handle.readline(2**20)):
        yield line


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        where = f"{shown(path)}:{line}"
        remedy = encoding_hint(path, content).removeprefix(". ")
        statement = f"byte 0x{content[error.start]:02x} is not UTF-8"
        raise PipelineError(Problem(statement, "UTF-8", remedy, where)) from error


def _list_rows(path: Path, text: str, start: int) -> Iterator[RawRow]:
    """Yield the rows of the list that starts at ``text[start]``."""
    decoder = RowDecoder()
    number, counted = 1, 0
    at = _after_space(text, start + 1)
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
    if not text[:start].strip() and _after_space(text, at + 1) != len(text):
        raise _broken_list(path, text, at + 1, "more text after the list; a file of lists is no data file")


def _after_space(text: str, at: int) -> int:
    match = SPACE.match(text, at)
    return match.end() if match else at


def _broken_list(path: Path, text: str, at: int, why: str) -> PipelineError:
    where = f"{shown(path)}:{text.count(chr(10), 0, at) + 1}"
    statement = (
        "the JSON list ends in the middle: the file is truncated" if at >= len(text) else f"broken JSON list: {why}"
    )
    return PipelineError(Problem(statement, "[{…}, {…}, …]", "mend it, or write one object per line", where))
