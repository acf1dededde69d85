"""Runs in this process: order, journal, logs, manifests, and what is kept when a stage fails."""

from __future__ import annotations

import errno
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts.card import card
from pipeline.errors import ExitCode, PipelineError, StageFailed
from pipeline.records.split import position
from pipeline.run.journal import Journal as KeptJournal
from pipeline.run.journal import new_run_dir

Journal = Callable[[Path], list[dict[str, Any]]]


def test_a_run_does_what_is_missing_in_order_and_keeps_a_journal(fresh: Any, journal: Journal) -> None:
    report = fresh(until="base")
    assert fresh.seen.calls == [
        ("run_started", ""),
        ("started", "tokenizer"),
        ("done", "tokenizer"),
        ("started", "base"),
        ("done", "base"),
    ]
    assert [(done.stage.spec.name, done.cached) for done in report.stages] == [("tokenizer", False), ("base", False)]
    events = journal(fresh.store.root)
    assert [(event["event"], event.get("stage")) for event in events if event["event"] != "stage_note"] == [
        ("run_started", None),
        ("stage_started", "tokenizer"),
        ("stage_done", "tokenizer"),
        ("stage_started", "base"),
        ("stage_done", "base"),
        ("run_ended", None),
    ]
    assert events[0]["pending"] == ["tokenizer", "base"]
    assert events[-1]["finished"] == ["tokenizer", "base"]
    started = next(event for event in events if event["event"] == "stage_started")
    assert (started["resumed"], started["why"]) == (False, ["never run"])
    assert [event["time"] for event in events] == sorted(event["time"] for event in events)
    assert sorted(file.name for file in report.run_dir.iterdir()) == ["base.log", "journal.jsonl", "tokenizer.log"]


def test_progress_reaches_the_view_while_a_stage_runs(fresh: Any) -> None:
    fresh(until="base")
    progress = [event for event in fresh.seen.events if event.kind == "progress"]
    assert progress[-1].step == progress[-1].total == 60
    assert 0 < progress[-1].metrics["loss"] < 2
    phases = [event.text for event in fresh.seen.events if event.kind == "phase"]
    assert "learning 360 entries from 240 texts" in phases
    assert phases.index("tokenizing") < phases.index("writing the artifact")


def test_what_is_in_the_store_is_not_run_again(finished: Any, journal: Journal) -> None:
    report = finished()
    assert all(done.cached for done in report.stages)
    assert {call for call, _ in finished.seen.calls} == {"run_started", "cached"}
    assert [event["event"] for event in journal(finished.store.root)] == [
        "run_started",
        *["stage_cached"] * 6,
        "run_ended",
    ]


def test_runs_of_one_second_and_one_process_number_have_journals_of_their_own(finished: Any, journal: Journal) -> None:
    """As two containers on one store: each command is process 1 of its own."""
    folders = [finished().run_dir for _ in range(5)]  # a few milliseconds each
    assert len(set(folders)) == 5
    assert [event["event"] for event in journal(finished.store.root)].count("run_started") == 5
    assert all(len(list(folder.glob("journal.jsonl"))) == 1 for folder in folders)


def test_a_changed_stage_runs_with_what_depends_on_it_and_nothing_else(finished: Any) -> None:
    report = finished("stages.dpo.train.max_steps=2")
    assert {done.stage.spec.name: done.cached for done in report.stages} == {
        "tokenizer": True,
        "base": True,
        "sft": True,
        "rm": True,
        "dpo": False,
        "report": False,
    }
    made = finished.store.artifacts("dpo")
    assert [artifact.manifest.version for artifact in made] == [1, 2]


def test_the_manifest_says_what_a_stage_stood_on(chain: Any) -> None:
    manifest = chain["dpo"].manifest
    sft = chain["sft"].manifest
    assert [(item.field, item.ref, item.kind, item.version, item.fingerprint) for item in manifest.inputs] == [
        ("model", "sft", "sft", 1, sft.fingerprint)
    ]
    data = manifest.data["data"]
    assert (data.source, data.rows, data.rejected, data.where) == ("pairs", 160, 0, ["pairs.jsonl"])
    assert manifest.config["config"]["train"]["beta"] == 0.5
    assert manifest.recipe["name"] == "tiny"
    assert manifest.recipe["resolved"]["stages"]["dpo"]["train"]["beta"] == 0.5
    assert (manifest.seed, manifest.kind, manifest.makes) == (7, "dpo", "model")
    assert manifest.runtime["checkpoint_every_s"] == 0.2
    assert manifest.runtime["ran"] == {
        "precision": "fp32",
        "batch": "16 pairs × 1 process = 16 pairs per optimizer step of at most 48 tokens",
        "accelerate": {"distributed_type": "NO", "num_processes": 1},
        "attention": "sdpa",
        "liger": False,
        "seen": {"engine": "plain", "weights": 1.0, "optimizer": 1.0, "dtype": "float32", "recomputed": False},
    }
    assert manifest.environment["packages"]["trl"]
    assert (manifest.environment["device"], manifest.environment["threads"]) == ("cpu", 1)
    report = chain["report"].manifest
    assert [(item.field, item.name) for item in report.inputs] == [
        ("models", "base"),
        ("models", "sft"),
        ("models", "dpo"),
        ("reward", "rm"),
    ]


