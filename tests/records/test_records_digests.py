"""Laws of the digest: what changes it, what does not, and when a remembered one is used."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.recipe import DataSource
from pipeline.records import DataDigest, digest, digests
from pipeline.records.digests import SETTLED_S

ROWS = [{"prompt": "é", "n": 1}, {"prompt": "b", "n": 2.5}, {"prompt": "c", "n": None}]
VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2)
ROW = st.dictionaries(st.sampled_from(["prompt", "b", "é"]), VALUES, min_size=1)
FILES = st.lists(st.lists(ROW, min_size=1, max_size=4), min_size=1, max_size=3)


def of(*paths: Path, cache: Path | None = None) -> DataDigest:
    return digest(DataSource(path=[str(path) for path in paths]), cache=cache)


def lines(rows: list[dict[str, Any]], **style: Any) -> bytes:
    return "".join(json.dumps(row, **style) + "\n" for row in rows).encode()


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_the_digest_is_the_one_written_down(jsonl: Callable[..., Path]) -> None:
    """Stored fingerprints stand on this value: it may change only together with `digests.VERSION`."""
    rows = b'{"n":1,"prompt":"\\u00e9"}\n{"n":2.5,"prompt":"b"}\n{"n":null,"prompt":"c"}\n'
    expected = hashlib.sha256(hashlib.sha256(rows).hexdigest().encode()).hexdigest()
    data_digest = of(jsonl(*ROWS))
    assert (data_digest.digest, data_digest.rows) == (expected, 3)
    assert digests.VERSION == 1


@settings(max_examples=25)
@given(files=FILES, seed=st.integers(0, 99))
def test_order_names_compression_and_layout_do_not_count(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[dict[str, Any]]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("law")
    chance = random.Random(seed)
    plain = [written(folder, f"{number}.jsonl", lines(rows)) for number, rows in enumerate(files)]
    others = []
    for number, rows in enumerate(files):
        turned = [dict(reversed(row.items())) for row in rows]
        name, content = chance.choice(
            [
                ("a.jsonl.gz", gzip.compress(lines(turned, separators=(" ,", " : ")))),
                ("a.jsonl.bz2", bz2.compress(lines(turned, ensure_ascii=False))),
                ("a.json", json.dumps(turned, indent=3).encode()),
                ("a.jsonl", b"\xef\xbb\xbf\n" + lines(turned).replace(b"\n", b"\r\n\n")),
            ]
        )
        others.append(written(folder, f"{9 - number}-{name}", content))
    chance.shuffle(others)
    assert of(*others).digest == of(*plain).digest


@settings(max_examples=25)
@given(rows=st.lists(ROW, min_size=1, max_size=4), where=st.integers(0, 3), key=st.sampled_from(["prompt", "new"]))
def test_any_change_of_a_row_counts(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], where: int, key: str
) -> None:
    folder = tmp_path_factory.mktemp("law")
    changed = [dict(row) for row in rows]
    changed[where % len(rows)][key] = "another value"
    before = of(written(folder, "a.jsonl", lines(rows))).digest
    assert of(written(folder, "b.jsonl", lines(changed))).digest != before
    assert of(written(folder, "c.jsonl", lines([*rows, rows[0]]))).digest != before
    if rows[0] != rows[-1]:
        assert of(written(folder, "d.jsonl", lines(rows[::-1]))).digest != before


def test_csv_and_parquet_have_the_digest_of_the_same_rows_as_json(tmp_path: Path) -> None:
    rows = [{"prompt": "é, a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    by_type = [
        of(written(tmp_path, "a.jsonl", lines(rows))),
        of(written(tmp_path, "a.csv", 'completion,prompt\nb,"é, a"\nd,c\n'.encode())),
        of(tmp_path / "a.parquet"),
    ]
    assert len({data_digest.digest for data_digest in by_type}) == 1


def test_columns_that_json_does_not_have_are_digested(tmp_path: Path) -> None:
    import datetime

    def made(day: int, content: bytes) -> str:
        rows = [{"text": "a", "day": datetime.date(2026, 1, day), "content": content}]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        return of(tmp_path / "a.parquet").digest

    assert len({made(1, b"x"), made(2, b"x"), made(1, b"\xff")}) == 3


def test_a_bad_row_is_no_error_and_counts_as_its_text(jsonl: Callable[..., Path]) -> None:
    data_digest = of(jsonl({"a": 1}, "{broken", name="a.jsonl"))
    assert data_digest.rows == 2
    assert data_digest.digest != of(jsonl({"a": 1}, "{broken!", name="b.jsonl")).digest
    assert data_digest.digest != of(jsonl({"a": 1}, '"{broken"', name="c.jsonl")).digest


def test_what_is_said_of_the_source(jsonl: Callable[..., Path]) -> None:
    two, one = jsonl(*ROWS, name="b.jsonl"), jsonl(ROWS[0], name="a.jsonl")
    data_digest = of(two, one)
    assert (data_digest.rows, data_digest.bytes) == (4, two.stat().st_size + one.stat().st_size)
    assert data_digest.where == [str(one), str(two)]


def test_a_file_that_cannot_be_read_is_an_error(jsonl: Callable[..., Path]) -> None:
    with pytest.raises(PipelineError, match="holds no rows"):
        of(jsonl(name="empty.jsonl"))


def settled(path: Path) -> Path:
    time.sleep(SETTLED_S + 0.05)
    return path


def poison(cache: Path) -> None:
    """Give every remembered file another digest, so that its use shows."""
    file = cache / "data-digests.json"
    held = json.loads(file.read_text())
    held["files"] = {key: [*entry[:4], "0" * 64, 77] for key, entry in held["files"].items()}
    file.write_text(json.dumps(held))


def test_an_unchanged_file_is_not_read_again(jsonl: Callable[..., Path], tmp_path: Path) -> None:
    path = settled(jsonl(*ROWS))
    first = of(path, cache=tmp_path / "cache")
    assert of(path, cache=tmp_path / "cache") == first
    poison(tmp_path / "cache")
    assert of(path, cache=tmp_path / "cache").rows == 77


def test_a_changed_file_is_read_even_when_its_size_and_mtime_are_put_back(
    jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    path = settled(jsonl({"a": 1}))
    of(path, cache=tmp_path / "cache")
    poison(tmp_path / "cache")
    before = path.stat()
    path.write_text('{"a": 2}\n')
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns
    assert of(path, cache=tmp_path / "cache") == of(path)


def test_a_file_changed_just_now_is_not_remembered(jsonl: Callable[..., Path], tmp_path: Path) -> None:
    """Two writes within one tick of the file system's clock leave the same stamp."""
    os.utime(path := jsonl({"a": 1}))
    of(path, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("held", ["", "{", "[]", '{"version": 0, "files": {"x": 1}}', '{"version": 1, "files": 3}'])
def test_a_cache_that_cannot_be_used_is_made_anew(jsonl: Callable[..., Path], tmp_path: Path, held: str) -> None:
    path = settled(jsonl(*ROWS))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "data-digests.json").write_text(held)
    assert of(path, cache=tmp_path / "cache") == of(path)
    poison(tmp_path / "cache")
    assert of(path, cache=tmp_path / "cache").rows == 77
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["data-digests.json"]


