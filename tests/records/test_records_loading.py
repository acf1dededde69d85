"""From a data source to the rows a stage gets: bad rows, limits, order, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.recipe import DataSource
from pipeline.records import LoadedRows, digest, load
from pipeline.stage import Shape, Shapes

Make = Callable[..., DataSource]
Write = Callable[..., Path]
GOOD = {"prompt": "Hi", "chosen": "Yes", "rejected": "No"}
BAD = {"prompt": "Hi", "chosen": "Yes"}
UP = {"prompt": "Hi", "completion": "Hello.", "label": True}
DOWN = {"prompt": "Hi", "completion": "What?", "label": False}
EITHER: Shapes = ("preference", "labelled")


def loaded(source: DataSource, shape: Shapes = "preference", **more: Any) -> LoadedRows:
    return load(source, shape, seed=0, name="pairs", **more)


def refused(source: DataSource, shape: Shapes = "preference", **more: Any) -> list[str]:
    with pytest.raises(PipelineError) as caught:
        loaded(source, shape, **more)
    return [str(problem) for problem in caught.value.problems]


def test_a_bad_row_stops_with_file_line_reason_and_remedy(
    jsonl: Write, source: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(source(jsonl(GOOD, "", BAD, GOOD))) == [
        "rows.jsonl:3: row `rejected` is missing; expected text. "
        "Mend the data, or set `data.pairs.on_bad_row: skip` to leave bad rows out and keep them in a file"
    ]


def test_many_bad_rows_are_listed_up_to_twenty_with_their_number(jsonl: Write, source: Make) -> None:
    problems = refused(source(jsonl(GOOD, *[BAD] * 25, "broken")))
    assert len(problems) == 21
    assert problems[19].endswith("rows.jsonl:21: row `rejected` is missing; expected text")
    assert problems[20].startswith("data pairs: 26 of 27 rows are bad (the first 20 are listed). Mend the data, or set")


def test_skipped_rows_are_counted_and_kept(jsonl: Write, source: Make, tmp_path: Path) -> None:
    path = jsonl(GOOD, BAD, '{"prompt": \ud800'.encode("utf-8", "replace").decode(), GOOD)
    rejects = tmp_path / "new folder" / "rejects.jsonl"
    got = loaded(source(path, on_bad_row="skip"), rejects=rejects)
    assert (len(got.train), got.rejected) == (2, 2)
    assert [json.loads(line) for line in rejects.read_text().splitlines()] == [
        {"where": "rows.jsonl:2", "reason": "`rejected` is missing; expected text", "row": BAD},
        {
            "where": "rows.jsonl:3",
            "reason": "is not JSON: Expecting value at column 12",
            "row": '{"prompt": ?',
        },
    ]


def test_without_bad_rows_there_is_no_rejects_file(jsonl: Write, source: Make, tmp_path: Path) -> None:
    assert loaded(source(jsonl(GOOD), on_bad_row="skip"), rejects=tmp_path / "rejects.jsonl").rejected == 0
    assert not (tmp_path / "rejects.jsonl").exists()


def test_rejects_say_the_same_wherever_the_data_lies(jsonl: Write, source: Make, tmp_path: Path) -> None:
    kept = []
    for folder in ("here", "there"):
        files = [jsonl(GOOD, BAD, name=f"{folder}/{name}/rows.jsonl") for name in ("a", "b")]
        loaded(source(*files, on_bad_row="skip"), rejects=tmp_path / f"{folder}.jsonl")
        kept.append((tmp_path / f"{folder}.jsonl").read_text())
    assert kept[0] == kept[1]
    assert [json.loads(line)["where"] for line in kept[0].splitlines()] == ["a/rows.jsonl:2", "b/rows.jsonl:2"]


def test_when_every_row_is_bad_skipping_is_no_way_out(jsonl: Write, source: Make) -> None:
    problems = refused(source(jsonl("broken", "also"), on_bad_row="skip"))
    assert problems[-1] == "data pairs: 2 of 2 rows are bad. Mend the data"


def test_files_are_in_the_order_of_their_content(jsonl: Write, source: Make) -> None:
    rows = [[{"text": f"{name}{number}"} for number in range(3)] for name in "abcd"]
    files = [jsonl(*some, name=f"{number}.jsonl") for number, some in enumerate(rows)]
    renamed = [jsonl(*some, name=f"{9 - number}.jsonl") for number, some in enumerate(rows)]
    first = loaded(source(*files), "text")
    again = loaded(source(*renamed[::-1]), "text")
    assert first == again
    assert sorted(row["text"] for row in first.train) == [row["text"] for some in rows for row in some]
    starts = [row["text"][0] for row in first.train]
    assert [row["text"] for row in first.train] == [f"{name}{number}" for name in starts[::3] for number in range(3)]


def test_the_digest_is_that_of_the_plan(jsonl: Write, source: Make) -> None:
    both = source(jsonl(GOOD, name="a.jsonl"), jsonl(GOOD, BAD, name="b.jsonl"), on_bad_row="skip", limit=1)
    assert loaded(both).digest == digest(both, cache=None).digest


def test_the_limit_counts_good_rows_and_comes_before_the_split(jsonl: Write, source: Make) -> None:
    rows = [{"prompt": f"q{number}"} for number in range(50)]
    path = jsonl({"prompt": ""}, *rows, {"prompt": ""})
    got = loaded(source(path, limit=20, held_out=0.3, on_bad_row="skip"), "prompt")
    asked = [row["prompt"][0]["content"] for row in got.train + got.held_out]
    assert sorted(asked) == sorted(row["prompt"] for row in rows[:20])
    assert got.held_out and got.rejected == 1
    # A row's place is its line in the file, on whichever side it fell: row q0 stands on line 2.
    lines = [int(place.removeprefix(f"{path.name}:").rpartition(":")[2]) for place in got.places]
    assert lines == [int(text.removeprefix("q")) + 2 for text in asked]


def test_parts_that_do_not_meet_share_no_prompt_and_leave_none_out(jsonl: Write, source: Make) -> None:
    rows = [{**GOOD, "prompt": f"q{number // 2}", "chosen": f"a{number}"} for number in range(80)]
    path = jsonl(*rows)
    cuts = ((0.0, 0.2), (0.2, 0.6), (0.6, 1.0))
    parts = [loaded(source(path, part=cut)).train for cut in cuts]
    asked = [{row["prompt"][0]["content"] for row in part} for part in parts]
    assert all(asked) and sum(len(part) for part in parts) == len(rows)
    assert [loaded(source(path, part=cut)).outside for cut in cuts] == [len(rows) - len(part) for part in parts]
    assert asked[0].isdisjoint(asked[1]) and asked[1].isdisjoint(asked[2]) and asked[0].isdisjoint(asked[2])
    # The first part is what a share of 0.2 holds out.
    assert loaded(source(path, held_out=0.2)).held_out == parts[0]
    both = loaded(source(path, part=(0.0, 0.6), held_out=0.2))
    assert (both.held_out, both.train) == (parts[0], parts[1])
    # `limit` counts rows of the part, and a row's place is still its line.
    some = loaded(source(path, part=(0.6, 1.0), limit=3))
    assert some.train == parts[2][:3]
    lines = [int(place.rpartition(":")[2]) for place in some.places]
    assert [rows[line - 1]["chosen"] for line in lines] == [row["chosen"][0]["content"] for row in some.train]


def test_a_part_without_prompts_is_told(jsonl: Write, source: Make) -> None:
    # A bad row beside it changes nothing: the rows are not all bad, they belong to other parts.
    empty = source(jsonl(GOOD, {"prompt": "x"}), part=(0.0, 1e-9), on_bad_row="skip")
    assert refused(empty) == [
        "data pairs: no prompt of 1 row is in the part from 0 to 1e-09; expected at least one. Bring more rows, or "
        "widen the part"
    ]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"part": (0.6, 0.2)}, r"is \[0.6, 0.2\]\|two shares between 0 and 1, the smaller one first"),
        ({"part": 0.5}, r"is 0.5\|two shares"),
        ({"part": [0.5]}, r"is \[0.5\]\|two shares"),
        ({"part": [0, True]}, r"is \[0, true\]\|two shares"),
        ({"part": ["a", "b"]}, r'is \["a", "b"\]\|two shares'),
        ({"part": (0.5, 1.0), "held_out": 0.2}, "`held_out` is 0.2 and `part` from 0.5 to 1"),
        ({"part": (0.0, 0.2), "held_out": 0.2}, "one side has no prompts"),
        ({"part": (-0.1, 0.2)}, r"is \[-0.1, 0.2\]\|two shares"),
    ],
)
def test_a_part_that_cannot_be_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DataSource(path="rows.jsonl", **fields)


def test_the_split_does_not_depend_on_the_seed(jsonl: Write, source: Make) -> None:
    some = source(jsonl(*[{"prompt": f"q{number}"} for number in range(50)]), held_out=0.3)
    assert load(some, "prompt", seed=1, name="a") == load(some, "prompt", seed=2, name="b")


def test_columns_are_renamed_old_to_new(jsonl: Write, source: Make) -> None:
    path = jsonl({"question": "Hi", "answer": "Hello.", "id": 1})
    got = loaded(source(path, columns={"question": "prompt", "answer": "completion"}), "messages")
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    assert got.train == [{"id": 1, "messages": turns, "plain_text": True}]


def test_columns_may_be_swapped(jsonl: Write, source: Make) -> None:
    path = jsonl({"prompt": "p", "chosen": "worse", "rejected": "better"})
    row = loaded(source(path, columns={"chosen": "rejected", "rejected": "chosen"})).train[0]
    assert (row["chosen"][0]["content"], row["rejected"][0]["content"]) == ("better", "worse")


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"qestion": "prompt"}, "row has no column `qestion`, which `columns` names; it has question, prompt"),
        ({"question": "prompt"}, "row has a column `prompt` already; expected none, as `columns` gives another th"),
        ({"question": "text", "prompt": "text"}, "`columns` gives two columns the name `text`"),
    ],
)
def test_renaming_that_cannot_be_done(jsonl: Write, source: Make, columns: dict[str, str], reason: str) -> None:
    problems = refused(source(jsonl({"question": "Hi", "prompt": "x"}), columns=columns, format="prompt"), "prompt")
    assert reason in problems[0]


def test_files_of_different_formats_make_one_source(jsonl: Write, source: Make) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    one = jsonl({"messages": turns}, name="a.jsonl")
    two = jsonl({"instruction": "Hi", "output": "Hello."}, name="b.jsonl")
    assert loaded(source(one, two), "messages").train == [{"messages": turns}] * 2


def test_a_named_format_holds_for_every_row(jsonl: Write, source: Make) -> None:
    path = jsonl({"text": "a", "prompt": "b"})
    assert loaded(source(path, format="text"), "prompt").train[0]["prompt"][0]["content"] == "a"
    assert "`messages` is missing" in refused(source(path, format="messages"), "prompt")[0]


@pytest.mark.parametrize(
    ("row", "shape", "expected"),
    [
        (
            GOOD,
            "messages",
            "rows are of format preference (1 of 1 row has `chosen` and `rejected`); expected mess",
        ),
        (GOOD, "messages", ". Set `format: preference` to use them so"),
        (
            {"text": "a"},
            "preference",
            "preference rows (format hh or preference or comparison). Name another data source",
        ),
        (
            {"question": "a"},
            "messages",
            "data pairs: column question is of no known format; expected messages rows (format messages",
        ),
        ({"question": "a", "n": 1}, "messages", "data pairs: columns question, n are of no known format; expected"),
        ({"question": "a"}, "messages", ". Rename them with `columns`, or write rows in one of the formats that `docs"),
    ],
)
def test_rows_of_the_wrong_or_of_no_format(
    jsonl: Write, source: Make, row: dict[str, Any], shape: Shape, expected: str
) -> None:
    (problem,) = refused(source(jsonl(row)), shape)
    assert expected in problem


def test_a_field_of_several_shapes_gets_the_one_its_rows_are_in(jsonl: Write, source: Make) -> None:
    pairs, labelled = jsonl(GOOD, name="pairs.jsonl"), jsonl(UP, DOWN, name="labelled.jsonl")
    got = loaded(source(labelled), EITHER)
    assert (got.shape, [row["label"] for row in got.train]) == ("labelled", [True, False])
    assert got == loaded(source(labelled), "labelled")
    got = loaded(source(pairs), EITHER)
    assert got.shape == "preference"
    assert got == loaded(source(pairs), "preference")
    assert loaded(source(labelled, format="prompt_completion"), EITHER).shape == "labelled"


def test_a_field_of_several_shapes_says_which(jsonl: Write, source: Make) -> None:
    (problem,) = refused(source(jsonl({"text": "a"})), EITHER)
    assert "rows are of format text (1 of 1 row has `text`); expected preference rows (format hh or" in problem
    assert problem.endswith("sharegpt or alpaca, and a label). Name another data source")


def test_pairs_and_labelled_rows_do_not_mix(
    jsonl: Write, source: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [jsonl(GOOD, name="a.jsonl"), jsonl(UP, DOWN, name="b.jsonl"), jsonl("broken", name="c.jsonl")]
    (problem,) = refused(source(*files), EITHER)
    assert sorted(word for word in problem.split() if word.startswith(("a.", "b."))) == ["a.jsonl", "b.jsonl:"]
    assert problem.endswith("one of the two. Make them two data sources")
    # A file in which nothing can be read has no shape: its rows are bad, and that is what is said.
    assert refused(source(files[1], files[2]), EITHER)[0].startswith("c.jsonl:1: row is not JSON")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "Hi", "completion": "Hello."}, "`label` is missing; expected true or false"),
        ({**UP, "label": "maybe"}, "`label` is 'maybe'; expected true or false (or 1 or 0)"),
        ({**UP, "completion": ""}, "`completion` is empty; expected text"),
        ({"prompt": "Hi", "label": True}, "`completion` is missing; expected text"),
    ],
)
def test_a_bad_labelled_row_is_one_line_with_its_place(
    jsonl: Write, source: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (problem,) = refused(source(jsonl(UP, DOWN, row)), EITHER)
    assert problem.startswith(f"rows.jsonl:3: row {reason}. Mend the data, or set `data.pairs.on_bad_row: skip`")


def test_labels_are_read_from_every_sort_of_file(source: Make, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.csv").write_text("prompt,completion,label\nHi,Hello.,True\nHi,What?,False\n")
    (tmp_path / "a.tsv").write_text("prompt\tcompletion\tlabel\nHi\tHello.\t1\nHi\tWhat?\t0\n")
    (tmp_path / "a.json").write_text(json.dumps([UP, DOWN]))
    pq.write_table(pa.Table.from_pylist([UP, DOWN]), tmp_path / "a.parquet")
    turns = [{**row, "completion": [{"role": "assistant", "content": row["completion"]}]} for row in (UP, DOWN)]
    pq.write_table(pa.Table.from_pylist(turns), tmp_path / "turns.parquet")
    read = [loaded(source(path), EITHER).train for path in sorted(tmp_path.iterdir())]
    plain = [[{key: row[key] for key in row if key != "plain_text"} for row in rows] for rows in read]
    assert len(read) == 5 and all(rows == plain[0] for rows in plain)
    assert [(row["completion"][0]["content"], row["label"]) for row in read[0]] == [("Hello.", True), ("What?", False)]


def test_rows_of_one_label_are_refused(jsonl: Write, source: Make) -> None:
    (problem,) = refused(source(jsonl(UP, {**UP, "prompt": "Bye"})), EITHER)
    expected = (
        "the label of all 2 rows to learn from is true; expected good rows and bad rows. Add rows whose label is false"
    )
    assert problem == f"data pairs: {expected}"
    assert (
        "is false; expected good rows and bad rows. Add rows whose label is true"
        in refused(source(jsonl(DOWN)), EITHER)[0]
    )


def test_labelled_rows_are_held_out_by_prompt(jsonl: Write, source: Make) -> None:
    rows = [{**row, "prompt": f"question {number}"} for number in range(50) for row in (UP, DOWN)]
    got = loaded(source(jsonl(*rows), held_out=0.3), EITHER)
    asked = [[row["prompt"][0]["content"] for row in side] for side in (got.train, got.held_out)]
    assert len(asked[0]) + len(asked[1]) == 100 and asked[1] and not set(asked[0]) & set(asked[1])
    pairs = source(jsonl(*[{**GOOD, "prompt": f"question {number}"} for number in range(50)]), held_out=0.3)
    assert {row["prompt"][0]["content"] for row in loaded(pairs).held_out} == set(asked[1])


def test_a_system_turn_for_text_is_refused(jsonl: Write, source: Make) -> None:
    assert "`system` is set" in refused(source(jsonl({"text": "a"}), system="Be kind."), "text")[0]


def test_a_truncated_file_stops_even_when_bad_rows_are_skipped(source: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
    assert "ends in the middle of its compressed data" in refused(source(path, on_bad_row="skip"), "text")[0]


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    (folder / "data").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "merges.txt").write_text("a b")
    (folder / "data" / "pairs.jsonl").write_text(json.dumps(GOOD) + "\n")
    (tmp_path / "outside.jsonl").write_text(json.dumps(GOOD) + "\n")
    return folder


def test_an_artifacts_only_data_file_needs_no_name(artifact: Path) -> None:
    assert len(loaded(DataSource(artifact="collect"), artifact=artifact).train) == 1
    assert len(loaded(DataSource(artifact="collect", file="data/pairs.jsonl"), artifact=artifact).train) == 1


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("none.jsonl", "artifact `collect` has no file `none.jsonl`; it has data/pairs.jsonl. Correct `file`"),
        ("../outside.jsonl", "file `../outside.jsonl` lies outside of artifact `collect`"),
        ("/etc/hostname", "file `/etc/hostname` lies outside of artifact `collect`"),
        ("link.jsonl", "file `link.jsonl` lies outside of artifact `collect`"),
    ],
)
def test_an_artifacts_file_must_lie_in_it(artifact: Path, file: str, expected: str) -> None:
    if file == "link.jsonl":
        (artifact / file).symlink_to(artifact.parent / "outside.jsonl")
    assert refused(DataSource(artifact="collect", file=file), artifact=artifact)[0].startswith(expected)


def test_an_artifact_with_several_files_asks_which(artifact: Path) -> None:
    (artifact / "more.csv").write_text("text\na\n")
    expected = "artifact `collect` has data/pairs.jsonl, more.csv; expected one file. Name it with `file:`"
    assert refused(DataSource(artifact="collect"), artifact=artifact) == [expected]
    assert "is not made yet" in refused(DataSource(artifact="collect"))[0]


@pytest.mark.parametrize(
    ("hub", "expected"),
    [
        ("owner/no-such-data", "hub:owner/no-such-data (train): cannot load data set: "),
        ("../rows.jsonl", "hub id `../rows.jsonl` is not an id; expected `owner/name`. Use `path:` for files"),
        ("pipeline", "hub id `pipeline` is a local path"),
    ],
)
def test_a_hub_data_set_that_cannot_be_had_is_one_line(tmp_path: Path, hub: str, expected: str) -> None:
    """In a process of its own: the hub's client reads whether it is offline once, when it is imported."""
    (tmp_path / "pipeline").mkdir()
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from pipeline.errors import PipelineError\n"
        "from pipeline.recipe import DataSource; from pipeline.records import load\n"
        "try: load(DataSource(hub=sys.argv[2]), 'text', seed=0, name='x')\n"
        "except PipelineError as error: print(error)\n"
    )
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, root, hub], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith(expected), done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1


