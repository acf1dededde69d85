"""Rows, tokenizer and template meet in `check`: what fits and what cannot be rendered, as the run counts it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.preflight import CheckReport
from pipeline.preflight.checks import tokens
from pipeline.preflight.checks.tokens import StageTokens
from pipeline.training.data.token_counts import TokenCount

REFUSES_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ m['role'] }}: {{ m['content'] }}{{ eos_token if m['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def of_stage(report: CheckReport, stage: str) -> StageTokens:
    (stage_tokens,) = [one for one in report.tokens if one.use.stage == stage]
    return stage_tokens


@pytest.fixture
def world(finished: Any) -> Any:
    """A recipe whose stages start from a finished model; ten of its conversations have a system turn."""
    folder = finished.recipe.parent
    rows = [json.loads(line) for line in (folder / "demos.jsonl").read_text().splitlines()]
    system = {"role": "system", "content": "Be kind."}
    mixed = [{"messages": [system, *row["messages"]]} if i % 24 == 0 else row for i, row in enumerate(rows)]
    (folder / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    text = finished.recipe.read_text().replace("data:\n", "data:\n  mixed: {path: mixed.jsonl}\n", 1)
    more = """stages:
  tune: {kind: sft, data: mixed, model: sft, train: {max_steps: 1, batch_size: 4}}
  prefer: {kind: dpo, data: pairs, model: sft, train: {max_steps: 1, batch_size: 4, max_length: 24}}
  judge: {kind: kto, data: pairs, model: sft, train: {max_steps: 1, batch_size: 4, kl_batch: 4, max_length: 24}}
"""
    finished.recipe.write_text(text.replace("stages:\n", more, 1))
    return finished


def test_what_does_not_fit_is_counted_as_the_run_counts_it(world: Any) -> None:
    report = world.check()
    prefer = of_stage(report, "prefer")
    assert prefer.max_length == 24 and 0 < prefer.count.too_long < prefer.count.rows
    assert prefer.count.train + prefer.count.held_out == prefer.count.rows - prefer.count.too_long
    assert any(f"{prefer.count.too_long} of {prefer.count.rows} rows of pairs" in note for note in prefer.notes)
    world("stages.judge.train.max_length=24", only=["prefer"])
    made = world.store.artifacts("prefer")[0].manifest.rows
    assert made["train"] - made["dropped"] == prefer.count.train


FURTHER = """stages:
  read: {kind: pretrain, data: rendered, init: sft, train: {max_steps: 1, batch_size: 2}}
  judge_more: {kind: reward, data: pairs, test: pairs_test, model: sft, train: {max_steps: 1, max_length: 24}}
  play:
    kind: ppo
    data: asks
    model: sft
    reward: rm
    ptx_data: mixed
    train: {ptx_coef: 0.1, ptx_batch: 2, iterations: 1, max_new_tokens: 4}
  ask: {kind: evaluate, data: asks, models: [sft], baseline: sft, reward: rm, resamples: 100, max_new_tokens: 60}
