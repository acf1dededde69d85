"""Bytes to rows: every type and compression, and everything a file can have wrong with it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.records.files import csv_files, json_files, opening
from pipeline.records.files import reader as files
from pipeline.records.files.json_files import RowDecoder
from pipeline.records.files.opening import place
from pipeline.records.files.reader import read_rows

ROWS = [{"text": "één"}, {"text": 'two "lines"\nhere'}, {"text": "three, 3"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, codec="zstd", asbytes=True))


def parquet(rows: list[dict[str, object]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


CONTENTS = {
    "rows.jsonl": LINES,
    "rows.ndjson": LINES,
    "lines.json": LINES,
    "rows.json": json.dumps(ROWS, indent=2).encode(),
    "rows.csv": 'text\néén\n"two ""lines""\nhere"\n"three, 3"\n'.encode(),
    "rows.tsv": 'text\néén\n"two ""lines""\nhere"\nthree, 3\n'.encode(),
    "rows.parquet": parquet(ROWS),
}
CP1252 = "If the file is CP1252: `iconv -f CP1252 -t UTF-8 a.csv > a.utf8.csv`"
COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def read(path: Path, content: bytes) -> list[files.RawRow]:
    path.write_bytes(content)
    return list(read_rows(path))


def problem(path: Path, content: bytes) -> str:
    with pytest.raises(PipelineError) as caught:
        read(path, content)
    return str(caught.value)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", CONTENTS)
def test_every_type_gives_the_same_rows_in_every_compression(tmp_path: Path, name: str, compression: str) -> None:
    rows = read(tmp_path / (name + compression), COMPRESS[compression](CONTENTS[name]))
    assert [row.value for row in rows] == ROWS
    assert not any(row.fault for row in rows)


def test_compression_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    assert [row.value for row in read(tmp_path / "a.jsonl", gzip.compress(LINES))] == ROWS
    assert [row.value for row in read(tmp_path / "b.jsonl.gz", LINES)] == ROWS


def test_lines_are_file_lines_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.jsonl", b'\n{"a": 1}\n   \n\n{"a": 2}')
    assert [(row.number, row.value) for row in rows] == [(2, {"a": 1}), (5, {"a": 2})]


def test_a_json_list_gives_the_line_each_row_starts_at(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.json", b'[\n  {"a":\n 1},\n\n  {"a": 2}, {"a": 3}\n]\n')
    assert [(row.number, row.value) for row in rows] == [(2, {"a": 1}), (5, {"a": 2}), (5, {"a": 3})]


def test_csv_gives_the_line_each_row_starts_at(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.csv", b'a,b\n"x\ny",1\n\nz,2\n')
    assert [(row.number, row.value) for row in rows] == [(2, {"a": "x\ny", "b": "1"}), (5, {"a": "z", "b": "2"})]


def test_parquet_and_hub_rows_have_no_lines() -> None:
    assert place("pairs.parquet.gz", 3) == "pairs.parquet.gz row 3"
    assert place("hub:owner/pairs (train)", 3) == "hub:owner/pairs (train) row 3"
    assert place("pairs.parquet/part.jsonl", 3) == "pairs.parquet/part.jsonl:3"


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    assert [row.value for row in read(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + LINES)] == ROWS
    assert read(tmp_path / "a.csv", b"\xef\xbb\xbftext\nhi\n")[0].value == {"text": "hi"}
    assert read(tmp_path / "a.json", b'\xef\xbb\xbf\n[{"text": "hi"}]')[0].value == {"text": "hi"}
    assert read(tmp_path / "a.txt", b"\xef\xbb\xbfhi")[0].value == {"text": "hi"}


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    assert [row.value for row in read(tmp_path / "a.txt", b"one\n\ntwo\n")] == [{"text": "one\n\ntwo\n"}]
    bad = read(tmp_path / "b.txt", b"one\n\xe9\n")
    hint = "If the file is CP1252: `iconv -f CP1252 -t UTF-8 b.txt > b.utf8.txt`"
    assert (bad[0].number, bad[0].fault) == (2, f"is not UTF-8: byte 0xe9. {hint}")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"a": 1', "is not JSON: Expecting ',' delimiter at column 8"),
        (b'{"a": 1} {"a": 2}', "has more text after its JSON object, at column 9"),
        (b'{"a": NaN}', "has NaN, which JSON does not have; write null"),
        (b'{"a": -Infinity}', "has -Infinity, which JSON does not have; write null"),
        (b"[1, 2]", "is a list; expected an object with columns"),
        (b"null", "is a null; expected an object with columns"),
        (b'{"a": "\xe9"}', "is not UTF-8: byte 0xe9 at column 8"),
        (b'{"a": ' + b"[" * 100_000, "is not JSON: nested too deeply"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not JSON: Exceeds the limit"),
    ],
)
def test_a_bad_line_is_a_row_with_a_fault_and_the_next_is_read(tmp_path: Path, line: bytes, fault: str) -> None:
    good = b'{"a": 0}\n'
    first, bad, last = read(tmp_path / "a.jsonl", good + line + b"\n" + good)
    assert (first.value, last.value) == ({"a": 0}, {"a": 0})
    assert bad.number == 2 and bad.value is None
    assert bad.fault.startswith(fault)
    assert bad.raw == line.decode("utf-8", "backslashreplace")


def test_a_constant_json_does_not_have_spoils_one_row_of_a_list_only(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.json", b'[{"a": 1}, {"a": NaN}, 3, {"a": 2}]')
    assert [row.value for row in rows] == [{"a": 1}, None, None, {"a": 2}]
    assert rows[1].raw == '{"a": NaN}'
    assert rows[2].fault == "is a number; expected an object with columns"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'[{"a": 1},\n{"a": 2}', "a.json:2: the JSON list ends in the middle: the file is truncated"),
        (b'[{"a": 1},\n', "a.json:2: the JSON list ends in the middle: the file is truncated"),
        (b'[{"a": 1}\n{"a": 2}]', "a.json:2: broken JSON list: Expecting ',' or ']'"),
        (b'[{"a": 1}]\n[{"a": 2}]', "a.json:1: broken JSON list: more text after the list"),
        (b'[{"a": 1},\n{"a" 2}]', "a.json:2: broken JSON list: Expecting ':' delimiter"),
        (b'[{"a": "\n\xe9"}]', "a.json:2: byte 0xe9 is not UTF-8"),
        (b"[]", "a.json: file holds no rows"),
        (b"", "a.json: file holds no rows"),
        (b"\n \n", "a.json: file holds no rows"),
        ('{"a": 1}\n'.encode("utf-16"), "a.json: file is UTF-16; expected UTF-8. Run `iconv -f UTF-16 -t UTF-8 a.json"),
    ],
)
def test_a_json_file_that_cannot_be_read_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert problem(tmp_path / "a.json", content).startswith(expected)


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet"])
def test_a_truncated_file_is_told_as_such(tmp_path: Path, name: str, compression: str) -> None:
    whole = COMPRESS[compression](CONTENTS[name] * 1)
    text = problem(tmp_path / (name + compression), whole[: len(whole) * 2 // 3])
    assert f"{name}{compression}: file " in text
    assert "Fetch or write it again" in text


def test_damaged_gzip_data_is_told_as_such(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(LINES))
    whole[-6] ^= 0xFF  # a byte of the checksum
    assert "a.jsonl.gz: file is damaged (CRC check failed" in problem(tmp_path / "a.jsonl.gz", bytes(whole))


def test_a_missing_file_and_an_unknown_type(tmp_path: Path) -> None:
    with pytest.raises(
        PipelineError, match=r"no\.jsonl: file cannot be read \(No such file or directory\).*Check the path"
    ):
        list(read_rows(tmp_path / "no.jsonl"))
    with pytest.raises(PipelineError, match=r"unknown type of file `a\.xlsx`; expected \.jsonl, "):
        list(read_rows(tmp_path / "a.xlsx"))
    assert "is not readable as Parquet" in problem(tmp_path / "a.parquet", b"no parquet at all")


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        (b"a,b\n1,2\n3\n4,5\n", ["", "has 1 field; expected 2 as in the first line", ""]),
        (b'a,b\n1,"x"y\n4,5\n', ["is not CSV: ',' expected after '\"'", ""]),
        (b'a,b\n1,2\n3,"open\n4,5\n', ["", "is not CSV: unexpected end of data"]),
        (
            b"a,b\n1,\xe9\n4,5\n",
            [f"is not UTF-8. {CP1252}", ""],
        ),
    ],
)
def test_a_bad_csv_row_is_a_row_with_a_fault(tmp_path: Path, content: bytes, faults: list[str]) -> None:
    rows = read(tmp_path / "a.csv", content)
    assert [row.fault for row in rows] == faults
    bad = next(row for row in rows if row.fault)
    assert bad.value is None and bad.raw and bad.raw in content.decode("utf-8", "backslashreplace")


@pytest.mark.parametrize("header", [b"a,a\n", b"\n\na,\n"])
def test_a_csv_header_must_name_every_column_once(tmp_path: Path, header: bytes) -> None:
    assert "a first line that names every column" in problem(tmp_path / "a.csv", header + b"1,2\n")


def test_a_huge_line_is_one_bad_row_that_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (opening, json_files, csv_files, files):
        monkeypatch.setattr(module, "MAX_ROW_BYTES", 2 * 2**20)
    huge = b'{"a": "' + b"x" * (5 * 2**20) + b'"}\n'
    before, bad, after = read(tmp_path / "a.jsonl", b'{"a": 1}\n' + huge + b'{"a": 2}\n')
    assert (before.value, after.value, after.number) == ({"a": 1}, {"a": 2}, 3)
    assert bad.fault == "is 5 MiB long; expected at most 2 MiB"
    assert len(bad.raw) < 400
    other = read(tmp_path / "b.jsonl", huge.replace(b'x"}', b'y"}'))[0]
    assert other.raw != bad.raw  # a change far into the row still changes the digest
    assert read(tmp_path / "a.txt", b"x" * (3 * 2**20))[0].fault == "is 3 MiB long; expected at most 2 MiB"
    assert "field larger than field limit" in read(tmp_path / "a.csv", b"a\n" + huge)[0].fault


def test_a_long_csv_field_is_read(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.csv", b"text\n" + b"x" * 200_000 + b"\n")  # the csv module stops at 131,072 by itself
    assert rows[0].value == {"text": "x" * 200_000}


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40)
@given(st.dictionaries(st.text(), JSON_VALUES, max_size=4))
def test_what_json_writes_is_read_back(row: dict[str, object]) -> None:
    text = json.dumps(row, ensure_ascii=False)
    read_back, end = RowDecoder().decode(text, 0, 1)
    assert (read_back.value, end) == (row, len(text))


@given(
    st.lists(st.dictionaries(st.sampled_from("abc"), JSON_VALUES, min_size=1), min_size=1, max_size=5), st.booleans()
)
def test_a_json_list_round_trips(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], is_indented: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "list.json"
    got = read(path, json.dumps(rows, indent=1 if is_indented else None).encode())
    assert [row.value for row in got] == rows


def test_reading_is_lazy(jsonl: Callable[..., Path]) -> None:
    rows = read_rows(jsonl({"a": 1}, "broken"))
    assert next(rows).value == {"a": 1}
