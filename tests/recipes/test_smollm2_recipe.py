"""`recipes/smollm2-135m.yaml`: votes do not meet, refusals are counted, and the chain runs with a tiny model."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import Store
from pipeline.cli.scaffold import write_example
from pipeline.plan import make_plan
from pipeline.recipe import Recipe, load, load_function
from pipeline.records import load as load_rows
from pipeline.stages import load_all

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
FILE = FOLDER / "smollm2-135m.yaml"
PAGE = FOLDER.parent / "docs" / "real-models.md"
MODELS = Path(os.environ.get("TRUEUP_REAL_MODELS") or FOLDER.parents[1] / "shared" / "models")
MEASURED = ("sft", "start_loss", "dpo_loss", "ppo_loss")
"""Stages that end with the loss on held-out conversations."""
SMALLER = {
    "data.votes.part": "[0.3, 0.6]",  # the tiny rows are few: each part needs some
    "data.held_votes.part": "[0.0, 0.3]",
    "data.attacks.part": "[0.0, 0.3]",
    "data.demos.held_out": "0.3",
    "compute.precision": "fp32",
    "compute.threads": "1",
    **{f"stages.{name}.train.max_steps": "2" for name in ("sft", "rm", "judge_rm", "dpo")},
    **{f"stages.{name}.train.batch_size": "4" for name in (*MEASURED, "rm", "judge_rm", "dpo")},
    **{f"stages.{name}.train.max_length": "200" for name in (*MEASURED, "rm", "judge_rm", "dpo")},
    **{f"stages.{name}.limit": "4" for name in ("report", "attacked")},
    **{f"stages.{name}.max_new_tokens": "8" for name in ("report", "attacked")},
    "stages.sft.train.eval_steps": "2",
    "stages.ppo.train.iterations": "2",
    "stages.ppo.train.rollout_batch": "4",
    "stages.ppo.train.max_new_tokens": "8",
    "stages.ppo.train.eval_every": "1",
    "stages.ppo.train.eval_prompts": "2",
}

load_all()


@pytest.fixture(scope="module")
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with room for the prompts, and the tokenizer of the real model where its folder can be read."""
    from pipeline.models.load.pretrained import load_tokenizer
    from pipeline.models.load.scratch import build_causal_lm
    from pipeline.models.save.artifact import save_model
    from pipeline.stage import ResolvedInput

    known = MODELS / "smollm2-135m-instruct"
    where = known if known.is_dir() else request.getfixturevalue("chain")["base"].path
    source = ResolvedInput(ref="b", name="b", kind="external", fingerprint="b", path=str(where))
    tokenizer, sizes = load_tokenizer(source), {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    spec = {"type": "llama", "num_attention_heads": 2, "max_position_embeddings": 512, **sizes}
    folder = tmp_path_factory.mktemp("smollm2") / "tiny"
    save_model(build_causal_lm(spec, tokenizer, 1), tokenizer, folder)
    return folder


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_gzip: Any) -> Path:
    """A folder like that of the real rows, with 40 rows in each file."""
    folder = tmp_path / "rows"
    asked = [[{"role": "user", "content": f"What is {number} and {number}?"}] for number in range(40)]
    good, bad = ([{"role": "assistant", "content": text}] for text in ("I will tell you.", "No."))
    pairs = [{"prompt": turns, "chosen": good, "rejected": bad} for turns in asked]
    demos = [{"messages": [*turns, *good]} for turns in asked]
    other = [{"messages": [{"role": "user", "content": f"Tell {number}."}, *good]} for number in range(40)]
    for name, told in (
        ("instruction/oasst1_val_threads.jsonl.gz", demos),
        ("instruction/self_instruct_seed.jsonl.gz", other),
        ("preference/oasst1_val_pairs.jsonl.gz", pairs[:20]),
        ("preference/hh_harmless_a.jsonl.gz", pairs[20:]),
    ):
        write_gzip(folder / name, _lines(told))
    (folder / "eval").mkdir()
    (folder / "eval" / "mt_bench_question.jsonl").write_text(
        _lines([{"turns": [f"Why {n}?", "So?"]} for n in range(20)])
    )
    (folder / "eval" / "ifeval_input_data.jsonl").write_text(_lines([{"prompt": f"Write {n}."} for n in range(20)]))
    monkeypatch.setenv("TRUEUP_REAL_DATA", str(folder))
    return folder


@pytest.fixture
def write_gzip() -> Any:
    """Write a text to a compressed file, in a folder that may be new."""
    import gzip

    def write(file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(text.encode()))

    return write


def _prompts(recipe: Recipe, name: str) -> set[str]:
    told = load_rows(recipe.data[name], "preference", seed=0, name=name)
    return {row["prompt"][0]["content"] for row in told.train}


