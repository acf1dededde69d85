"""Evaluated on prompts that a model learnt from: said by `check`, whatever the file is called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from pipeline.artifacts import Artifact, Store
from pipeline.plan import make_plan
from pipeline.plan.overlap import PromptIndex, _shared, _Source, overlap_warnings
from pipeline.recipe import DataSource, load
from pipeline.records import digest
from pipeline.stages import load_all

Trueup = Callable[..., Result]
WriteJsonl = Callable[[Path, list[dict[str, Any]]], Path]

RECIPE = """
data:
  corpus: {{path: corpus.jsonl}}
  demos: {demos}
  pairs: {{path: pairs.jsonl}}
  asks: {asks}
stages:
  tokenizer: {{kind: tokenizer, data: corpus, vocab_size: 300}}
  base:
    kind: pretrain
    data: corpus
    tokenizer: tokenizer
    model: {{type: llama, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16}}
    train: {{max_steps: 1}}
  sft: {{kind: sft, data: demos, model: base, train: {{batch_size: 1}}}}
  rm: {{kind: reward, data: pairs, test: {test}, model: sft, train: {{batch_size: 1}}}}
  dpo: {{kind: dpo, data: pairs, model: sft, train: {{batch_size: 1}}}}
  report: {{kind: evaluate, data: asks, models: [{models}], baseline: {baseline}, reward: rm}}
"""
WHAT = "Figures on them say what was remembered."


@pytest.fixture
def check(tmp_path: Path, trueup: Trueup, write_jsonl: WriteJsonl) -> Callable[..., list[str]]:
    """Check a chain in which sft learns from ten demonstrations, rm and dpo from ten pairs; return the notes on it."""
    write_jsonl(tmp_path / "corpus.jsonl", [{"text": f"text number {i} of the corpus"} for i in range(20)])
    turns = [
        [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"Answer {i}."}]
        for i in range(10)
    ]
    write_jsonl(tmp_path / "demos.jsonl", [{"messages": both} for both in turns])
    pair = {"chosen": "Gladly.", "rejected": "No."}
    write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": f"Wish {i}?", **pair} for i in range(10)])
    write_jsonl(tmp_path / "asks.jsonl", [{"prompt": f"Other {i}?"} for i in range(10)])

    def run(**changes: str) -> list[str]:
        fields = {"demos": "{path: demos.jsonl}", "asks": "{path: asks.jsonl}", "test": "pairs", "models": "sft, dpo"}
        (tmp_path / "chain.yaml").write_text(RECIPE.format(**{**fields, "baseline": "sft", **changes}))
        told = trueup("check", "chain.yaml")
        assert told.exit_code == 0, told.output
        lines = told.stdout.splitlines()
        assert lines[-1].endswith(": no problems")
        note = "note: stage report: "
        return [line.removeprefix(note) for line in lines if line.startswith(note)]

    return run


def test_parts_that_do_not_meet_share_no_prompts(check: Callable[..., list[str]]) -> None:
    learnt = "{path: demos.jsonl, part: [0.5, 1.0]}"
    assert check(demos=learnt, asks="{path: demos.jsonl, part: [0.0, 0.5]}") == []
    assert check(demos=learnt, asks="{path: demos.jsonl, part: [0.3, 1.0]}")[0].partition(" of ")[0].isdigit()


def test_prompts_of_its_own_are_no_note(check: Callable[..., list[str]]) -> None:
    assert check() == []


def test_the_source_of_an_ancestor(check: Callable[..., list[str]]) -> None:
    told = check(asks="{path: demos.jsonl}")
    assert len(told) == 1
    assert told[0].startswith(
        "10 of 10 prompts of asks are ones that sft learnt from (its source demos); dpo, rm stand on it. " + WHAT
    )
    told = check(asks="{path: demos.jsonl}", models="dpo", baseline="dpo")
    assert "(its source demos); dpo, rm stand on it." in told[0]


def test_the_same_prompts_under_another_file_and_in_other_rows(
    check: Callable[..., list[str]], tmp_path: Path, write_jsonl: WriteJsonl
) -> None:
    # Four of the twelve: other columns, other white space and case, another answer.
    rows = [{"prompt": f" question  {i}?", "task": "copy"} for i in range(4)]
    write_jsonl(tmp_path / "mine.jsonl", [*rows, *({"prompt": f"New {i}?"} for i in range(8))])
    told = check(asks="{path: mine.jsonl}")
    assert [line.partition(";")[0] for line in told] == [
        "4 of 12 prompts of asks are ones that sft learnt from (its source demos)"
    ]
    told = check(asks="{path: pairs.jsonl}")
    assert sorted(line.partition(". Figures")[0] for line in told) == [
        f"10 of 10 prompts of asks are ones that {name} learnt from (its source pairs)" for name in ("dpo", "rm")
    ]


def test_what_both_hold_out_was_not_learnt(check: Callable[..., list[str]]) -> None:
    held = "{path: demos.jsonl, held_out: 0.4}"
    assert check(demos=held, asks=held) == []
    # Held out of the evaluation alone: the model learnt from all.
    assert len(check(asks=held)) == 1
    # A smaller share held out from training: the rest of the evaluation's was learnt from.
    assert len(check(demos="{path: demos.jsonl, held_out: 0.1}", asks="{path: demos.jsonl, held_out: 0.7}")) == 1


def test_test_pairs_are_not_learnt_from(check: Callable[..., list[str]], tmp_path: Path) -> None:
    lines = (tmp_path / "pairs.jsonl").read_text()
    (tmp_path / "asks.jsonl").write_text(lines.replace("Wish", "Other"))
    assert check(test="asks") == []


def test_an_index_that_a_lost_disk_emptied_is_made_again(check: Callable[..., list[str]], tmp_path: Path) -> None:
    said = check(asks="{path: demos.jsonl}")
    kept = [file for file in tmp_path.rglob(".cache/prompts/*") if file.is_file()]
    assert kept and said
    for file in kept:
        file.write_bytes(b"")
    assert check(asks="{path: demos.jsonl}") == said


def test_the_first_rows_of_a_file_are_no_sample(check: Callable[..., list[str]]) -> None:
    assert check(asks="{path: asks.jsonl, limit: 3}") == [
        "data.asks.limit takes the first 3 rows as they lie in the file; `limit` of the stage draws a sample of all of "
        "them instead"
    ]


@pytest.mark.parametrize(
    ("asked", "learnt", "is_told"),
    [
        ({"held_out": 0.2}, {"held_out": 0.2}, False),
        ({"held_out": 0.3}, {"held_out": 0.2}, True),
        ({"part": [0.0, 0.2]}, {"held_out": 0.2}, False),
        ({"part": [0.0, 0.3]}, {"held_out": 0.2}, True),
        ({"part": [0.5, 1.0], "held_out": 0.6}, {"part": [0.6, 1.0]}, False),
        ({}, {"part": [0.6, 1.0]}, True),
    ],
)
def test_shares_decide_where_the_rows_are_gone(
    asked: dict[str, Any], learnt: dict[str, Any], is_told: bool, tmp_path: Path
) -> None:
    told, known = (_Source("s", "d", "digest", options, "prompt") for options in (asked, learnt))
    assert _shared(told, known, PromptIndex(Store(tmp_path))) == ((0, 0) if is_told else None)


def test_parts_that_meet_are_told_unless_one_lies_within_the_other(
    check: Callable[..., list[str]], trueup: Trueup
) -> None:
    def told(demos: str, asks: str) -> list[str]:
        check(demos=f"{{path: demos.jsonl, part: {demos}}}", asks=f"{{path: [demos.jsonl], part: {asks}}}")
        return [line for line in trueup("plan", "chain.yaml").stdout.splitlines() if "parts meet" in line]

    assert told("[0.4, 1.0]", "[0.0, 0.5]") == [
        "note: data demos and data asks share the prompts from 0.4 to 0.5: their parts meet there"
    ]
    assert told("[0.5, 1.0]", "[0.0, 0.5]") == told("[0.2, 1.0]", "[0.2, 0.6]") == []


EVALUATION = """
data: {asks: {path: demos.jsonl}}
stages:
  report: {kind: evaluate, data: asks, models: [dpo], baseline: dpo, gold: gold.py:gold}