def test_a_forced_stage_takes_the_place_of_its_artifact_as_a_new_version(finished: Any) -> None:
    before = finished.store.artifacts("tokenizer")[0].manifest
    finished(until="tokenizer", force=["tokenizer"])
    (after,) = finished.store.artifacts("tokenizer")
    assert (before.version, after.manifest.version) == (1, 2)
    assert (after.manifest.fingerprint, after.manifest.digest) == (before.fingerprint, before.digest)


def test_a_lost_loss_fails_the_stage_by_name_and_keeps_its_checkpoints(
    finished: Any, journal: Journal, checkpoints: Callable[..., list[int]]
) -> None:
    change = ["stages.dpo.train={batch_size: 16, learning_rate: 1.0e+30, max_steps: 12, logging_steps: 4}"]
    change += ["stages.dpo.compute={checkpoint_every_s: 1.0e-6}"]
    with pytest.raises(StageFailed) as failed:
        finished(*change, until="dpo")
    assert failed.value.exit_code == ExitCode.FAILED
    (problem,) = failed.value.problems
    assert problem.stage == "dpo"
    assert problem.found.startswith("the loss is nan at step 4")
    assert finished.seen.calls[-1] == ("failed", "dpo")
    assert checkpoints(finished.store, "dpo") == [3]
    assert finished.store.artifacts("dpo")[-1].manifest.version == 1
    events = journal(finished.store.root)
    assert [event["event"] for event in events[-2:]] == ["stage_failed", "run_ended"]
    assert events[-1]["finished"] == ["tokenizer", "base", "sft"]
    log = next(finished.store.root.glob(".runs/*/dpo.log")).read_text()
    assert "Traceback (most recent call last)" in log
    # The next run goes on from there, and the plan knows.
    assert next(stage for stage in finished.plan(*change).stages if stage.spec.name == "dpo").resumable
    with pytest.raises(StageFailed):
        finished(*change, until="dpo")
    assert finished.seen.resumed == {"dpo": True}
    assert "resumes at step 3 of 12" in [event.text for event in finished.seen.events]


def test_a_users_function_that_breaks_is_bad_input_and_not_a_traceback(finished: Any) -> None:
    gold = finished.recipe.parent / "gold.py"
    gold.write_text(gold.read_text().replace("return [right - bad", "return [right / 0 - bad"))
    with pytest.raises(StageFailed) as failed:
        finished()
    assert failed.value.exit_code == ExitCode.BAD_INPUT
    expected = "stage report: reward function gold.py:gold raised ZeroDivisionError: float division by zero"
    assert str(failed.value).startswith(expected)
    assert not list(finished.store.root.glob(".work/report-*/payload/report.json"))


def test_anything_else_that_breaks_is_one_line_with_the_place_of_its_log(finished: Any) -> None:
    (weights,) = finished.store.root.glob("sft/*/model.safetensors")
    weights.chmod(0o644)
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    with pytest.raises(StageFailed) as failed:
        finished("stages.dpo.train.beta=0.77", until="dpo")
    assert failed.value.exit_code == ExitCode.FAILED
    (problem,) = failed.value.problems
    assert (problem.stage, "Safetensor" in problem.found) == ("dpo", True)
    assert "\n" not in str(problem)
    log = Path(problem.remedy.removeprefix("details in "))
    assert "Traceback (most recent call last)" in log.read_text()
    # It had made its empty folder of checkpoints: nothing to resume from, so nothing is kept.
    assert not list(finished.store.root.glob(".work/dpo-*"))


def test_what_may_not_be_stored_fails_the_stage_by_name(finished: Any, journal: Journal) -> None:
    gold = finished.recipe.parent / "gold.py"
    # A user's function that leaves a pickle in the payload: found when the stage is committed.
    areas = f'pathlib.Path("{finished.store.root}").glob(".work/report-*/payload")'
    leave = f'import pathlib\nfor area in {areas}:\n    (area / "left.pkl").write_bytes(b"x")\n'
    gold.write_text(leave + gold.read_text())
    with pytest.raises(StageFailed) as failed:
        finished()
    assert failed.value.problems[0].stage == "report"
    assert "left.pkl" in str(failed.value)
    assert finished.seen.calls[-1] == ("failed", "report")
    assert [event["event"] for event in journal(finished.store.root)][-2:] == ["stage_failed", "run_ended"]


