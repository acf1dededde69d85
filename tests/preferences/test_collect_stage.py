"""A run waits for people, says so, and goes on with what they said."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pipeline.preferences.anchors import default_url
from pipeline.preferences.items import items_of
from pipeline.preferences.label_queue import LabelQueue
from pipeline.preferences.labels import Batch
from pipeline.preferences.ledger import Ledger
from pipeline.recipe import load as load_recipe
from pipeline.records.loading import load


def _label_all(people: Path, store: Path, **how: Any) -> None:
    source = load_recipe(people).data["answers"]
    items, _ = items_of(load(source, "preference", seed=0, name="answers").train)
    queue = LabelQueue(Batch(items, **how), Ledger(default_url(store), "labels"))
    for who in ("ada", "grace", "mary"):
        while handed := queue.next(who):
            shown = handed[0]
            side = "left" if shown["left"][0]["content"].startswith("right") else "right"
            queue.label(who, shown["item"], side, 2, 1.0)


def test_a_run_waits_for_people_and_then_goes_on(people: Path, call: Any) -> None:
    store = people.parent / "store"
    waiting = call("run", people, "--store", store, cwd=people.parent)
    assert waiting.returncode == 3, waiting.stdout + waiting.stderr
    assert "waiting for people: 0 of 6 labels" in waiting.stderr and "trueup collect" in waiting.stderr
    _label_all(people, store)
    done = call("run", people, "--store", store, cwd=people.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    (artifact,) = (store / "labels").iterdir()
    rows = [json.loads(line) for line in (artifact / "preferences.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert all(row["chosen"][0]["content"].startswith("right") and row["margin"] == 2 for row in rows)
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["metrics"]["pairs"] == 6 and manifest["runtime"]["ran"]["ledger"]["event"] > 6


def test_labels_after_the_artifact_are_told_and_a_forced_run_takes_them(people: Path, call: Any) -> None:
    store = people.parent / "store"
    _label_all(people, store)
    assert call("run", people, "--store", store, cwd=people.parent).returncode == 0
    assert "newer labels" not in call("ls", "--store", store, cwd=people.parent).stdout
    source = load_recipe(people).data["answers"]
    items, _ = items_of(load(source, "preference", seed=0, name="answers").train)
    queue = LabelQueue(Batch(items), Ledger(default_url(store), "labels"))
    undone = queue.undo("ada")
    told = call("ls", "--store", store, cwd=people.parent).stdout
    assert "newer labels: people answered or took back 1 time since labels@v1 was made" in told
    assert "--force labels" in told
    assert undone is not None
    queue.label("ada", undone, "tie", 1, 1.0)
    forced = call("run", people, "--store", store, "--force", "labels", cwd=people.parent)
    assert forced.returncode == 0, forced.stderr
    assert "5 preferences from 6 labels; no row of 1 tie" in forced.stdout + forced.stderr
    assert "newer labels" not in call("ls", "--store", store, cwd=people.parent).stdout


def test_labels_in_another_ledger_are_newer_too_or_said_not_to_be_asked(people: Path, call: Any) -> None:
    store, url = people.parent / "store", f"sqlite:///{people.parent / 'elsewhere.db'}"
    source = load_recipe(people).data["answers"]
    items, _ = items_of(load(source, "preference", seed=0, name="answers").train)
    queue = LabelQueue(Batch(items), Ledger(url, "labels"))
    while shown := queue.next("ada"):
        queue.label("ada", shown[0]["item"], "left", 1, 1.0)
    recipe = ("run", people, "--store", store, "--set", f"stages.labels.ledger={url}")
    assert call(*recipe, cwd=people.parent).returncode == 0
    queue.undo("ada")
    assert "newer labels: people answered or took back 1 time" in call("ls", "--store", store, cwd=people.parent).stdout
    manifest = next((store / "labels").iterdir()) / "manifest.json"
    manifest.write_text(manifest.read_text().replace(url, "postgresql+psycopg://me@host/labels"))
    told = call("ls", "--store", store, cwd=people.parent).stdout
    assert "labels@v1 are in postgresql+psycopg://me@host/labels, which is not asked for newer ones" in told


def test_what_was_not_compared_and_what_has_not_happened_is_said(people: Path, call: Any) -> None:
    store = people.parent / "store"
    _label_all(people, store)
    told = call("labels", "verify", people, "labels", "--store", store, cwd=people.parent)
    assert told.returncode == 0 and "an end that was cut off would not show" in told.stdout
    ledger = Ledger(default_url(store), "labels")
    last = ledger.last()
    assert last is not None
    for what in ("status", "export", "stats", "agreement"):
        late = ("labels", what, people, "labels", "--store", store, "--until-event", last.number + 1)
        refused = call(*late, cwd=people.parent)
        assert refused.returncode == 2 and f"the last event is {last.number}" in refused.stderr
    (store / ".labels" / "anchors.jsonl").write_text("garbled\n")
    told = call("labels", "verify", people, "labels", "--store", store, cwd=people.parent)
    assert "line 1 of anchors.jsonl is no note of a head" in told.stdout


def test_a_closed_batch_goes_on_with_the_labels_it_has(people: Path, call: Any) -> None:
    store = people.parent / "store"
    source = load_recipe(people).data["answers"]
    items, _ = items_of(load(source, "preference", seed=0, name="answers").train)
    queue = LabelQueue(Batch(items), Ledger(default_url(store), "labels"))
    for _ in range(2):
        queue.label("ada", queue.next("ada")[0]["item"], "left", 1, 1.0)
    line = ("labels", "close", people, "labels", "--store", store)
    assert "closed with 2 labels" in call(*line, cwd=people.parent).stdout
    assert "open again: 2 of 6 labels" in call(*line, "--reopen", cwd=people.parent).stdout
    waiting = call("run", people, "--store", store, cwd=people.parent)
    assert waiting.returncode == 3 and "trueup labels close RECIPE labels" in waiting.stderr
    call(*line, cwd=people.parent)
    done = call("run", people, "--store", store, cwd=people.parent)
    assert done.returncode == 0 and "2 preferences from 2 labels; no row of 4 unlabelled" in done.stdout + done.stderr


def test_pairs_that_nobody_here_can_complete_are_told_and_dropped(people: Path, call: Any) -> None:
    """Three labels a pair are wanted of two people; and one of them skips a pair."""
    store = people.parent / "store"
    three = ("--set", "stages.labels.labels_per_item=3")
    source = load_recipe(people).data["answers"]
    items, _ = items_of(load(source, "preference", seed=0, name="answers").train)
    queue = LabelQueue(Batch(items, per_item=3), Ledger(default_url(store), "labels"))
    for who in ("ada", "grace"):
        queue.invite(who)
    line = (people, "labels", "--store", store, *three)
    told = call("labels", "status", *line, cwd=people.parent).stdout
    assert "6 pairs want labels that nobody here can give" in told and "labels drop --stuck" in told
    state = json.loads(call("labels", "status", *line, "--json", cwd=people.parent).stdout)
    assert state["stuck"][0] == {"item": items[0].id, "missing": 3, "people": 2}
    assert (
        "1 pair dropped" in call("labels", "drop", *line, items[0].id, "--reason", "unclear", cwd=people.parent).stdout
    )
    assert "5 pairs dropped; 0 of 0 labels" in call("labels", "drop", *line, "--stuck", cwd=people.parent).stdout
    wrong = call("labels", "drop", *line, "abc", cwd=people.parent)
    assert wrong.returncode == 2 and "no pair of this batch is abc" in wrong.stderr


def test_verify_finds_an_end_that_was_cut_off(people: Path, call: Any) -> None:
    store = people.parent / "store"
    _label_all(people, store)
    assert call("run", people, "--store", store, cwd=people.parent).returncode == 0
    verify = ("labels", "verify", people, "labels", "--store", store)
    whole = call(*verify, cwd=people.parent)
    assert whole.returncode == 0 and "2 notes of earlier heads agree" in whole.stdout, whole.stdout
    with sqlite3.connect(store / ".labels" / "ledger.db") as connection:
        connection.execute("DELETE FROM trueup_events WHERE number = (SELECT max(number) FROM trueup_events)")
    cut = call(*verify, cwd=people.parent)
    assert cut.returncode == 1
    assert "is missing: line 1 of anchors.jsonl notes it" in cut.stdout
    assert "is missing: the manifest of labels@v1 notes it" in cut.stdout


def test_pairs_of_people_are_what_the_next_stage_trains_on(chain: Any, people: Path, call: Any) -> None:
    store = people.parent / "store"
    next_stage = f"""
  rm: {{kind: reward, data: pairs, model: {chain["sft"].path}, train: {{max_steps: 1, batch_size: 4}}}}
