"""Files that are no data, or not as their name says: each refusal says what the file is, and its command works."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PipelineError
from pipeline.recipe import DataSource
from pipeline.records import LoadedRows, load

ROWS = [{"prompt": f"Q{number}?", "completion": f"A{number}"} for number in range(3)]
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS)
TALKS = [[{"role": "user", "content": f"Q{at}?"}, {"role": "assistant", "content": f"A{at}"}] for at in range(3)]


def loaded(folder: Path, name: str, content: bytes, **fields: Any) -> LoadedRows:
    path = folder / name
    path.write_bytes(content)
    return load(DataSource(path=[str(path)], **fields), "messages", seed=0, name="d")


def refused(folder: Path, name: str, content: bytes) -> str:
    with pytest.raises(PipelineError) as caught:
        loaded(folder, name, content)
    (problem,) = caught.value.problems
    return str(problem)


def converted(folder: Path, message: str) -> list[Any]:
    """Run the command that a message names and return the rows of the file it writes."""
    command = message.split("`")[-2]
    subprocess.run(["bash", "-c", command], cwd=folder, check=True)
    made = folder / command.rpartition("> ")[2].strip("'")
    rows = load(DataSource(path=[str(made)]), "messages", seed=0, name="d")
    return [row["messages"] for row in rows.train]


def zipped() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("rows.jsonl", LINES)
    return made.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.jsonl", zipped(), "file is a zip archive or a workbook (.xlsx); expected what its name says, .jsonl"),
        ("rows.csv", zipped(), "file is a zip archive or a workbook (.xlsx); expected what its name says, .csv"),
        (
            "rows.jsonl",
            b"PAR1\x15\x04",
            "is a Parquet file; expected what its name says, .jsonl. Give it a name that e",
        ),
        ("rows.json", b"ARROW1\x00\x00", "file is an Arrow file; expected what its name says, .json"),
        ("rows.jsonl.xz", b"\x5d\x00\x00\x80\x00\xff", "file is compressed with the old LZMA; expected what its name"),
        ("rows.txt", b"%PDF-1.4 \xe2\xe3", "file is a PDF; expected what its name says, .txt"),
        ("rows.jsonl.gz", gzip.compress(b"<!DOCTYPE html>"), "file is a web page; expected the data itself"),
        ("rows.csv", "\ufeff<html><body>404".encode(), "file is a web page; expected the data itself"),
        ("rows.jsonl", b'<?xml version="1.0"?><Error/>', "file is a web page; expected the data itself"),
        ("rows.jsonl", b"<!-- saved --><html>", "file is a web page; expected the data itself"),
        (
            "rows.jsonl.gz",
            gzip.compress(b"version https://git-lfs.github.com/spec/v1\n"),
            "is a Git LFS pointer; expect",
        ),
        (
            "rows.csv",
            b"/annex/objects/SHA256E-s1--ab.csv\n",
            "is a pointer of git-annex; expected the data itself. Run ",
        ),
        ("rows.jsonl", b"# xet version 0\nfilesize = 1\n", "file is a Git Xet pointer; expected the data itself"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("rows") else "",
)
def test_a_file_that_is_no_data_is_told_by_how_it_begins(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    assert words in refused(tmp_path, name, content)


def test_markup_and_bars_may_begin_a_document(tmp_path: Path) -> None:
    for content in (b"<?xml version='1.0'?><poem/>", b"<!-- a note --> Once", b"annex/objects/ is a folder\nof git"):
        (tmp_path / "a.txt").write_bytes(content)
        rows = load(DataSource(path=[str(tmp_path / "a.txt")]), "text", seed=0, name="d")
        assert rows.train == [{"text": content.decode()}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("is_packed", [False, True], ids=["plain", "gz"])
def test_utf_16_and_32_are_told_apart_and_converted(tmp_path: Path, encoding: str, *, is_packed: bool) -> None:
    content = LINES.encode(encoding)
    name, content = ("rows.jsonl.gz", gzip.compress(content)) if is_packed else ("rows.jsonl", content)
    message = refused(tmp_path, name, content)
    assert f"file is UTF-{encoding[4:6]}; expected UTF-8. Run `" in message
    assert converted(tmp_path, message) == TALKS


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"results": ROWS}, "file is one object with the list results; expected a list of rows"),
        ({"test": ROWS, "seed": 1}, "file is one object with the list test; expected a list of rows"),
        ({"train": ROWS, "test": ROWS[:1]}, "file is one object with the lists train, test; expected a list of rows"),
        ({"columns": ["prompt", "completion"], "data": [list(row.values()) for row in ROWS]}, "as pandas splits it"),
    ],
    ids=["results", "test", "splits", "pandas"],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_around_rows_is_refused_with_the_command_that_writes_them(
    tmp_path: Path, value: dict[str, Any], words: str, indent: int | None
) -> None:
    message = refused(tmp_path, "r.json", json.dumps(value, indent=indent).encode())
    assert words in message
    assert converted(tmp_path, message) == TALKS


def test_the_rows_of_the_hubs_server_are_the_list_that_is_named(tmp_path: Path) -> None:
    value = {"features": [{"name": "prompt"}], "rows": [{"row_idx": at, "row": row} for at, row in enumerate(ROWS)]}
    assert "jq -c '.rows[]' r.json" in refused(tmp_path, "r.json", json.dumps(value).encode())


def test_what_stands_beside_the_rows_for_all_of_them_is_not_lost(tmp_path: Path) -> None:
    value = {"version": 2, "system": "Be kind.", "data": ROWS}
    message = refused(tmp_path, "r.json", json.dumps(value).encode())
    assert "file has `system` beside its rows in `data`; expected all that is said of a row in the row. " in message
    assert converted(tmp_path, message) == [[{"role": "system", "content": "Be kind."}, *talk] for talk in TALKS]


def test_a_null_among_rows_is_a_bad_row(tmp_path: Path) -> None:
    content = json.dumps({"data": [ROWS[0], None, ROWS[1]]}).encode()
    assert "r.json:1: row is a null; expected an object with columns" in refused(tmp_path, "r.json", content)
    assert loaded(tmp_path, "r.json", content, on_bad_row="skip").rejected == 1


def test_a_parquet_column_or_field_of_one_name_twice_is_refused(tmp_path: Path) -> None:
    once, twice = pa.array(["a"]), pa.array(["b"])
    turn = pa.StructArray.from_arrays([once, once, twice], ["role", "content", "content"])
    for table, name in (
        (pa.Table.from_arrays([once, once, twice], ["prompt", "completion", "completion"]), "completion"),
        (pa.table({"messages": pa.ListArray.from_arrays([0, 1], turn)}), "content"),
    ):
        made = io.BytesIO()
        pq.write_table(table, made)
        assert f"file has `{name}` twice; expected each name once. " in refused(tmp_path, "r.parquet", made.getvalue())
