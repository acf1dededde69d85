"""Real rows: every file of the shared data loads in its natural shape."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.recipe import DataSource
from pipeline.records import digest, load
from pipeline.stage import Shape

FOLDER = Path(os.environ.get("TRUEUP_REAL_DATA") or Path(__file__).parents[3] / "shared" / "data")
SHAPES: dict[str, Shape] = {"pretrain": "text", "instruction": "messages", "preference": "preference", "eval": "prompt"}
# name: rows, and of these bad ones: empty responses, one speaker twice in a row, both responses the same.
ROWS = {
    "factbook.jsonl.gz": (79, 0),
    "gutenberg_novels.jsonl.gz": (1408, 0),
    "oasst1_en_messages_part0_3.jsonl.gz": (5715, 0),
    "peps_0001_0500.jsonl.gz": (144, 0),
    "sherlock_se.jsonl.gz": (12, 0),
    "tinyshakespeare.jsonl.gz": (615, 0),
    "gsm8k_train.jsonl.gz": (7473, 0),
    "oasst1_val_threads.jsonl.gz": (665, 0),
    "self_instruct_seed.jsonl.gz": (175, 0),
    "finegrained_qa_dev.jsonl.gz": (658, 0),
    "hh_harmless_a.jsonl.gz": (1168, 9),
    "llmbar_natural.jsonl.gz": (100, 0),
    "oasst1_val_pairs.jsonl.gz": (722, 1),
    "ifeval_input_data.jsonl": (541, 0),
    "mt_bench_question.jsonl": (80, 0),
}
FILES = {path.name: path for folder in SHAPES for path in (FOLDER / folder).glob("*.jsonl*")}

pytestmark = pytest.mark.skipif(
    not FILES, reason=f"no real data at {FOLDER}: set TRUEUP_REAL_DATA to a folder with {', '.join(SHAPES)}"
)


@pytest.mark.parametrize("name", ROWS)
def test_a_real_file_loads_in_its_natural_shape(name: str, tmp_path: Path) -> None:
    if name not in FILES:
        pytest.skip(f"{name} is not in {FOLDER}")
    rows, bad = ROWS[name]
    shape = SHAPES[FILES[name].parent.name]
    rejects = tmp_path / "rejects.jsonl"
    source = DataSource(path=str(FILES[name]), on_bad_row="skip" if bad else "stop", held_out=0.1)
    got = load(source, shape, seed=0, name="real", rejects=rejects)
    assert (len(got.train) + len(got.held_out), got.rejected) == (rows - bad, bad)
    assert len(rejects.read_text().splitlines()) == bad if bad else not rejects.exists()
    assert got.held_out and all(shape_of(row, shape) for row in got.train + got.held_out)


def shape_of(row: dict[str, object], shape: Shape) -> bool:
    if shape == "text":
        return bool(row["text"])
    turns = row["messages" if shape == "messages" else "prompt"]
    assert isinstance(turns, list)
    if shape == "preference":
        assert row["chosen"] != row["rejected"] and row["margin"] is None
    return bool(turns[-1]["role"] == ("assistant" if shape == "messages" else "user"))


def test_all_files_together_are_one_source() -> None:
    source = DataSource(path=[str(path) for path in FILES.values()])
    assert digest(source, cache=None).rows == sum(ROWS[name][0] for name in FILES)
