"""What `check` says of data: rows a stage can use, too few of them, and every problem of every phase in one list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.preflight import CheckReport
from pipeline.preflight.checks.sources import SourceCount


def counts(report: CheckReport) -> dict[str, SourceCount]:
    return {f"{use.stage}.{use.field}": count for use, count in report.sources.items()}


def change_rows(file: Path, change: Any) -> None:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in change(rows)), encoding="utf-8")


def without_answers(rows: list[dict[str, Any]], *, kept: int) -> list[dict[str, Any]]:
    """Empty the chosen side of all pairs but the first few."""
    return [row if i < kept else {**row, "chosen": ""} for i, row in enumerate(rows)]


def test_it_says_for_each_stage_and_source_what_is_kept_rejected_and_held_out(fresh: Any) -> None:
    change_rows(fresh.recipe.parent / "pairs.jsonl", lambda rows: without_answers(rows, kept=100))
    report = fresh.check("data.pairs.on_bad_row=skip")
    by_use = counts(report)
    assert by_use["rm.data"] == by_use["dpo.data"]
    pairs = by_use["dpo.data"]
    assert (pairs.shape, pairs.kept, pairs.rejected) == ("preference", 100, 60)  # of 160
    assert 0 < pairs.held_out < 40 and pairs.train == 100 - pairs.held_out  # a tenth of the prompts
    assert by_use["rm.test"].kept == 60 and by_use["base.data"].shape == "text"
    assert list(pairs.notes) == ["data pairs: 60 of 160 rows are bad and are left out"]


def test_rows_of_other_parts_are_told(fresh: Any) -> None:
    change_rows(fresh.recipe.parent / "pairs.jsonl", lambda rows: without_answers(rows, kept=100))
    part = ("data.pairs.part=[0.0, 0.6]", "data.pairs.on_bad_row=skip")
    pairs = counts(fresh.check(*part))["dpo.data"]
    assert pairs.kept + pairs.outside == 100 and 0 < pairs.outside < 100
    assert list(pairs.notes) == [
        "data pairs: 60 of 160 rows are bad and are left out",  # of all rows: a bad row has no prompt
        f"data pairs: {pairs.outside} of 160 rows are not in the part from 0 to 0.6",
    ]
    assert list(counts(fresh.check(*part))["dpo.data"].notes) == list(pairs.notes), "remembered"


def test_columns_that_nothing_reads_are_named_once_for_each_source(fresh: Any) -> None:
    """The card of `rm` goes by `task` and gold; `mood` is nobody's, and a prompt's columns are Python's."""
    for file in ("pairs.jsonl", "asks.jsonl"):
        change_rows(fresh.recipe.parent / file, lambda rows: [{**row, "mood": "good"} for row in rows])
    notes = [note for note in fresh.check().notes if "nothing reads" in note]
    assert "data pairs: nothing reads `mood`" in notes
    assert not any(note.startswith("data asks") for note in notes)


def test_empty_files_links_and_votes_against_the_order_are_said_each_time(fresh: Any) -> None:
    """The files are looked at each time; what their rows hold is remembered."""
    folder = fresh.recipe.parent / "demos"
    folder.mkdir()
    (fresh.recipe.parent / "demos.jsonl").rename(folder / "demos.jsonl")
    (folder / "empty.jsonl").touch()
    (folder / "link.jsonl").symlink_to("demos.jsonl")
    (folder / "README.md").touch()
    scored = [{"chosen_score": 1, "rejected_score": 2}, *[{"chosen_score": 2, "rejected_score": 1}] * 159]
    change_rows(
        fresh.recipe.parent / "pairs.jsonl",
        lambda rows: [{**row, **more} for row, more in zip(rows, scored, strict=True)],
    )
    for _ in range(2):
        notes = list(fresh.check("data.demos.path=demos").sources.values())
        said = {note for count in notes for note in count.notes}
        names = {note.rpartition("/")[2] for note in said}
        assert "empty.jsonl" in names and any(
            note.startswith("data demos: these files hold no rows: ") for note in said
        )
        assert "data demos: these lie in the folder and are not read: README.md" in said
        assert "data demos: a file under two names is read once: link.jsonl is demos.jsonl" in said
        above = "`rejected_score` is above `chosen_score` in 1 of 160 rows; `chosen` is taken as the better answer"
        assert f"data pairs: {above}" in said
        (folder / "empty.jsonl").write_text("\n")  # still without rows


def test_a_limit_counts_usable_rows(fresh: Any) -> None:
    change_rows(fresh.recipe.parent / "pairs.jsonl", lambda rows: without_answers(rows[::-1], kept=40))
    assert counts(fresh.check("data.pairs.limit=32"))["dpo.data"].kept == 32  # the first 40 are good
    again = counts(fresh.check("data.pairs.limit=48", "data.pairs.on_bad_row=skip"))["dpo.data"]
    assert (again.kept, again.rejected) == (40, 120)


def test_what_was_read_is_remembered_by_its_content(fresh: Any) -> None:
    first = fresh.check()
    assert fresh.check().sources == first.sources
    change_rows(fresh.recipe.parent / "asks.jsonl", lambda rows: rows[:-4])
    assert counts(fresh.check())["report.data"].kept == counts(first)["report.data"].kept - 4