COMMIT = "a" * 40
HUB_SCRIPT = """
import json, os, shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import datasets
from pipeline.errors import PipelineError
from pipeline.recipe import DataSource
from pipeline.records import digest, load

# What a download of the hub's owner/pairs at a commit leaves in the cache of `datasets`.
home = Path(os.environ["HF_HOME"])
datasets.load_dataset("json", data_files=str(home / "rows.jsonl"), cache_dir=str(home / "made"))
(made,) = [path.parent for path in home.glob("made/json/*/*/*/dataset_info.json")]
cached = home / "datasets/owner___pairs/default/0.0.0" / sys.argv[2]
cached.parent.mkdir(parents=True)
shutil.copytree(made, cached)
(cached / "json-train.arrow").rename(cached / "pairs-train.arrow")
info = json.loads((cached / "dataset_info.json").read_text().replace('"json"', '"pairs"'))
(cached / "dataset_info.json").write_text(json.dumps(info))

for revision in (None, sys.argv[2], "b" * 40):
    source = DataSource(hub="owner/pairs", revision=revision, on_bad_row="skip")
    try:
        got = load(source, "preference", seed=0, name="x", rejects=home / "rejects.jsonl")
        is_planned = got.digest == digest(source, cache=None).digest
        print(json.dumps([[row["id"] for row in got.train], got.rejected, is_planned]))
    except PipelineError as error:
        print(error)
print((home / "rejects.jsonl").read_text())
"""


