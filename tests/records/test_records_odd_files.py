"""Files as people find them: other encodings, separators, line ends, wrappers, pointers; and equal keys."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.recipe import DataSource
from pipeline.records import digest, load
from pipeline.records.files.json_files import table_problem
from pipeline.records.files.reader import read_rows

ROWS: list[dict[str, Any]] = [{"prompt": "hé?", "completion": "ja"}, {"prompt": "wat?", "completion": "né"}]


def values(path: Path, content: bytes) -> list[dict[str, Any] | None]:
    path.write_bytes(content)
    return [row.value for row in read_rows(path)]


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(PipelineError) as caught:
        list(read_rows(path))
    return str(caught.value)


def run_remedy(message: str, folder: Path, made: str) -> list[dict[str, Any] | None]:
    """Run the command that stands in backticks in a message, and read the file it makes."""
    command = message.split("`")[-2]
    if command[0] != "{" and shutil.which(command.split()[0]) is None:
        pytest.skip(f"{command.split()[0]} is not installed")
    subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=folder, check=True)
    return [row.value for row in read_rows(folder / made)]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"data": ROWS}),
        json.dumps({"version": 1, "data": ROWS}, indent=2),
        json.dumps({"version": {"data": [1]}, "rows": ROWS}, ensure_ascii=False),
        "".join(json.dumps(row, indent=1) + "\n" for row in ROWS),
        "\r".join(json.dumps(row) for row in ROWS) + "\r",
        "\r\n".join(json.dumps(row) for row in ROWS),
        "\ufeff" + json.dumps(ROWS),
    ],
)
def test_rows_are_found_in_one_object_over_lines_and_with_any_line_end(tmp_path: Path, content: str) -> None:
    assert values(tmp_path / "a.json", content.encode()) == ROWS


def test_rows_over_lines_have_the_line_they_start_at(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"v": 1, "data": ROWS}, indent=1))
    assert [row.number for row in read_rows(path)] == [4, 8]
    path.write_text("\r".join(json.dumps(row) for row in ROWS))
    assert [row.number for row in read_rows(path)] == [1, 2]


def test_a_conversation_alone_in_its_file_is_no_wrapper(tmp_path: Path) -> None:
    row = {"data": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert values(tmp_path / "a.jsonl", json.dumps(row).encode()) == [row]
    assert values(tmp_path / "b.jsonl", (json.dumps({"data": ROWS}) + "\n").encode() * 2) == [{"data": ROWS}] * 2


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_one_object_with_several_lists_names_the_command_that_takes_one(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    content = json.dumps({"train": ROWS, "dev set": ROWS[:1]}, indent=1)
    said = refusal(tmp_path / f"a.json{suffix}", pack(content.encode()))
    assert "a.json" in said and "file is one object with the lists train, dev set; expected a list of rows" in said
    assert run_remedy(said, tmp_path, "a.train.jsonl") == ROWS


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress)])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_refused_with_a_command_that_mends_it(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes], encoding: str
) -> None:
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode(encoding)
    said = refusal(tmp_path / f"a.jsonl{suffix}", pack(content))
    assert "file is UTF-16; expected UTF-8. Run `" in said
    assert run_remedy(said, tmp_path, "a.utf8.jsonl") == ROWS


@pytest.mark.parametrize(("encoding", "text"), [("cp1252", "où été?"), ("gb18030", "你好吗？我很好。")])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_another_encoding_is_a_bad_row_with_the_command_that_mends_it(
    tmp_path: Path, encoding: str, text: str, name: str
) -> None:
    lines = {"a.jsonl": json.dumps({"text": text}, ensure_ascii=False), "a.csv": f"text\n{text}", "a.txt": text}
    path = tmp_path / name
    path.write_bytes(lines[name].encode(encoding))
    (row,) = read_rows(path)
    assert row.value is None and f"If the file is {encoding.upper()}: `iconv" in row.fault
    assert run_remedy(row.fault, tmp_path, name.replace(".", ".utf8.")) == [{"text": text}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv", "a.txt"])
def test_what_stands_for_the_data_is_not_read(tmp_path: Path, name: str) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n"
    assert refusal(tmp_path / name, pointer).endswith(
        f"{name}: file is a Git LFS pointer; expected the data itself. Run `git lfs pull`"
    )
    page = b"<!DOCTYPE html>\n<html><body>Sign in</body></html>"
    assert refusal(tmp_path / name, page).endswith("file is a web page; expected the data itself. Fetch the file again")


CSV = [{"prompt": "a, b", "completion": "c"}, {"prompt": "d", "completion": "e"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "prompt;completion\na, b;c\nd;e\n"),
        ("a.csv", '"prompt";"completion"\n"a, b";"c"\nd;e\n'),
        ("a.csv", "prompt\tcompletion\na, b\tc\nd\te\n"),
        ("a.csv", "prompt|completion\na, b|c\nd|e\n"),
        ("a.tsv", 'prompt,completion\n"a, b",c\nd,e\n'),
        ("a.csv", 'prompt,completion\r"a, b",c\rd,e\r'),
        ("a.csv", '\ufeffprompt,completion\r\n"a, b",c\r\nd,e\r\n'),
    ],
)
def test_csv_is_divided_by_what_its_first_line_shows(tmp_path: Path, name: str, content: str) -> None:
    assert values(tmp_path / name, content.encode()) == CSV
    assert [row.number for row in read_rows(tmp_path / name)] == [2, 3]


def test_the_index_that_pandas_writes_is_a_column_no_one_reads(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(',prompt,completion\n0,"a, b",c\n1,d,e\n')
    assert [row.value for row in read_rows(path)] == [{"Unnamed: 0": str(n), **row} for n, row in enumerate(CSV)]
    assert load(DataSource(path=[str(path)]), "messages", seed=0, name="d").unused == ("Unnamed: 0",)


def test_the_python_list_that_pandas_writes_to_csv_is_read(tmp_path: Path) -> None:
    import pandas

    said = 'It\'s "so",\n\\d {é}'
    talk = [{"role": "user", "content": said, "weight": None}, {"role": "assistant", "content": "A", "train": True}]
    pandas.DataFrame({"messages": [talk, talk]}).to_csv(tmp_path / "a.csv")
    rows = load(DataSource(path=str(tmp_path / "a.csv")), "messages", seed=0, name="d").train
    assert [turn["content"] for turn in rows[1]["messages"]] == [said, "A"]


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('{"text": "a", "text": "b"}', "text"),
        ('{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "content"),
        ('{"a" :1, "a":1}', "a"),
        ('{"a": {"b": [{"c": null, "\\u0063": null}]}}', "c"),
    ],
)
def test_two_equal_keys_make_a_bad_row(tmp_path: Path, line: str, key: str) -> None:
    for name, content in (("a.jsonl", f"{line}\n{{}}\n"), ("a.json", f"[{line}, {{}}]")):
        path = tmp_path / name
        path.write_text(content)
        bad, good = read_rows(path)
        assert bad.value is None and bad.fault == f"has the key `{key}` twice in one object; expected once"
        assert good.value == {}  # what was seen in one row is forgotten in the next


FOLDER = ("a.jsonl", "b.jsonl.bz2", "c.ndjson", "D.JSONL.XZ", "e.Jsonl.zst", "f.CSV")


def test_a_folder_is_read_whole_and_what_is_not_read_is_named(tmp_path: Path) -> None:
    import pyarrow as pa

    pack = {"bz2": bz2.compress, "xz": lzma.compress, "zst": lambda c: pa.compress(c, codec="zstd", asbytes=True)}
    folder = tmp_path / "rows"
    (folder / "more").mkdir(parents=True)
    for number, name in enumerate(FOLDER):
        content = f"text\n{number}\n" if name.endswith("CSV") else f'{{"text": "{number}"}}\n'
        (folder / name).write_bytes(bytes(pack.get(name.rpartition(".")[2].lower(), bytes)(content.encode())))
    for name in ("README.md", ".hidden.jsonl", "old.jsonl.bak"):
        (folder / name).write_text("x")
    source = DataSource(path=str(folder))
    assert [path.name for path in source.files] == sorted(FOLDER)
    assert source.unread_files == (".hidden.jsonl", "README.md", "more/", "old.jsonl.bak")
    assert sorted(row["text"] for row in load(source, "text", seed=0, name="d").train) == list("012345")
    by_glob = DataSource(path=str(folder / "[a-fD]*"))
    assert by_glob.files == source.files and by_glob.unread_files == ()


def test_a_folder_of_folders_says_how_to_read_them(tmp_path: Path) -> None:
    (tmp_path / "rows/more").mkdir(parents=True)
    (tmp_path / "rows/more/a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(PipelineError) as caught:
        DataSource(path=str(tmp_path / "rows")).files  # noqa: B018
    pattern = str(caught.value).split("`")[-2]
    assert [path.name for path in DataSource(path=pattern).files] == ["a.jsonl"]


PAIRS = [{"prompt": f"Q{n}?", "chosen": 'ja, "né"', "rejected": None, "n": n} for n in range(12)]
TALKS = [{"messages": [{"role": "user", "content": f"Q{n}?"}, {"role": "assistant", "content": "A"}]} for n in (1, 2)]


def by_column(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def as_pandas(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {str(at): value for at, value in enumerate(column)} for name, column in by_column(rows).items()}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("content", "rows", "what"),
    [
        (by_column(PAIRS), PAIRS, "columns"),
        (by_column(TALKS), TALKS, "columns"),
        ({"text": ["a", "b"]}, [{"text": "a"}, {"text": "b"}], "columns"),
        (as_pandas(PAIRS), PAIRS, "columns"),
        (as_pandas(PAIRS[:1]), PAIRS[:1], "columns"),
        ({str(at): row for at, row in enumerate(PAIRS)}, PAIRS, "rows under their numbers"),
        (
            {"columns": list(PAIRS[0]), "index": list(range(12)), "data": [list(row.values()) for row in PAIRS]},
            PAIRS,
            "columns and data, as pandas splits it",
        ),
    ],
)
def test_a_table_in_one_object_is_refused_with_the_command_that_writes_its_rows(
    tmp_path: Path, content: Any, rows: list[dict[str, Any]], what: str, indent: int | None
) -> None:
    path = tmp_path / "my table.json.gz"
    path.write_bytes(gzip.compress(json.dumps(content, indent=indent).encode()))
    with pytest.raises(PipelineError) as caught:
        load(DataSource(path=str(path)), ("messages", "text"), seed=0, name="d")
    said = str(caught.value)
    assert f"my table.json.gz: file is one object of {what}; expected one row per line. Write one row" in said
    assert run_remedy(said, tmp_path, "my table.rows.jsonl") == rows


@pytest.mark.parametrize(
    "row",
    [
        TALKS[0],
        {"chosen": TALKS[0]["messages"], "rejected": TALKS[1]["messages"]},
        {"conversations": ["Q?", "A"]},
        {"turns": ["Q?", "And?"]},
        {"prompt": ["Q?"], "responses": ["A", "B"], "scores": [1, 2]},
        {"prompt": {"text": "Q?"}, "answer": {"text": "A"}},
        {},
    ],
)
def test_one_row_alone_in_its_file_is_no_table(tmp_path: Path, row: dict[str, Any]) -> None:
    for indent in (None, 1):
        assert values(tmp_path / "a.json", json.dumps(row, indent=indent).encode()) == [row]
    assert table_problem(tmp_path / "a.json", row) is None


@pytest.mark.parametrize(
    ("name", "content", "shape", "first"),
    [
        ("a.csv", 'What is 2+2?,"4, or so"\nAnd 3?,6\n', "messages", "4, or so"),
        ("a.tsv", "What is 2+2?\t4\nAnd 3?\t6\n", "messages", "4"),
        ("a.csv", "Say yes?;yes;7\nAnd no?;no;8\n", "messages", "yes"),
        ("a.csv", "Say yes?,yes,no\nSay no?,no,yes\n", "preference", "yes"),
        ("a.csv", "Say yes?,yes,true\nSay no?,yes,false\n", "labelled", "yes"),
        ("a.csv", "Say yes?,1\nSay no?,2\n", "prompt", "Say yes?"),
    ],
)
def test_a_table_without_names_is_refused_with_the_command_that_names_its_columns(
    tmp_path: Path, name: str, content: str, shape: Any, first: str
) -> None:
    path = tmp_path / f"{name}.gz"
    path.write_bytes(gzip.compress(content.encode()))
    with pytest.raises(PipelineError) as caught:
        load(DataSource(path=[str(path)]), shape, seed=0, name="d")
    assert f"{name}.gz:1: the first line is a row; expected names of columns in the first line. " in str(caught.value)
    made = name.replace(".", ".named.")
    assert len(run_remedy(str(caught.value), tmp_path, made)) == 2
    got = load(DataSource(path=[str(tmp_path / made)]), shape, seed=0, name="d").train
    side = {"messages": "messages", "preference": "chosen", "labelled": "completion"}.get(shape, "prompt")
    assert (len(got), got[0][side][-1]["content"]) == (2, first)


def test_a_link_beside_its_file_is_read_once_and_said(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "b.jsonl").write_text('{"text": "b"}\n')
    (folder / "c.jsonl").write_text('{"text": "b"}\n')  # the same rows in another file count twice
    (folder / "a.jsonl").symlink_to("b.jsonl")
    (folder / "d.jsonl").hardlink_to(folder / "c.jsonl")
    (folder / "gone.jsonl").symlink_to("nowhere.jsonl")
    source = DataSource(path=[str(folder), str(folder / "*.jsonl"), str(folder / "b.jsonl")])
    assert [path.name for path in source.files] == ["b.jsonl", "c.jsonl"]
    assert [(again.name, first.name) for again, first in source.repeated_files] == [
        ("a.jsonl", "b.jsonl"),
        ("d.jsonl", "c.jsonl"),
    ]
    assert "gone.jsonl" in source.unread_files
    assert len(load(source, "text", seed=0, name="d").train) == 2
    alone = DataSource(path=str(folder / "a.jsonl"))
    assert [path.name for path in alone.files] == ["a.jsonl"] and alone.repeated_files == ()


@pytest.mark.parametrize("empty", [b"", b"\n\n", gzip.compress(b"", mtime=0)], ids=["no bytes", "no lines", "gzip"])
def test_an_empty_file_beside_others_does_not_count_and_all_empty_are_refused(tmp_path: Path, empty: bytes) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "b.jsonl").write_text('{"text": "b"}\n')
    before = digest(DataSource(path=str(folder)), cache=tmp_path)
    (folder / "a.jsonl").write_bytes(empty)
    source = DataSource(path=str(folder))
    for _ in range(2):  # read, and remembered
        after = digest(source, cache=tmp_path)
        assert (after.digest, after.rows) == (before.digest, 1) and [Path(one).name for one in after.empty] == [
            "a.jsonl"
        ]
    rows = load(source, "text", seed=0, name="d")
    assert [row["text"] for row in rows.train] == ["b"] and rows.digest == before.digest
    (folder / "b.jsonl").write_bytes(b"")
    for read in (lambda: load(source, "text", seed=0, name="d"), lambda: digest(source, cache=tmp_path)):
        with pytest.raises(PipelineError, match=r"a.jsonl: file holds no rows; expected at least one row. Remove it"):
            read()