def test_no_vote_of_one_reward_model_is_one_of_the_other_or_held_out(rows: Path) -> None:
    recipe = load(FILE)
    parts = [_prompts(recipe, name) for name in ("held_votes", "votes", "judge_votes")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40
    trained = {name: recipe.stages[name].config.data for name in ("rm", "dpo", "judge_rm")}  # type: ignore[attr-defined]
    assert trained == {"rm": "votes", "dpo": "votes", "judge_rm": "judge_votes"}
    assert {recipe.stages[name].config.reward for name in ("report", "attacked")} == {"judge_rm"}  # type: ignore[attr-defined]
    # What the demonstrations hold out is what the votes hold out.
    held = load_rows(recipe.data["demos"], "messages", seed=0, name="demos").held_out
    assert {row["messages"][0]["content"] for row in held} == parts[0]


@pytest.mark.parametrize(
    ("said", "is_refusal"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry, but as an AI language model I do not have feelings.", True),
        ("I cannot provide instructions for that.", True),
        ("I am not able to assist you with this.", True),
        ("I won't do that.", True),
        ("Sorry, no.", True),
        ("I'd rather not say.", True),
        ("Paris is the capital of France.", False),
        ("I can help you with that!", False),
        ("You cannot divide by zero.", False),
        ("It was a sorry sight.", False),
        ("Dear Sir, I am writing to ask for help with my order.", False),
        ("First, mix the flour. " * 20 + "I'm sorry.", False),
        ("", False),
    ],
)
def test_refusals_are_told_from_answers(said: str, is_refusal: bool) -> None:
    completions = [[{"role": "assistant", "content": said}]]
    declined, answered = (load_function(f"smollm2_135m.py:{name}", [FOLDER]) for name in ("declined", "answered"))
    assert declined(completions) == [float(is_refusal)]
    assert answered(completions) == [float(bool(said) and not is_refusal)]


def test_the_example_brings_its_functions_and_names_the_hub(tmp_path: Path, rows: Path) -> None:
    written = write_example("smollm2-135m", tmp_path)
    assert {path.name for path in written.files} == {"smollm2-135m.yaml", "smollm2_135m.py"}
    plan = make_plan(load(written.recipe), Store(tmp_path / "store"))
    models = {item.fingerprint for stage in plan.stages for item in stage.inputs.get("model", ()) if item.external}
    assert models == {"hub:HuggingFaceTB/SmolLM2-135M-Instruct@main"}


@pytest.mark.slow
def test_the_chain_runs_with_a_tiny_model(
    tiny: Path, rows: Path, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMOLLM2", str(tiny))
    changes = [part for key, value in SMALLER.items() for part in ("--set", f"{key}={value}")]
    checked = call("check", FILE, *changes, "--store", tmp_path / "store", cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "learnt from" not in checked.stdout, "no prompt of a report is one that a model was trained on"
    ended = call("run", FILE, *changes, "--store", tmp_path / "store", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    store = Store(tmp_path / "store")
    for name in ("rm", "judge_rm", "taste"):
        card = json.loads((store.artifacts(name)[-1].path / "reward_card.json").read_text())
        assert 0 <= card["accuracy"]["value"] <= 1
    for name in MEASURED:
        curve = (store.artifacts(name)[-1].path / "metrics.jsonl").read_text()
        assert "eval_loss" in curve, "the held-out loss is measured"
    for name in ("report", "attacked"):
        report = json.loads((store.artifacts(name)[-1].path / "report.json").read_text())
        assert report["judge"] == "reward"
        assert all(told["correct"] is not None for told in report["models"].values())
    for verb, *arguments in _commands_that_read():
        told = call(verb, *arguments, "--store", store.root, cwd=tmp_path)
        assert told.returncode == 0, told.stdout + told.stderr
    for name in ("sft", "dpo", "ppo"):
        assert _plain_answer(store.artifacts(name)[-1].path), name


def _commands_that_read() -> list[list[str]]:
    """Return the commands with which docs/real-models.md reads a run; a chat needs somebody who types."""
    section = PAGE.read_text(encoding="utf-8").partition("\n## How to read it\n")[2]
    lines = section.partition("```bash\n")[2].partition("```")[0].splitlines()
    commands = [shlex.split(line, comments=True)[1:] for line in lines]
    return [command for command in commands if command[0] != "chat"]


def _plain_answer(folder: Path) -> list[int]:
    """Return the tokens that plain transformers answers with a folder's model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    chat = [{"role": "user", "content": "What is 2 and 2?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    return answer[0, inputs["input_ids"].shape[1] :].tolist()