def test_a_hub_data_set_is_loaded_from_the_local_cache(tmp_path: Path) -> None:
    rows = [{**GOOD, "id": 1}, {**GOOD, "id": 2, "rejected": ""}, {**GOOD, "id": 3}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", HUB_SCRIPT, str(Path(__file__).parents[2]), COMMIT],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    newest, same, other, rejected = done.stdout.splitlines()[:4]
    assert json.loads(newest) == json.loads(same) == [[1, 3], 1, True]
    assert other.startswith(
        f"hub:owner/pairs@{'b' * 40} (train): the local copy is of commit {COMMIT}; expected commit bbb"
    )
    assert json.loads(rejected)["where"] == f"hub:owner/pairs@{COMMIT} (train) row 2"


def test_records_import_nothing_heavy() -> None:
    code = (
        "import sys, pipeline.records; print([m for m in ('torch','numpy','pyarrow','datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def _of(path: Path, **fields: Any) -> DataSource:
    return DataSource(path=[str(path)], **fields)


def test_a_system_column_beside_another_system_turn_is_named(jsonl: Write) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    own = [{"role": "system", "content": "Own."}, *turns]
    assert loaded(_of(jsonl({"messages": own, "system": "Other."})), "messages").unused == ("system",)
    assert loaded(_of(jsonl({"messages": own, "system": "Other."})), "prompt").unused == ("system",)
    assert loaded(_of(jsonl({"messages": own, "system": "Own. "})), "messages").unused == ()
    for shape in ("messages", "prompt"):  # beside a prompt stands the column `messages` as the file has it
        assert loaded(_of(jsonl({"messages": turns, "system": "Other."})), shape).unused == ()


def test_a_system_column_that_is_no_text_is_refused_with_a_remedy_that_works(jsonl: Write) -> None:
    path = jsonl({"prompt": "q", "completion": "a", "system": ["Be kind."]})
    said = refused(_of(path), "messages")[0]
    assert "row `system` is a list; expected text. If it is no system turn, `columns: {system: note}`" in said
    assert loaded(_of(path, columns={"system": "note"}), "messages").unused == ("note",)


def test_a_second_label_is_named_and_is_a_bad_row_where_it_says_otherwise(jsonl: Write) -> None:
    rows = loaded(_of(jsonl({**UP, "kto_tag": "good"}, {**DOWN, "kto_tag": "very"})), "labelled")
    assert rows.unused == ("kto_tag",) and [row["label"] for row in rows.train] == [True, False]
    (said,) = refused(_of(jsonl({**UP, "kto_tag": False}, DOWN)), "labelled")
    assert "rows.jsonl:1: row `label` is True and `kto_tag` is False; expected one label. " in said


def test_pairs_without_an_answer_do_not_outvote_whole_ones(jsonl: Write) -> None:
    whole, half = {"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": ""}
    rows = loaded(_of(jsonl(half, half, whole), on_bad_row="skip"), "messages")
    assert (len(rows.train), rows.rejected) == (1, 2)
    assert rows.detected == "format prompt_completion: 1 of 3 rows has `prompt` and `completion`"
    assert "row `completion` is empty; expected text" in refused(_of(jsonl(half, half)), "messages")[0]


def test_the_column_that_joins_is_named_where_two_are_lost(jsonl: Write) -> None:
    path = jsonl({"prompt": "q", "completion": "a", "input": "one", "context": "two"})
    assert "Set `columns: {prompt: instruction, completion: output}`, which joins" in refused(_of(path), "messages")[0]
    named = {"prompt": "instruction", "completion": "output"}
    said = refused(_of(path, columns=named), "messages")[0]
    assert "column `context` would not reach the model. Put it into the messages" in said and "context: note}" in said
    assert len(loaded(_of(path, columns={**named, "context": "note"}), "messages").train) == 1
