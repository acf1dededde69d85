"""Rows of every format, mutated, in files of every kind, through the readers as every shape a stage takes.

A case is a line of JSON: the file's name, its bytes in hexadecimal, and how it is read. It may give rows, or be refused
with problems of our own in one line each. A law holds for what is read: no row is lost, each is kept or rejected.
"""

from __future__ import annotations

import copy
import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any, get_args

import pyarrow
import pyarrow.parquet
from recipe_cases import INTERNAL

from pipeline.errors import PipelineError
from pipeline.recipe.data_source import DataSource, Format
from pipeline.records import digest, load
from pipeline.stage import Shape

ASKED, SAID = {"role": "user", "content": "which colour?"}, {"role": "assistant", "content": "red ."}
ROWS: tuple[dict[str, Any], ...] = (
    {"text": "a cat sat ."},
    {"messages": [ASKED, SAID, ASKED, SAID]},
    {"messages": [{"role": "system", "content": "be kind"}, ASKED, SAID], "source": "x"},
    {"prompt": "which colour?", "completion": "red ."},
    {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]},
    {"instruction": "add", "input": "1 2", "output": "3"},
    {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {"prompt": "a", "chosen": "b", "rejected": "c", "task": "t"},
    {"prompt": [ASKED], "chosen": [SAID], "rejected": [{"role": "assistant", "content": "blue ."}]},
    {"chosen": [ASKED, SAID], "rejected": [ASKED, {"role": "assistant", "content": "blue ."}], "score_chosen": 1.0},
    {"prompt": "a", "completion": "b", "label": True},
    {"prompt": [ASKED], "completion": [SAID], "label": False},
    {"prompt": "why?", "answer": "because", "task": "t"},
    {"question": "1 + 1", "response": "2", "winner": "model_a", "score_a": 1},
    {"prompt": "a", "response_a": "b", "response_b": "c", "winner": "a"},
    {"prompt": "a", "left": "b", "right": "c", "human_vote": 1},
    {
        "Prompt": "a",
        "Chosen": "b",
        "Rejected": "c",
        "chosenScore": 2,
        "rejectedScore": 1,
        "winner": "chosen",
        "margin": 1,
    },
    {"prompt": ["a", "b"], "completion": ["c", "d"]},
    {"prompt": {"0": "a", "1": "b"}, "completion": {"0": "c", "1": "d"}},
    {"messages": [ASKED, {**SAID, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]}]},
)
"""A row or more of every format, and some that are of none."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 1e300, 10**30, float("nan"), float("inf"), "", " ", "\n", "x", "a" * 5000, "\0"),
    *(
        "\ud800",
        "💥",
        "\u202e",
        "é",
        [],
        {},
        [[]],
        [{}],
        [None],
        {"a": None},
        [[[[1]]]],
        {"role": "user"},
        [ASKED],
        [SAID],
    ),
    *(
        [SAID, ASKED],
        [ASKED, ASKED],
        {"role": "user", "content": None},
        [{"role": 1, "content": 2}],
        "true",
        "1",
        "null",
    ),
    *(
        [{"role": "assistant", "content": [{"type": "text", "text": "x"}, {"type": "image"}]}],
        "<|user|>",
        "\n\nHuman: a",
    ),
    *(
        [{"from": "gpt", "value": 1}],
        {"content": "x"},
        "[]",
        "{}",
        '{"a": 1}',
        [1, "a", None],
        ["a", "b"],
        "</s>",
        "1e400",
    ),
)
NAMES = ("rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.parquet", "rows.txt", "rows.jsonl.gz", "rows.csv.gz")
ODD = (
    b"\xff",
    b"\xef\xbb\xbf",
    b"\0",
    b"\r",
    b"\n",
    b"\n\n",
    b'"',
    b",",
    b"{",
    b"}",
    b"[",
    b"\\",
    b"\xed\xa0\x80",
    b"NaN",
)


class RowCases:
    """Mutated rows, tried in a folder of their own.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, rng: random.Random, number: int) -> str:
        """Return one to four rows of one format, most of them mutated, in a file."""
        seed_row = ROWS[number % len(ROWS)]
        is_plain = rng.random() < 0.6  # read as it is meant: only the rows are odd
        rows = [copy.deepcopy(seed_row) for _ in range(rng.randint(1, 4))]
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3))):
            _mutated(rows[rng.randrange(len(rows))], rng)
        if rng.random() < 0.1:
            rows.insert(rng.randrange(len(rows) + 1), rng.choice((*VALUES, *ROWS)))
        if is_plain:
            rows.append(copy.deepcopy(seed_row))  # something is left when the others are rejected
        name = rng.choice(("rows.jsonl", "rows.json", "rows.parquet") if is_plain else NAMES)
        content = _encoded(name, rows)
        if not is_plain and rng.random() < 0.5:
            content = _torn(content, rng)
        options = {
            "format": "auto" if is_plain else rng.choice(("auto", *get_args(Format))),
            "on_bad_row": "skip" if is_plain else rng.choice(("stop", "skip")),
            "held_out": rng.choice((0.0, 0.0, 0.3)),
            "columns": {}
            if is_plain
            else rng.choice(({}, {"answer": "completion"}, {"prompt": "text"}, {"nothing": "prompt"})),
            "system": rng.choice((None, None, "be kind")),
        }
        return json.dumps(
            {"name": name, "shape": rng.choice(get_args(Shape)), "options": options, "hex": content.hex()}
        )

    def attempt(self, case: str) -> str:
        """Read the rows as a stage would."""
        given = json.loads(case)
        file = self.folder / given["name"]
        file.write_bytes(bytes.fromhex(given["hex"]))
        try:
            source = DataSource(path=str(file), **given["options"])
            whole = digest(source, cache=None)
            rows = load(source, given["shape"], seed=1, name="rows", rejects=self.folder / "rejects.jsonl")
        except PipelineError as error:
            told = [str(problem) for problem in error.problems]
            unclear = [text for text in told if not text.strip() or "\n" in text or any(w in text for w in INTERNAL)]
            if unclear or not told:
                raise AssertionError(f"no clear line: {unclear[:1]!r}") from error
            return "refused"
        finally:
            file.unlink()
        kept = len(rows.train) + len(rows.held_out)
        if kept + rows.rejected != whole.rows:
            raise AssertionError(f"{whole.rows} rows, of which {kept} are kept and {rows.rejected} rejected")
        return "accepted"


