"""Instruction tuning: demonstrations become likelier, answers end, adapters merge and are never lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from single_rows import encode_conversation, encode_prompt

from pipeline.models.generate.decode import GenerationSettings, decode
from pipeline.models.generate.sampling import Sampling
from pipeline.stage import ResolvedInput

Load = Callable[[Path], tuple[Any, Any]]


def _ended(model: Any, tokenizer: Any, prompts: list[str]) -> float:
    """Return the share of greedy answers that end within 24 tokens."""
    ids = [encode_prompt(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    end = tokenizer.eos_token_id
    answers = decode(
        model,
        ids,
        GenerationSettings(
            max_new_tokens=24, eos_ids=end, pad_id=tokenizer.pad_token_id, sampling=Sampling(greedy=True)
        ),
    )
    return sum(answer[-1] == end for answer in answers) / len(answers)


def test_the_loss_falls_and_demonstrations_become_likelier(
    chain: Any, load_plain: Load, read_rows: Any, response_logprob: Any
) -> None:
    losses = [row["loss"] for row in read_rows(chain["sft"].path / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < 0.6 * losses[0]
    base, tokenizer = load_plain(chain["base"].path)
    tuned, _ = load_plain(chain["sft"].path)
    rows = read_rows(chain.recipe.parent / "demos.jsonl")[:40]
    spoken = [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows]
    gains = [response_logprob(tuned, tokenizer, *row) - response_logprob(base, tokenizer, *row) for row in spoken]
    # The base has never seen a turn; every demonstration gains, and several nats on average.
    assert min(gains) > 0
    assert sum(gains) / len(gains) > 5


def test_the_end_token_is_learnt(chain: Any, load_plain: Load, read_rows: Any) -> None:
    """A text of the corpus goes on after its sentence as often as not; an answer ends there."""
    base, tokenizer = load_plain(chain["base"].path)
    tuned, _ = load_plain(chain["sft"].path)
    rows = read_rows(chain.recipe.parent / "demos.jsonl")[:60]
    spoken = [encode_conversation(tokenizer, row["messages"]) for row in rows]
    end = tokenizer.eos_token_id
    assert all(row.ids[-1] == row.labels[-1] == end for row in spoken)

    def chance_to_end(model: Any) -> float:
        chances = []
        for row in spoken:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row.ids[:-1]])).logits[0, -1]
            chances.append(torch.softmax(logits, dim=-1)[end].item())
        return sum(chances) / len(chances)

    assert chance_to_end(tuned) > 0.9
    assert chance_to_end(base) < 0.75


def test_a_tuned_model_ends_its_answers(chain: Any, load_plain: Load, read_rows: Any) -> None:
    prompts = [row["prompt"] for row in read_rows(chain.recipe.parent / "asks.jsonl")]
    assert _ended(*load_plain(chain["sft"].path), prompts) == 1.0


def test_held_out_rows_are_measured_and_not_trained_on(chain: Any) -> None:
    manifest = chain["sft"].manifest
    rows = manifest.rows
    assert rows["train"] + rows["held_out"] == 240
    assert rows["held_out"] > 0
    assert 0 < manifest.metrics["eval_loss"] < 2
    assert manifest.best["eval_loss"] <= manifest.metrics["eval_loss"]


def test_long_rows_are_cut_and_counted(
    chain: Any, as_input: Any, run_stage: Callable[..., Any], write_jsonl: Any, tmp_path: Path, load_plain: Load
) -> None:
    def talk(question: str, answer: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    _, tokenizer = load_plain(chain["base"].path)
    fits, cut = talk("a", "b"), talk("a", "the colour is red . " * 8)
    lost = talk("which colour has the cat ? " * 8, "it is red .")
    tokens = [len(encode_conversation(tokenizer, row["messages"]).ids) for row in (fits, cut, lost)]
    assert tokens[0] <= 16 < min(tokens[1:])
    source = write_jsonl(tmp_path / "d.jsonl", [fits] * 3 + [cut] * 2 + [lost])
    train = {"max_steps": 1, "batch_size": 5, "max_length": 16}
    ran = run_stage("sft", {"train": train}, data={"data": source}, inputs={"model": as_input(chain["base"])})
    # The prompt of the last row alone has more than 16 tokens, so nothing of it is learnt.
    assert ran.outcome.result.rows == {"train": 6, "held_out": 0, "cut": 3, "dropped": 1}
    assert "3 of 6 conversations are longer than 16 tokens and were cut at the end" in ran.notes
    assert "1 of 6 conversations has nothing left to learn and was left out" in ran.notes
    # Five rows a step: 3 short ones whole and 2 of 16 tokens.
    assert ran.outcome.result.tokens == 3 * tokens[0] + 2 * 16


def test_nothing_that_fits_is_bad_input(
    chain: Any, as_input: Any, run_stage: Callable[..., Any], write_jsonl: Any, tmp_path: Path
) -> None:
    turns = [{"role": "user", "content": "a very long question " * 9}, {"role": "assistant", "content": "b"}]
    source = write_jsonl(tmp_path / "d.jsonl", [{"messages": turns}] * 4)
    ran = run_stage(
        "sft",
        {"train": {"max_length": 8}},
        data={"data": source},
        inputs={"model": as_input(chain["base"])},
        expect="failed",
    )
    assert ran.outcome.bad_input
    assert str(ran.outcome.problems[0]) == "no row fits; expected rows of at most 8 tokens. Raise train.max_length"


def test_a_template_whose_answers_do_not_end_is_refused(
    chain: Any, run_stage: Callable[..., Any], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(chain["base"].path, folder)
    template = (folder / "chat_template.jinja").read_text()
    ending = "message['content'] + '<|end|>' -}}{%- endgeneration"
    assert ending in template
    (folder / "chat_template.jinja").write_text(template.replace(ending, "message['content'] -}}{%- endgeneration"))
    source = ResolvedInput(ref="m", name="m", kind="external", fingerprint="f", path=str(folder))
    demos = chain.recipe.parent / "demos.jsonl"
    ran = run_stage("sft", {}, data={"data": demos}, inputs={"model": source}, expect="failed")
    assert ran.outcome.bad_input
    assert "does not end the assistant's turn with <|end|>" in str(ran.outcome.problems[0])


def test_the_final_loss_is_known_however_rarely_it_is_logged(
    chain: Any, as_input: Any, run_stage: Callable[..., Any]
) -> None:
    demos, source = chain.recipe.parent / "demos.jsonl", as_input(chain["base"])
    train = {"max_steps": 3, "batch_size": 16, "logging_steps": 1000}
    ran = run_stage("sft", {"train": train}, data={"data": demos}, inputs={"model": source})
    assert [row["step"] for row in ran.history] == [3]
    lost = {"train": {**train, "learning_rate": 1e30}}
    broken = run_stage("sft", lost, data={"data": demos}, inputs={"model": source}, expect="failed")
    assert "the loss is nan at step 3" in str(broken.outcome.problems[0])


@pytest.mark.parametrize(
    "compute", [{"precision": "bf16"}, {"activation_checkpointing": True}], ids=["bf16", "checkpointing"]
)
def test_other_ways_to_compute_learn_the_same(
    compute: dict[str, Any], chain: Any, as_input: Any, run_stage: Callable[..., Any]
) -> None:
    config = {"train": {"max_steps": 6, "batch_size": 16, "learning_rate": 1e-3, "logging_steps": 1}}
    data, inputs = {"data": chain.recipe.parent / "demos.jsonl"}, {"model": as_input(chain["base"])}
    plain = run_stage("sft", config, data=data, inputs=inputs)
    other = run_stage("sft", config, data=data, inputs=inputs, compute=compute)
    losses = [[row["loss"] for row in ran.history] for ran in (plain, other)]
    # bf16 keeps 8 bits: losses of a few nats differ in the second digit after the point; recomputing changes nothing.
    assert losses[1] == pytest.approx(losses[0], abs=5e-2 if "precision" in compute else 1e-6)
    assert (losses[1] == losses[0]) is ("precision" not in compute)


LORA = {"adapter": {"r": 4}, "train": {"max_steps": 20, "batch_size": 16, "learning_rate": 2e-2}}


def test_an_adapter_is_written_beside_weights_that_contain_it(
    chain: Any, learn: Callable[..., Any], load_plain: Load, probe_logits: Callable[[Any], torch.Tensor]
) -> None:
    ran = learn("sft", LORA, "demos", model="base", name="tuned")
    assert ran.history[-1]["loss"] < ran.history[0]["loss"] - 0.5
    merged, _ = load_plain(ran.out)
    base, _ = load_plain(chain["base"].path)
    before = probe_logits(base)
    with_adapter = PeftModel.from_pretrained(base, ran.out / "adapter")
    torch.testing.assert_close(probe_logits(merged), probe_logits(with_adapter), atol=1e-4, rtol=0)
    assert (probe_logits(merged) - before).abs().max() > 0.1  # it did learn something
    with with_adapter.disable_adapter():
        torch.testing.assert_close(probe_logits(with_adapter), before, atol=1e-6, rtol=0)
    fingerprint = chain["base"].manifest.fingerprint
    assert ran.outcome.result.lineage == {
        "base": "scratch",
        "base_name": f"base@{fingerprint[:12]}",
        "parent": fingerprint,
        "adapters": [{"name": "tuned", "on": f"base@{fingerprint[:12]}", "r": 4} | {"quantize": None, "merged": False}],
    }


def test_an_adapter_on_an_adapter_keeps_both_and_applies_each_once(
    chain: Any, learn: Callable[..., Any], load_plain: Load, probe_logits: Callable[[Any], torch.Tensor]
) -> None:
    """The classic slip: the second stage loads the plain base, or the base with the first adapter folded in twice."""
    first = learn("sft", LORA, "demos", model="base", name="first")
    parent = first.source.model_copy(update={"manifest": {"lineage": dict(first.outcome.result.lineage)}})
    second = learn("sft", LORA, "demos", model=parent, name="second")
    # By hand: base, plus the first adapter once, plus the second once.
    base, _ = load_plain(chain["base"].path)
    stacked = PeftModel.from_pretrained(base, first.out / "adapter").merge_and_unload()
    stacked = PeftModel.from_pretrained(stacked, second.out / "adapter").merge_and_unload()
    made, _ = load_plain(second.out)
    torch.testing.assert_close(probe_logits(made), probe_logits(stacked), atol=1e-4, rtol=0)
    assert (probe_logits(made) - probe_logits(load_plain(first.out)[0])).abs().max() > 0.1
    assert [one["name"] for one in second.outcome.result.lineage["adapters"]] == ["first", "second"]


def test_packed_rows_teach_the_same(chain: Any, as_input: Any, run_stage: Callable[..., Any]) -> None:
    train = {"batch_size": 4, "epochs": 4, "learning_rate": 1e-2, "mode": "packed", "max_length": 64}
    ran = run_stage(
        "sft",
        {"model": "base", "train": train},
        data={"data": chain.recipe.parent / "demos.jsonl"},
        inputs={"model": as_input(chain["base"])},
    )
    losses = [row["loss"] for row in ran.history if "loss" in row]
    assert losses[-1] < 0.6 * losses[0]
    result = ran.outcome.result
    assert result.rows["train"] == 240
    assert result.rows["dropped"] == 0
    assert result.tokens > 240 * 10 * 4  # every conversation is in some row