def test_rows_of_other_parts_are_counted(fresh: Any) -> None:
    fresh("data.corpus.part=[0.0, 0.5]", until="tokenizer")
    (artifact,) = fresh.store.artifacts("tokenizer")
    record = artifact.manifest.data["data"]
    corpus = fresh.recipe.parent / "corpus.jsonl"
    texts = [" ".join(json.loads(line)["text"].casefold().split()) for line in corpus.read_text().splitlines()]
    within = sum(position(text) < 0.5 for text in texts)
    assert (record.rows, artifact.manifest.rows_used(record)) == (len(texts), within)
    assert f"| data | {within} of {len(texts)} | 0 |" in card(artifact.manifest, [], ())


def test_skipped_rows_are_kept_counted_and_said(fresh: Any) -> None:
    corpus = fresh.recipe.parent / "corpus.jsonl"
    corpus.write_text('{"text": 7}\n' + corpus.read_text() + '{"text": ""}\n')
    fresh("data.corpus.on_bad_row=skip", until="tokenizer")
    (artifact,) = fresh.store.artifacts("tokenizer")
    assert artifact.manifest.data["data"].rejected == 2
    kept = [json.loads(line) for line in (artifact.path / "rejects" / "corpus.jsonl").read_text().splitlines()]
    assert [(row["where"], row["row"]) for row in kept] == [
        ("corpus.jsonl:1", {"text": 7}),
        ("corpus.jsonl:242", {"text": ""}),
    ]
    assert "2 bad rows of corpus skipped, kept in corpus.jsonl" in [event.text for event in fresh.seen.events]
    assert not (artifact.path / "rejects" / "asks.jsonl").exists()


def test_a_bad_row_stops_the_run_with_file_line_and_reason(fresh: Any) -> None:
    corpus = fresh.recipe.parent / "corpus.jsonl"
    lines = corpus.read_text().splitlines()
    lines[41] = '{"text": 7}'
    corpus.write_text("\n".join(lines) + "\n")
    with pytest.raises(PipelineError) as failed:
        fresh(until="tokenizer")
    assert failed.value.exit_code == ExitCode.BAD_INPUT
    (problem,) = failed.value.problems
    assert problem.where.endswith("corpus.jsonl:42")
    assert problem.found.startswith("row `text` is 7")
    assert fresh.store.artifacts() == []


def test_a_stage_another_run_is_making_is_waited_for_and_taken(finished: Any, tmp_path: Path, journal: Journal) -> None:
    """Two runs of one recipe: the second finds the first's artifact once it gets the stage's lock."""
    (made,) = finished.store.artifacts("report")
    aside = tmp_path / "aside"
    made.path.rename(aside)
    plan = finished.plan()
    assert [stage.spec.name for stage in plan.pending] == ["report"]
    held, waiting = threading.Event(), threading.Event()

    def other_run() -> None:
        with finished.store.work("report", made.manifest.fingerprint):
            held.set()
            waiting.wait(30)
            time.sleep(0.2)
            aside.rename(made.path)

    from pipeline.run.runner import run

    thread = threading.Thread(target=other_run)
    thread.start()
    assert held.wait(30)
    seen = finished.seen
    seen.stage_waiting = lambda stage: (seen.calls.append(("waiting", stage.spec.name)), waiting.set())
    report = run(plan, finished.store, seen)
    thread.join()
    assert seen.calls[-2:] == [("waiting", "report"), ("cached", "report")]
    assert report.stages[-1].cached
    assert journal(finished.store.root)[-2]["event"] == "stage_cached"


def test_a_tracker_keeps_its_files_beside_the_log_of_the_run(finished: Any) -> None:
    pytest.importorskip("tensorboardX", reason="a tracker's own files need its package")
    train = "{batch_size: 16, learning_rate: 1.0e-3, max_steps: 4, logging_steps: 2, report_to: [tensorboard]}"
    finished(f"stages.dpo.train={train}", until="dpo")
    (events,) = finished.store.root.glob(".runs/*/tensorboard/dpo/events.*")
    assert b"train/loss" in events.read_bytes()


def test_a_run_whose_libraries_cannot_be_loaded_ends_its_journal(
    fresh: Any, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_process() -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    opened: list[Any] = []

    class Kept(KeptJournal):
        def __init__(self, run_dir: Path) -> None:
            super().__init__(run_dir)
            opened.append(self._file)

    monkeypatch.setattr("pipeline.run.runner.Journal", Kept)
    monkeypatch.setattr("pipeline.run.runner.warm_up", no_process)
    with pytest.raises(OSError, match="Resource temporarily unavailable"):
        fresh()
    assert [event["event"] for event in journal(fresh.store.root)] == ["run_started", "run_ended"]
    assert [file.closed for file in opened] == [True]


def test_the_folder_of_a_run_is_one_folder_and_never_waited_for(tmp_path: Path) -> None:
    assert new_run_dir(tmp_path / "runs", "a/../../b").parent == tmp_path / "runs"
    (tmp_path / "gone").symlink_to(tmp_path / "not mounted")  # trying the next number would go on for ever
    with pytest.raises(FileExistsError):
        new_run_dir(tmp_path / "gone", "a")