def test_a_stage_with_fewer_usable_rows_than_a_batch_is_refused_with_the_words_of_the_run(fresh: Any) -> None:
    change_rows(fresh.recipe.parent / "pairs.jsonl", lambda rows: without_answers(rows, kept=5))
    asked = ("data.pairs.on_bad_row=skip", "data.pairs.held_out=0")
    problems = fresh.problems(*asked)
    assert [(one.stage, one.found, one.expected) for one in problems] == [
        ("rm", "there are 5 pairs to train on", "at least one batch of 16"),
        ("dpo", "there are 5 pairs to train on", "at least one batch of 16"),
    ]
    assert all(one.where.startswith(f"{fresh.recipe}:") for one in problems)
    fresh.check(*asked, "stages.rm.train.batch_size=5", "stages.dpo.train.batch_size=4")  # the remedy


MORE_KINDS = {
    "kto counts a pair twice": (
        "{kind: kto, data: pairs, model: sft, train: {batch_size: 12, kl_batch: 4}}",
        "there are 10 rows (5 pairs) to train on",
    ),
    "grpo": (
        "{kind: grpo, data: few, model: sft, reward: rm, train: {batch_size: 32, num_generations: 4}}",
        "there are 5 prompts to learn from",
    ),
    "ppo": ("{kind: ppo, data: one, model: sft, reward: rm}", "there is 1 prompt to learn from and 0 held out"),
}


@pytest.mark.parametrize("name", MORE_KINDS)
def test_every_kind_says_what_it_needs(name: str, fresh: Any) -> None:
    stage, message = MORE_KINDS[name]
    change_rows(fresh.recipe.parent / "pairs.jsonl", lambda rows: rows[:5])
    text = fresh.recipe.read_text().replace("stages:\n", f"stages:\n  more: {stage}\n", 1)
    few = "  few: {path: asks.jsonl, limit: 5}\n  one: {path: asks.jsonl, limit: 1}\n"
    fresh.recipe.write_text(text.replace("data:\n", f"data:\n{few}", 1))
    found_by = {one.found for one in fresh.problems("data.pairs.held_out=0") if one.stage == "more"}
    assert found_by == {message}


def test_a_split_that_holds_nothing_out_is_refused(fresh: Any) -> None:
    change_rows(fresh.recipe.parent / "demos.jsonl", lambda rows: [rows[0]] * 40)  # one prompt: one side
    (problem,) = fresh.problems()
    assert problem.found == "data demos: held_out is 0.1, but no row is held out: all have one prompt"
    assert problem.where == f"{fresh.recipe}:5"
    fresh.check("data.demos.held_out=0")


def test_a_bad_row_that_two_stages_read_is_told_once(fresh: Any) -> None:
    change_rows(fresh.recipe.parent / "pairs.jsonl", lambda rows: [*rows[:80], {**rows[80], "chosen": ""}, *rows[81:]])
    (problem,) = fresh.problems()
    assert problem.where.endswith("pairs.jsonl:81") and problem.stage == ""


def test_all_phases_tell_their_problems_in_one_list(fresh: Any) -> None:
    """A wrong word, a file that is missing, one that is damaged, a bad row, a missing extra: five lines, one check."""
    world = fresh.recipe.parent
    (world / "pairs_test.jsonl").unlink()
    (world / "asks.jsonl").write_bytes(b"\x1f\x8b\x08cut")
    change_rows(world / "demos.jsonl", lambda rows: [*rows, {"messages": []}])
    text = fresh.recipe.read_text()
    text = text.replace("kind: sft, data: demos, model: base", "kind: sft, data: demos, model: base, wrong_word: 1")
    fresh.recipe.write_text(text)
    told = [str(one) for one in fresh.problems("stages.sft.compute.attention=flash")]
    assert len(told) == 5
    for wanted in ("wrong_word", "pairs_test.jsonl", "asks.jsonl", "demos.jsonl:241", "FlashAttention"):
        assert sum(wanted in line for line in told) == 1, wanted


def test_rows_of_an_artifact_that_is_there_are_read_too(finished: Any) -> None:
    data = "data:\n  mined: {artifact: report, file: samples.jsonl}\n"
    more = "stages:\n  more: {kind: sft, data: mined, model: base}\n"
    text = finished.recipe.read_text().replace("data:\n", data, 1).replace("stages:\n", more, 1)
    finished.recipe.write_text(text)
    (problem,) = finished.problems()
    assert "samples.jsonl" in problem.where and "data mined" in problem.found  # prompts with answers, no conversations


def test_margins_that_some_pairs_lack_are_refused_before_the_run(fresh: Any) -> None:
    change_rows(fresh.recipe.parent / "pairs.jsonl", lambda rows: [{**rows[0], "margin": 1.0}, *rows[1:]])
    asked = ("data.pairs.held_out=0", "data.pairs.on_bad_row=skip", "stages.rm.train.use_margin=true")
    (problem,) = fresh.problems(*asked)
    assert problem.found.startswith("1 of ") and problem.found.endswith("has a margin, and train.use_margin is true")
    assert problem.stage == "rm"
    fresh.check(*asked[:2])


def test_a_hub_model_that_is_not_here_is_told_where_there_is_no_network(fresh: Any, tmp_path: Path) -> None:
    text = fresh.recipe.read_text()
    stage = "  tune: {kind: sft, data: demos, model: someone/something}\n"
    fresh.recipe.write_text(text.replace("stages:\n", f"stages:\n{stage}", 1))
    line = [sys.executable, "-m", "pipeline.cli", "check", str(fresh.recipe), "--store", str(fresh.store.root)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    told = subprocess.run(line, capture_output=True, text=True, check=False, env=offline)
    assert told.returncode == 0, told.stderr
    said = " ".join(told.stdout.split())
    assert "stage tune: the model someone/something is not on this machine, and HF_HUB_OFFLINE is set" in said
    assert "run `hf download someone/something`" in said