"""


def test_every_field_of_rows_meets_its_tokenizer(world: Any) -> None:
    """Test pairs of a reward model, conversations beside PPO, texts of pretraining, prompts to evaluate."""
    folder = world.recipe.parent
    (folder / "rendered.jsonl").write_text('{"text": "<|user|> hi <|end|>"}\n{"text": "a cat"}\n')
    text = world.recipe.read_text().replace("data:\n", "data:\n  rendered: {path: rendered.jsonl}\n", 1)
    world.recipe.write_text(text.replace("stages:\n", FURTHER, 1))
    report = world.check("data.mixed.on_bad_row=skip")
    told = {(one.use.stage, one.use.field): one for one in report.tokens}
    tested, beside = told["judge_more", "test"], told["play", "ptx_data"]
    assert tested.max_length == 24 and 0 < tested.count.too_long < tested.count.rows == 60
    assert beside.max_length == 64 and (beside.count.rows, beside.count.too_long) == (240, 0)
    texts, asked = told["read", "data"], told["ask", "data"]
    assert texts.count.spelled == 1
    (said,) = texts.notes
    assert said.startswith("stage read: 1 of 2 rows of rendered spells a control token; there it is text. If they are")
    assert asked.max_length == 63 and asked.count.short_of_room == asked.count.rows > 0
    assert "leave less room than `max_new_tokens`" in " ".join(asked.notes)
    # The run says the same of each.
    world("data.mixed.on_bad_row=skip", only=["judge_more", "read"])
    journal = max(world.store.root.glob(".runs/*/journal.jsonl"))
    noted = journal.read_text(encoding="utf-8")
    assert f"{tested.count.too_long} of 60 pairs to test are longer than 24 tokens" in noted


def test_prompts_meet_the_tokenizer_of_a_reward_model_too(world: Any) -> None:
    """The judge's own template refuses system turns; the policy's does not."""
    folder = world.recipe.parent
    shutil.copytree(world.store.artifacts("rm")[0].path, folder / "judge")
    (folder / "judge" / "chat_template.jinja").write_text(REFUSES_SYSTEM)
    asks = [{"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]}] + [
        {"prompt": [{"role": "user", "content": f"which colour has {thing} ?"}]} for thing in ("cat", "dog", "sun")
    ]
    (folder / "system.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asks))
    text = world.recipe.read_text().replace("data:\n", "data:\n  system: {path: system.jsonl}\n", 1)
    stage = (
        "  play: {kind: ppo, data: system, model: sft, reward: ./judge, train: {iterations: 1, max_new_tokens: 4}}\n"
    )
    world.recipe.write_text(text.replace("stages:\n", f"stages:\n{stage}", 1))
    (problem,) = [one for one in world.problems() if one.stage == "play"]
    assert problem.where.endswith("system.jsonl:1")
    assert problem.found.endswith("System role not supported (reward model `./judge`)")
    report = world.check("data.system.on_bad_row=skip")
    assert (of_stage(report, "play").count.unrendered, of_stage(report, "play").count.train) == (1, 3)


def test_no_pair_that_fits_is_refused_with_the_words_of_the_run(world: Any) -> None:
    (problem,) = [one for one in world.problems("stages.prefer.train.max_length=4") if one.stage == "prefer"]
    assert problem.found == "no pair fits" and problem.expected == "pairs of at most 4 tokens"


def test_too_few_that_fit_say_how_many_do_not(world: Any) -> None:
    fit = of_stage(world.check(), "prefer").count.train
    asked = ("stages.prefer.train.batch_size=" + str(fit + 1),)
    (problem,) = [one for one in world.problems(*asked) if one.stage == "prefer"]
    assert problem.found.startswith(f"there are {fit} pairs to train on, for ")
    assert "are longer than 24 tokens" in problem.found


def test_a_batch_of_packed_rows_is_counted_in_packed_rows(world: Any) -> None:
    asked = ("stages.tune.train.mode=packed", "stages.tune.train.max_length=64")
    count = of_stage(world.check(*asked), "tune").count
    assert 0 < count.sequences < count.train == 240
    (problem,) = [
        one
        for one in world.problems(*asked, f"stages.tune.train.batch_size={count.sequences + 1}")
        if one.stage == "tune"
    ]
    assert problem.found == f"there are {count.sequences} rows to train on"
    world(*asked, f"stages.tune.train.batch_size={count.sequences}", only=["tune"])  # one batch, as the run packs them


def test_rows_that_a_template_refuses_are_named_by_line_and_can_be_skipped(world: Any) -> None:
    asked = ("stages.tune.chat_template=" + json.dumps(REFUSES_SYSTEM),)
    problems = [one for one in world.problems(*asked) if one.stage == "tune"]
    lines = [one.where.rpartition(":")[2] for one in problems[:10]]
    assert lines == [str(1 + 24 * i) for i in range(10)] and len(problems) == 11
    assert "System role not supported" in problems[0].found
    assert problems[-1].found.startswith("10 of 240 rows cannot be rendered")
    report = world.check(*asked, "data.mixed.on_bad_row=skip")
    assert (of_stage(report, "tune").count.unrendered, of_stage(report, "tune").count.train) == (10, 230)
    world(*asked, "data.mixed.on_bad_row=skip", only=["tune"])
    manifest = world.store.artifacts("tune")[0].manifest
    assert manifest.data["data"].rejected == 10


def test_a_template_that_the_run_would_refuse_is_refused_before_it(world: Any) -> None:
    """It counts the turns at its head, so a prompt is not the beginning of its conversation."""
    template = "{{ messages|length }}{% for m in messages %}{% generation %}{{ m['content'] + '<|end|>' }}"
    template += "{% endgeneration %}{% endfor %}"
    asked = ("stages.tune.chat_template=" + json.dumps(template),)
    (problem,) = [one for one in world.problems(*asked) if one.stage == "tune"]
    assert problem.found == "the chat template renders a prompt differently once the answer follows"


def test_a_stage_is_checked_with_the_tokenizer_that_its_chain_starts_from(world: Any) -> None:
    text = world.recipe.read_text()
    later = "  later: {kind: dpo, data: pairs, model: tune, train: {max_steps: 1, batch_size: 4}}\n"
    world.recipe.write_text(text.replace("stages:\n", f"stages:\n{later}", 1))
    assert of_stage(world.check(), "later").tokenizer == "sft"  # `tune` is to be made from it


def test_what_was_encoded_is_remembered_and_a_change_is_seen(world: Any) -> None:
    first = world.check()
    file = world.store.root / ".cache" / tokens.REMEMBERED_FILE
    content = file.read_text()
    assert world.check().tokens == first.tokens and file.read_text() == content
    world.check("stages.prefer.train.max_length=25")
    assert len(json.loads(file.read_text())) == len(json.loads(content)) + 1


def test_another_process_counts_the_same(world: Any) -> None:
    here = world.check()
    shutil.rmtree(world.store.root / ".cache")
    asked = ["check", str(world.recipe), "--store", str(world.store.root), "--json"]
    line = [sys.executable, "-m", "pipeline.cli", *asked]
    done = subprocess.run(line, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr
    told = {one["stage"]: one for one in json.loads(done.stdout)["tokens"]}
    for one in here.tokens:
        count: TokenCount = one.count
        mine = (count.rows, count.train, count.held_out, count.too_long)
        theirs = told[one.use.stage]
        assert mine == (theirs["rows"], theirs["train"], theirs["held_out"], theirs["too_long"])


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_told_or_refused(world: Any) -> None:
    """The run says the same and makes the rows; where weights lie in several processes it cannot."""
    folder = world.recipe.parent / "larger"
    shutil.copytree(world.store.artifacts("sft")[0].path, folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    added = {**tokenizer["added_tokens"][-1], "id": rows, "content": "<|more|>"}
    file.write_text(json.dumps({**tokenizer, "added_tokens": [*tokenizer["added_tokens"], added]}))
    asked = ("stages.tune.model=./larger",)
    grows = f"the embedding grows from {rows} rows to {rows + 1}, one for each token; the new ones are the mean"
    notes = [note for note in world.check(*asked).notes if "embedding" in note]
    assert notes == [f"stage tune: larger: {grows}"]
    (problem,) = world.problems(*asked, "stages.tune.compute={processes: 2, zero: 3}")
    assert problem.found == f"the tokenizer has {rows + 1} tokens and the model's embedding {rows} rows"
    world(*asked, only=["tune"])  # the remedy: one process
    made = world.store.artifacts("tune")[0]
    assert json.loads((made.path / "config.json").read_text())["vocab_size"] == rows + 1