def _fitting(row: dict[str, Any]) -> tuple[str, ...]:
    """Return shapes a stage may ask such rows for."""
    if "chosen" in row:
        return ("preference", "prompt")
    if "label" in row:
        return ("labelled", "prompt")
    return ("text",) if "text" in row else ("messages", "prompt")


def _mutated(row: dict[str, Any], rng: random.Random) -> None:
    """Change a row: another value, no value, another key, one more key, a value inside a list."""
    places: list[tuple[Any, Any]] = []

    def walk(tree: Any) -> None:
        for key, child in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
            places.append((tree, key))
            if isinstance(child, dict | list):
                walk(child)

    walk(row)
    if not places:
        return
    holder, key = rng.choice(places)
    how = rng.randrange(6)
    if how <= 2:
        holder[key] = copy.deepcopy(rng.choice(VALUES))
    elif how == 3:
        del holder[key]
    elif how == 4:
        row[rng.choice(("text", "messages", "prompt", "label", "chosen", "weight", "tools", "id", ""))] = copy.deepcopy(
            rng.choice(VALUES)
        )
    else:
        holder[key] = rng.choice(([holder[key]], {"a": holder[key]}, str(holder[key]), [holder[key], holder[key]]))


def _encoded(name: str, rows: list[Any]) -> bytes:
    """Write rows as a file of that name has them; as lines of JSON where they cannot be a table."""
    plain = name.removesuffix(".gz")
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if plain.endswith(".json"):
        lines = json.dumps(rows).encode()
    elif plain.endswith(".txt"):
        lines = "\n\n".join(str(row) for row in rows).encode("utf-8", "surrogatepass")
    elif plain.endswith((".csv", ".tsv")):
        stream = io.StringIO()
        writer = csv.writer(stream, delimiter="," if plain.endswith(".csv") else "\t")
        tables = [row if isinstance(row, dict) else {"x": row} for row in rows]
        writer.writerow(tables[0])
        writer.writerows(
            [[value if isinstance(value, str) else json.dumps(value) for value in t.values()] for t in tables]
        )
        lines = stream.getvalue().encode("utf-8", "surrogatepass")
    elif plain.endswith(".parquet"):
        try:
            buffer = io.BytesIO()
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
            lines = buffer.getvalue()
        except Exception:  # rows that no table holds: a file with a wrong name is a case too
            pass
    return gzip.compress(lines, mtime=0) if name.endswith(".gz") else lines


def _torn(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    how = rng.randrange(4)
    if how == 0:
        return content[:at]
    if how == 1:
        return content[:at] + content[at + 1 :]
    if how == 2:
        return rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"")) + content.replace(b"\n", b"\r\n")
    return content[:at] + rng.choice(ODD) + content[at:]