def test_a_cache_that_cannot_be_written_only_costs_time(jsonl: Callable[..., Path], tmp_path: Path) -> None:
    path = settled(jsonl(*ROWS))
    blocked = written(tmp_path, "file", b"a file where the folder should be")
    assert of(path, cache=blocked) == of(path)


def test_processes_add_to_one_cache(jsonl: Callable[..., Path], tmp_path: Path) -> None:
    one, two = jsonl({"a": 1}, name="a.jsonl"), settled(jsonl({"a": 2}, name="b.jsonl"))
    early = digests.DigestCache(tmp_path / "cache")  # has read the cache before the other one writes
    of(one, cache=tmp_path / "cache")
    early.digest(two)
    early.save()
    assert set(json.loads((tmp_path / "cache" / "data-digests.json").read_text())["files"]) == {str(one), str(two)}


def test_a_hub_source_is_known_by_its_place() -> None:
    def hub(**fields: Any) -> DataDigest:
        return digest(DataSource(hub="owner/name", **fields), cache=None)

    data_digests = [hub(), hub(revision="abc"), hub(subset="abc"), hub(hub_split="test")]
    assert len({one.digest for one in data_digests}) == 4
    assert hub(revision="abc", subset="en").where == ["hub:owner/name@abc (en, train)"]
    # Options of loading enter the fingerprint elsewhere.
    assert hub(limit=3, system="x").digest == data_digests[0].digest


def test_an_artifacts_rows_have_the_digest_of_the_same_file(tmp_path: Path) -> None:
    path = written(tmp_path, "pairs.jsonl.gz", gzip.compress(lines(ROWS)))
    assert digest(DataSource(artifact="collect"), cache=None, artifact=tmp_path).digest == of(path).digest
