"""A base model without a chat template goes on with plain text in every stage, and learns from just what it sampled."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from storyteller import PROMPTS, llama_tokenizer, save_storyteller

from pipeline.artifacts import Store
from pipeline.errors import PipelineError
from pipeline.models.generate.continuation import decoded_response
from pipeline.plan import make_plan
from pipeline.preflight import check_plan
from pipeline.recipe import DataSource, load
from pipeline.records.loading import load as load_rows
from pipeline.records.shapes.plain import mark_of
from pipeline.stage import ResolvedInput
from pipeline.stages.collect.run import _marked

STORIES = Path(os.environ.get("TRUEUP_REAL_MODELS") or Path(__file__).parents[3] / "shared" / "models") / "stories260K"
REWARDS = """
import json

def spaced(completions, **columns):
    texts = [one[-1]["content"] for one in completions]
    with open({file!r}, "a") as told:
        told.writelines(json.dumps(text) + "\\n" for text in texts)
    return [float(len(text)) + text.count("a") for text in texts]
"""


@pytest.fixture(scope="module")
def storyteller(tmp_path_factory: pytest.TempPathFactory) -> ResolvedInput:
    folder = save_storyteller(tmp_path_factory.mktemp("storyteller"))
    return ResolvedInput(ref="base", name="base", kind="external", fingerprint="f" * 64, path=str(folder))


@pytest.fixture
def told(tmp_path: Path) -> Callable[[], list[str]]:
    """Write the reward function; return what it was called with."""
    file = tmp_path / "told.jsonl"
    (tmp_path / "rewards.py").write_text(REWARDS.format(file=str(file)))
    return lambda: [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def prompts(tmp_path: Path, write_jsonl: Any) -> Path:
    return Path(write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS]))


def _tokens(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("words", [" a cat.", "s red", "\n\nTom saw", ""])
def test_prompt_and_response_together_are_the_sampled_tokens(words: str) -> None:
    tokenizer = llama_tokenizer()
    prompt = _tokens(tokenizer, PROMPTS[0])
    ids = _tokens(tokenizer, PROMPTS[0] + words)[len(prompt) :]
    assert decoded_response([*ids, 2], prompt, tokenizer) == words
    tokenizer.chat_template = "{{ messages }}"
    assert decoded_response([*ids, 2], prompt, tokenizer) == words.strip()  # the template has text of its own between


def test_what_is_sampled_is_judged_chosen_and_learnt_as_plain_text(
    run_stage: Any, storyteller: ResolvedInput, prompts: Path, told: Any, read_rows: Any
) -> None:
    sampled = run_stage("sample", {"n": 4, "max_new_tokens": 8}, data={"data": prompts}, inputs={"models": storyteller})
    rows = read_rows(sampled.out / "candidates.jsonl")
    texts = [one["text"] for row in rows for one in row["candidates"]]
    assert any(text.startswith(" ") for text in texts)
    assert all(mark_of(row) for name in ("candidates", "pairs") for row in read_rows(sampled.out / f"{name}.jsonl"))
    candidates = sampled.out / "candidates.jsonl"
    judged = run_stage("judge", {"function": "rewards.py:spaced", "pairs_per_prompt": 0}, data={"data": candidates})
    best = run_stage("best_of_n", {"reward_functions": ["rewards.py:spaced"]}, data={"data": candidates})
    assert set(told()) <= set(texts)
    train = {"train": {"max_steps": 1, "batch_size": 4}}
    for kind, file in (
        ("dpo", judged.out / "preferences.jsonl"),
        ("dpo", best.out / "pairs.jsonl"),
        ("sft", best.out / "demos.jsonl"),
        ("dpo", sampled.out / "pairs.jsonl"),
    ):
        assert all(mark_of(row) for row in read_rows(file)), file.name
        run_stage(kind, train, data={"data": file}, inputs={"model": storyteller})  # fails without a chat template
    demos = load_rows(DataSource(path=str(best.out / "demos.jsonl")), "messages", seed=0, name="demos").train
    lengths = {row["prompt"][0]["content"]: max(len(one["text"]) for one in row["candidates"]) for row in rows}
    for demo in demos:
        asked, said = (turn["content"] for turn in demo["messages"])
        assert said in texts and len(said) >= lengths[asked] - 8


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_functions_of_on_policy_stages_get_the_space_before_the_first_word(
    run_stage: Any, storyteller: ResolvedInput, prompts: Path, told: Any, kind: str
) -> None:
    ppo = {"iterations": 1, "rollout_batch": 64, "max_new_tokens": 8, "missing_eos_penalty": 0}
    grpo = {"max_steps": 1, "batch_size": 8, "num_generations": 4, "max_new_tokens": 8}
    config = {"reward_functions": ["rewards.py:spaced"], "train": ppo if kind == "ppo" else grpo}
    run_stage(kind, config, data={"data": prompts}, inputs={"model": storyteller})
    assert any(text.startswith(" ") for text in told())


def test_an_evaluation_scores_and_shows_the_text_that_follows_the_prompt(
    run_stage: Any, storyteller: ResolvedInput, prompts: Path, told: Any, read_rows: Any
) -> None:
    config = {"baseline": "base", "greedy": [], "gold": "rewards.py:spaced", "max_new_tokens": 8, "resamples": 100}
    other = storyteller.model_copy(update={"name": "other", "ref": "other", "fingerprint": "e" * 64})
    config["models"] = ["base", "other"]
    ran = run_stage("evaluate", config, data={"data": prompts}, inputs={"models": [storyteller, other]})
    shown = [one["text"] for row in read_rows(ran.out / "samples.jsonl") for one in row["answers"].values()]
    assert sorted(told()) == sorted(shown) and any(text.startswith(" ") for text in shown)


def test_the_mark_is_read_again_and_only_where_it_means_something(tmp_path: Path, write_jsonl: Any) -> None:
    turns = [{"role": "user", "content": "Once"}, {"role": "assistant", "content": " there"}]
    rows = [{"messages": turns, "plain_text": mark} for mark in (True, "yes", False)]
    source = DataSource(path=str(write_jsonl(tmp_path / "demos.jsonl", rows)))
    read = load_rows(source, "messages", seed=0, name="demos").train
    assert [row.get("plain_text") for row in read] == [True, None, None]
    spoken = source.model_copy(update={"system": "Be brief."})
    assert not any(mark_of(row) for row in load_rows(spoken, "messages", seed=0, name="demos").train)


def test_labels_of_people_keep_the_mark(tmp_path: Path, write_jsonl: Any) -> None:
    talk = [[{"role": "user", "content": "Hello"}], [{"role": "assistant", "content": "Hi."}]]
    pairs = [
        {"prompt": "Once", "chosen": " a cat", "rejected": " a dog"},
        {"prompt": talk[0], "chosen": talk[1], "rejected": [{"role": "assistant", "content": "No."}]},
    ]
    file = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    rows = load_rows(DataSource(path=str(file)), "preference", seed=0, name="pairs")
    written = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows.train]
    assert [mark_of(row) for row in _marked(written, rows)] == [{"plain_text": True}, {}]
    assert list(_marked(written, None)) == written  # of live dialogues


@pytest.mark.parametrize(
    ("kind", "options", "refused"),
    [("dpo", {}, False), ("sft", {"format": "messages"}, True), ("pretrain", {"format": "messages"}, False)],
)
def test_a_model_without_a_template_is_refused_for_conversations_only(
    tmp_path: Path, storyteller: ResolvedInput, write_jsonl: Any, kind: str, options: dict[str, Any], refused: bool
) -> None:
    row = {"prompt": "Once", "chosen": " there was a cat.", "rejected": " there was a dog."}
    if options:
        turns = [{"role": "user", "content": "Once"}, {"role": "assistant", "content": " there was a cat."}]
        row = {"messages": turns}
    file = write_jsonl(tmp_path / "rows.jsonl", [row, {**row, "note": 1}])
    field = "init" if kind == "pretrain" else "model"
    stage = {"kind": kind, "data": "rows", field: storyteller.path, "train": {"max_steps": 1, "batch_size": 1}}
    recipe = {"name": "plain", "data": {"rows": {"path": str(file), **options}}, "stages": {"made": stage}}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    store = Store(tmp_path / "store")
    plan = make_plan(load(path), store)
    if refused:
        with pytest.raises(PipelineError, match="has no chat template; expected one, to render conversations"):
            check_plan(plan, store)
    else:
        check_plan(plan, store)


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"no model at {STORIES}: set TRUEUP_REAL_MODELS to a folder with it")
def test_a_story_model_learns_the_tokens_that_it_sampled(run_stage: Any, prompts: Path, read_rows: Any) -> None:
    from transformers import AutoTokenizer

    base = ResolvedInput(ref="base", name="base", kind="external", fingerprint="f" * 64, path=str(STORIES))
    ran = run_stage("sample", {"n": 2, "max_new_tokens": 12}, data={"data": prompts}, inputs={"models": base})
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    for row in read_rows(ran.out / "candidates.jsonl"):
        asked = row["prompt"][0]["content"]
        for one in row["candidates"]:
            assert one["text"].startswith(" ")
            assert len(_tokens(tokenizer, asked + one["text"])) == len(_tokens(tokenizer, asked)) + one["tokens"]