"""


def test_by_the_manifests_of_the_store(
    tmp_path: Path, commit: Callable[..., Artifact], write_jsonl: WriteJsonl
) -> None:
    # The demonstrations were called otherwise and lie no longer here; their content is that of the prompts.
    load_all()
    rows = [
        {"messages": [{"role": "user", "content": f"Q {i}"}, {"role": "assistant", "content": "A"}]} for i in range(5)
    ]
    source = DataSource(path=str(write_jsonl(tmp_path / "demos.jsonl", rows)))
    content = digest(source, cache=None).digest
    store = Store(tmp_path / "store")

    data = {"data": {"source": "writers", "digest": content, "rows": 5}}
    options = {"digest": content, "format": "auto", "columns": {}, "held_out": 0.0, "limit": None, "system": None}
    config = {"data": {"data": options}}
    sft = commit(store, "sft", "one", {"a": "a"}, kind="sft", makes="model", data=data, config=config)
    parent = {"field": "model", "ref": "sft", "name": "sft", "kind": "sft", "fingerprint": sft.manifest.fingerprint}
    commit(store, "dpo", "one", {"b": "b"}, kind="dpo", makes="model", inputs=[parent])
    (tmp_path / "gold.py").write_text("def gold(completions, **columns):\n    return [0.0] * len(completions)\n")
    (tmp_path / "report.yaml").write_text(EVALUATION)
    plan = make_plan(load(tmp_path / "report.yaml"), store)
    assert overlap_warnings(plan, plan.stages[0], store) == (
        "the prompts of asks are ones that sft learnt from (its source writers); dpo stands on it. "
        "Figures on them say what was remembered. Ask prompts held out from training: `held_out` in both, parts that "
        "do not meet, or another file.",
    )