compute: {{threads: 1}}
"""
    people.write_text(people.read_text().rstrip() + next_stage)
    _label_all(people, store)
    done = call("run", people, "--store", store, cwd=people.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "training on 6 pairs" in done.stdout + done.stderr


WRONG = {
    "another kind": (("collect", "tokenizer"), "`tokenizer` is a tokenizer stage"),
    "no such stage": (("collect", "nothing"), "no stage `nothing`"),
    "nobody": (("collect", "labels"), "nobody is to label"),
    "no such word": (("labels", "sing", "labels"), "labels sing; expected one of status"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_collected_is_one_line(people: Path, call: Any, case: str) -> None:
    words, told = WRONG[case]
    people.write_text(people.read_text() + "  tokenizer: {kind: tokenizer, data: answers, vocab_size: 300}\n")
    *before, stage = words
    ended = call(*before, people, stage, cwd=people.parent)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert told in ended.stderr and len(ended.stderr.strip().splitlines()) == 1


def test_the_items_follow_the_data(people: Path, call: Any) -> None:
    """What is kept of the data is not used any more once the data has changed."""
    line = ("labels", "status", people, "labels", "--store", people.parent / "store")
    for _ in range(2):
        assert "0 of 6 labels of 6 pairs" in call(*line, cwd=people.parent).stdout
    rows = (people.parent / "answers.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (people.parent / "answers.jsonl").write_text("".join(rows[:4]), encoding="utf-8")
    assert "0 of 4 labels of 4 pairs" in call(*line, cwd=people.parent).stdout


def test_agreement_is_shown_where_pairs_are_labelled_several_times(people: Path, call: Any) -> None:
    store = people.parent / "store"
    several = ("--set", "stages.labels.labels_per_item=2")
    few = call("labels", "agreement", people, "labels", "--store", store, cwd=people.parent)
    assert "no pair has two labels" in few.stdout
    _label_all(people, store, per_item=2)
    ended = call("labels", "agreement", people, "labels", "--store", store, *several, cwd=people.parent)
    assert "of 6 comparisons agree, on 6 pairs" in ended.stdout
    line = ("labels", "agreement", people, "labels", "--store", store, *several, "--json")
    plain = json.loads(call(*line, cwd=people.parent).stdout)
    assert (plain["pairs"], plain["compared"], plain["same"]) == (6, 6, 6)
    told = call("labels", "stats", people, "labels", "--store", store, *several, cwd=people.parent).stdout
    assert "12 labels of 2 people" in told and "equal verdicts: 100%" in told
    plain = json.loads(
        call("labels", "stats", people, "labels", "--store", store, *several, "--json", cwd=people.parent).stdout
    )
    assert set(plain["people"]) == {"ada", "grace"} and plain["people"]["ada"]["labels"] == 6
    assert plain["pairs"] == [{"first": "ada", "second": "grace", "items": 6, "same": 1.0, "kappa": None}]
    # Six votes are enough for a test; both people say the same, so nobody is unlike the rest.
    assert plain["people"]["ada"]["anomaly"]["votes"] == 6 and plain["people"]["ada"]["look_at"] == []
    assert "look at" in told


def test_candidates_are_paired_and_labelled(tmp_path: Path, call: Any, write_jsonl: Any) -> None:
    answers = [{"text": text} for text in ("right", "wrong", "worse")]
    rows = [{"prompt": f"question {n}", "candidates": answers} for n in range(5)]
    write_jsonl(tmp_path / "answers.jsonl", [*rows, {"prompt": "question 5", "candidates": answers[:1]}])
    recipe = tmp_path / "people.yaml"
    recipe.write_text(
        "name: people\ndata:\n  answers: {path: answers.jsonl}\n"
        "stages:\n  labels: {kind: labels, data: answers, pairs_per_prompt: 2}\n"
    )
    waiting = call("run", recipe, "--store", "store", cwd=tmp_path)
    assert waiting.returncode == 3, waiting.stdout + waiting.stderr
    assert "waiting for people: 0 of 10 labels" in waiting.stderr  # two of three pairs of each of five prompts
    assert "1 prompt has no two different answers to compare" in waiting.stdout + waiting.stderr
    told = json.loads(call("labels", "status", recipe, "labels", "--store", "store", "--json", cwd=tmp_path).stdout)
    assert told["pairs"] == 10  # the app's pairs are the stage's
    wrong = call("check", recipe, "--set", "stages.labels.pair_choice=delta", "--store", "store", cwd=tmp_path)
    assert wrong.returncode == 0  # what the rows hold is known when they are read
    refused = call("run", recipe, "--set", "stages.labels.pair_choice=delta", "--store", "store", cwd=tmp_path)
    assert refused.returncode == 2 and "the candidates of “question 0” have no scores" in refused.stderr


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("status", "--ties"), "labels status does not read --ties; expected labels export"),
        (
            ("verify", "--until-event", "3"),
            "labels verify does not read --until-event; expected labels status or agree",
        ),
        (("close", "3f2a"), "labels close does not read 3f2a; expected labels import or drop"),
        (("export", "--reason", "x"), "labels export does not read --reason; expected labels drop"),
    ],
)
def test_what_a_word_does_not_read_is_refused(typed: tuple[str, ...], said: str, tmp_path: Path, call: Any) -> None:
    told = call("labels", typed[0], "people.yaml", "labels", *typed[1:], cwd=tmp_path)
    assert told.returncode == 2 and said in told.stderr
