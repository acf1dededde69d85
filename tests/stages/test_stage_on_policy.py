"""GRPO and RLOO: the reward rises with what it asks for, falls with its opposite, and bad input is one line."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crossing import crossed
from transformers import AutoTokenizer

from pipeline.recipe import DataSource
from pipeline.rl.on_policy.trainer import PromptBatches
from pipeline.stage import KINDS as KINDS_BY_NAME
from pipeline.stage import ResolvedInput
from pipeline.stages.grpo.config import LOSSES

REWARDS = """\
def polite(completions, answer, **kwargs):
    return [float(turns[-1]["content"].split()[:1] in (["it"], ["the"], ["i"])) for turns in completions]


def rude(completions, **kwargs):
    return [float("away" in turns[-1]["content"].split()) for turns in completions]


def as_trl_calls(prompts, completions, completion_ids, trainer_state, log_metric, answer):
    assert len(prompts) == len(completions) == len(completion_ids) == len(answer)
    assert all(isinstance(ids[0], int) for ids in completion_ids) and prompts[0][-1]["role"] == "user"
    log_metric("seen_step", trainer_state.global_step)
    return [None if i % 2 else float(len(ids)) for i, ids in enumerate(completion_ids)]


async def slow(completions, **kwargs):
    return [1.0] * len(completions)


def raises(completions, answer, **kwargs):
    return [1 / (colour != "red") for colour in answer]


def nan(completions, answer, **kwargs):
    return [float("nan") if colour == "red" else 0.0 for colour in answer]


def constant(completions, **kwargs):
    return [0.7] * len(completions)


def nothing(completions, **kwargs):
    return [None] * len(completions)


def by_tokens(completions, completion_ids, **kwargs):
    return [float(sum(ids) % 7) for ids in completion_ids]


def short(completions, **kwargs):
    return [0.0]
"""
TRAIN = {"batch_size": 32, "num_generations": 8, "max_new_tokens": 12, "max_steps": 24, "learning_rate": 3e-3}
LORA = {"adapter": {"r": 4}, "train": {**TRAIN, "learning_rate": 4e-2}}
"""The rate at which 24 steps learn by a wide margin."""
FOLLOWED = {"beta": 0.5, "sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5}
"""A reference that follows the policy."""
KINDS = pytest.mark.parametrize("kind", ["grpo", "rloo"])


def of_kinds(name: str, cases: dict[str, Any] | list[str], *, grpo: tuple[str, ...], rloo: tuple[str, ...]) -> Any:
    """Parametrize a test by kind and the name of a case; the suite runs those named.

    What the kinds share (`rl/on_policy`) needs no case twice: `make test-matrix` runs all with both.
    """
    suite = [*(("grpo", case) for case in grpo), *(("rloo", case) for case in rloo)]
    return crossed(f"kind, {name}", ["grpo", "rloo"], cases, suite)


@pytest.fixture
def train_on(tmp_path: Path, chain: Any, as_input: Any, run_stage: Callable[..., Any]) -> Callable[..., Any]:
    """Run a stage from the tiny `sft` on the tiny questions with a function of `REWARDS`."""
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")

    def train(kind: str, reward: str | None, config: dict[str, Any], **options: Any) -> Any:
        inputs = {"model": as_input(chain["sft"]), **options.pop("inputs", {})}
        data = options.pop("data", chain.recipe.parent / "asks.jsonl")
        functions = {"reward_functions": [f"rewards.py:{reward}"]} if reward else {}
        return run_stage(kind, {**functions, **config}, data={"data": data}, inputs=inputs, **options)

    return train


def _digest(ran: Any) -> list[str]:
    names = ("model.safetensors", "metrics.jsonl")
    return [hashlib.sha256((ran.out / name).read_bytes()).hexdigest() for name in names]


@of_kinds("what", ["full", "lora"], grpo=("lora",), rloo=("full",))
def test_the_reward_rises(kind: str, what: str, train_on: Callable[..., Any]) -> None:
    config = LORA if what == "lora" else {"train": TRAIN}
    for reward in ("polite", "rude"):  # opposites: what the start says must not be all that is measured
        ran = train_on(kind, reward, config)
        rewards = [row["reward"] for row in ran.history]
        assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15
        result = ran.outcome.result
        assert result.metrics["reward"] == rewards[-1]
        assert result.metrics["length"] == ran.history[-1]["completions/mean_length"] <= 12
        assert result.best["reward"] == max(rewards)
        assert f"reward from {rewards[0]:.3f} to {rewards[-1]:.3f}" in result.summary
        assert result.tokens > 24 * 32 * 3
        assert result.rows == {"train": 24, "held_out": 0, "dropped": 0}
        if "adapter" in config:
            assert (ran.out / "adapter" / "adapter_model.safetensors").is_file()


@of_kinds("bits", ["4bit", "8bit"], grpo=("4bit",), rloo=("8bit",))
def test_an_adapter_on_quantised_weights_learns_from_its_own_responses(
    kind: str, bits: str, train_on: Callable[..., Any]
) -> None:
    """QLoRA on a CPU: the reward rises; the reference, the adapter switched off, is what sampled the first batch."""
    pytest.importorskip("bitsandbytes", reason="needs trueup[quantize]")
    train = {**LORA["train"], "beta": 0.01, "max_steps": 16}
    ran = train_on(kind, "rude", {"adapter": {"r": 4, "quantize": bits}, "train": train})
    rewards = [row["reward"] for row in ran.history if "reward" in row]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1
    assert ran.history[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert ran.history[-1]["kl"] > 1e-3
    assert (ran.out / "adapter" / "adapter_model.safetensors").is_file()


@KINDS
def test_responses_stop_at_the_end_token(kind: str, train_on: Callable[..., Any]) -> None:
    """The chain's answers have 5 to 11 tokens: most must end before a limit of 30, by themselves."""
    ran = train_on(kind, "polite", {"train": {**TRAIN, "max_steps": 1, "max_new_tokens": 30}})
    assert ran.history[0]["completions/clipped_ratio"] < 0.2
    assert ran.history[0]["completions/mean_length"] < 15


@of_kinds("what", ["full", "lora"], grpo=("lora",), rloo=("full",))
def test_the_reference_is_the_start(kind: str, what: str, train_on: Callable[..., Any]) -> None:
    """Policy and reference are one model before the first step: their divergence is 0, and positive later."""
    adapter = {"r": 4} if what == "lora" else None
    train = {**TRAIN, "max_steps": 6, "beta": 0.05, "learning_rate": 1e-2}
    ran = train_on(kind, "rude", {"adapter": adapter, "train": train})
    assert ran.history[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert ran.history[-1]["kl"] > 1e-3
    assert "nats per token" in ran.outcome.result.summary


CUT = {
    "epochs": {},
    "iterations": {"num_iterations": 2},
    "generations": {"generation_batch_size": 32},
    "followed": FOLLOWED,
}


@of_kinds("more", CUT, grpo=("iterations", "followed"), rloo=("generations",))
def test_a_run_cut_off_ends_in_the_same_bits(kind: str, more: str, train_on: Callable[..., Any]) -> None:
    """24 prompts make 6 batches of 4 (or 3 of 8): 8 steps cross an epoch, and stops fall inside what was sampled."""
    train = {**TRAIN, "batch_size": 16, "num_generations": 4, "max_steps": 8, "logging_steps": 3, **CUT[more]}
    config = {"train": train}
    whole = train_on(kind, "polite", config, name="whole")
    assert _digest(train_on(kind, "polite", config, name="again")) == _digest(whole)
    out = whole.out.parent.parent / "cut"
    for steps in (1, 3, 3):  # stops after steps 1, 4 and 7
        asked = iter([False] * (steps - 1) + [True] * 9)
        train_on(kind, "polite", config, out=out, stopping=lambda asked=asked: next(asked), expect="stopped")
    ended = train_on(kind, "polite", config, out=out)
    assert "resumes at step 7 of 8" in ended.notes
    assert _digest(ended) == _digest(whole)
    assert ended.outcome.result.tokens == whole.outcome.result.tokens


@pytest.mark.parametrize(("kind", "engine"), [("grpo", "batched"), ("rloo", "generate")])
def test_the_engines_of_ppo_sample_and_a_run_cut_off_ends_in_the_same_bits(
    kind: str, engine: str, train_on: Callable[..., Any]
) -> None:
    train = {**TRAIN, "batch_size": 16, "num_generations": 4, "max_steps": 6, "num_iterations": 2, "top_p": 0.9}
    config = {"train": train, "rollout_engine": engine}
    whole = train_on(kind, "by_tokens", config, name="whole")
    assert whole.outcome.runtime_report["rollout_engine"] == engine
    sampled = [row for row in whole.history if "completions/mean_length" in row]
    assert sampled and all(0 < row["completions/mean_length"] <= 12 for row in sampled)
    assert any(row["reward_std"] > 0 for row in sampled)  # the responses to a prompt differ
    out = whole.out.parent.parent / "cut"
    asked = iter([False] * 2 + [True] * 9)
    train_on(kind, "by_tokens", config, out=out, stopping=lambda: next(asked), expect="stopped")
    assert _digest(train_on(kind, "by_tokens", config, out=out)) == _digest(whole)
    trl = train_on(kind, "by_tokens", {"train": train}, name="trl")
    assert _digest(trl) != _digest(whole) and trl.outcome.runtime_report["rollout_engine"] == "trl"


def test_what_only_trl_s_sampling_has_is_refused_beside_another_engine() -> None:
    for field, value in {"min_p": 0.1, "use_vllm": True, "generation_kwargs": {"num_beams": 2}}.items():
        words = {"data": "d", "model": "m", "reward": ["r"], "train": {field: value}}
        config = KINDS_BY_NAME["grpo"].config
        said = [str(one) for one in config.model_validate({**words, "rollout_engine": "batched"}).check()]
        assert any(f"train.{field} has no effect with rollout_engine: batched" in line for line in said)
        assert not any("rollout_engine" in str(one) for one in config.model_validate(words).check())


@KINDS
def test_the_micro_batch_does_not_change_what_is_learned(
    kind: str, train_on: Callable[..., Any], load_plain: Any, probe_logits: Any
) -> None:
    import torch

    config = {"train": {**TRAIN, "max_steps": 3, "beta": 0.1}}
    made = [train_on(kind, "polite", config, compute={"micro_batch": size}, name=f"m{size}") for size in (32, 8)]
    logits = [probe_logits(load_plain(ran.out)[0]) for ran in made]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-3, rtol=0)


@KINDS
def test_functions_are_called_as_trl_calls_them(kind: str, train_on: Callable[..., Any]) -> None:
    """Named arguments of trl without `**kwargs`, None for rows a reward does not apply to, an async function."""
    config = {
        "reward_functions": ["rewards.py:as_trl_calls", "rewards.py:slow"],
        "reward_weights": [0.5, 2.0],
        "train": {**TRAIN, "max_steps": 2, "logging_steps": 1},
    }
    ran = train_on(kind, None, config)
    assert [row["seen_step"] for row in ran.history] == [0, 1]
    assert ran.history[0]["rewards/slow/mean"] == 1.0
    # Every second row has only the second reward, 2 · 1; the others 0.5 · length + 2 · 1.
    expected = 0.5 * (0.5 * ran.history[0]["rewards/as_trl_calls/mean"]) + 2
    assert ran.history[0]["reward"] == pytest.approx(expected, abs=1e-4)


@KINDS
def test_a_reward_model_and_a_function_add_up(
    kind: str, chain: Any, as_input: Any, train_on: Callable[..., Any]
) -> None:
    train = {**TRAIN, "max_steps": 2, "logging_steps": 1}
    config = {"reward": ["rm"], "reward_functions": ["rewards.py:polite"], "reward_weights": [1.0, 3.0], "train": train}
    ran = train_on(kind, None, config, inputs={"reward": as_input(chain["rm"])})
    row = ran.history[0]
    assert row["reward"] == pytest.approx(row["rewards/rm/mean"] + 3 * row["rewards/polite/mean"], abs=1e-4)


BAD_REWARDS = {
    "raises": r"rewards.py:raises raised ZeroDivisionError: division by zero for row \d+ \(.*\?\)",
    "nan": r"rewards.py:nan returned nan for row \d+ \(.*\?\); expected a finite number",
    "short": r"rewards.py:short returned 1 value; expected one per row \(32\)",
}


@of_kinds("reward", BAD_REWARDS, grpo=("raises", "short"), rloo=("nan",))
def test_a_bad_reward_is_one_line_and_nothing_is_kept(kind: str, reward: str, train_on: Callable[..., Any]) -> None:
    ran = train_on(kind, reward, {"train": TRAIN}, expect="failed")
    (problem,) = ran.outcome.problems
    assert re.search(BAD_REWARDS[reward], str(problem))
    assert not [path for path in ran.out.rglob("*") if path.is_file()]


NO_PROMPTS: dict[str, tuple[dict[str, Any], str]] = {
    "no room": (
        {"max_new_tokens": 64},
        "train.max_new_tokens is 64; expected less than the 64 tokens of prompt and response",
    ),
    "hardly room": (
        {"max_new_tokens": 56},
        "asks.jsonl:1 stage .*: the prompt is [0-9]+ tokens long, as are 23 more; "
        "expected at most 8: the model's context",
    ),
    "all left out": (
        {"max_new_tokens": 56, "max_length": 64},
        "none of 24 prompts fits; expected prompts of at most 8 tokens",
    ),
    "too few": (
        {"batch_size": 256},
        "24 prompts to learn from; expected at least 32, for one batch of 256 responses",
    ),
}


@of_kinds("case", NO_PROMPTS, grpo=("no room", "all left out"), rloo=("hardly room", "too few"))
def test_prompts_that_cannot_be_learned_from_are_refused_before_training(
    kind: str, case: str, train_on: Callable[..., Any]
) -> None:
    train, message = NO_PROMPTS[case]
    ran = train_on(kind, "polite", {"train": {**TRAIN, **train}}, expect="failed")
    (problem,) = ran.outcome.problems
    assert re.search(message, str(problem))
    assert not (ran.work / "checkpoints").exists()


def test_prompts_too_long_for_the_length_asked_are_left_out_and_counted(
    chain: Any, read_rows: Any, write_jsonl: Any, tmp_path: Path, train_on: Callable[..., Any]
) -> None:
    rows = read_rows(chain.recipe.parent / "asks.jsonl")[:8]
    rows[3]["prompt"] = "which colour has the cat ? " * 9
    data = write_jsonl(tmp_path / "asks.jsonl", rows)
    train = {**TRAIN, "max_steps": 1, "max_length": 40}
    ran = train_on("grpo", "polite", {"train": train}, data=data)
    assert ran.outcome.result.rows == {"train": 8, "held_out": 0, "dropped": 1}
    assert "1 of 8 prompts is longer than 28 tokens and was left out" in ran.notes


@KINDS
def test_a_reference_has_a_row_for_every_token_as_the_policy_has(
    kind: str, chain: Any, tmp_path: Path, train_on: Callable[..., Any]
) -> None:
    """A tokenizer with more tokens than the embedding has rows; the new one stands in prompts.

    It is the tokenizer's end as well, which the model never writes: answers end where the template ends a turn.
    """
    tokenizer = AutoTokenizer.from_pretrained(chain["sft"].path)
    tokenizer.add_tokens(["<|task|>"], special_tokens=True)
    tokenizer.chat_template = "<|task|>" + tokenizer.chat_template
    tokenizer.eos_token = "<|task|>"
    shutil.copytree(chain["sft"].path, tmp_path / "grown")
    (tmp_path / "grown" / "generation_config.json").unlink()
    settings = json.loads((tmp_path / "grown" / "config.json").read_text())
    (tmp_path / "grown" / "config.json").write_text(json.dumps({**settings, "eos_token_id": None}))
    tokenizer.save_pretrained(tmp_path / "grown")
    model = ResolvedInput(ref="grown", name="grown", kind="sft", fingerprint="f" * 64, path=str(tmp_path / "grown"))
    ran = train_on(kind, "polite", {"train": {**TRAIN, "max_steps": 2, "beta": 0.1}}, inputs={"model": model})
    assert any("the embedding grows from" in note for note in ran.notes)
    assert ran.history[0]["completions/clipped_ratio"] < 1
    # The start is the reference: before the first step the two agree on every token, also behind the new one.
    assert ran.history[0]["kl"] == pytest.approx(0, abs=1e-5)


def test_prompts_differ_by_calls_and_tools_as_well(
    chain: Any, tmp_path: Path, write_jsonl: Any, train_on: Callable[..., Any]
) -> None:
    """Arguments of several types are no table of Arrow's; two prompts of the same turns may offer other tools."""
    tokenizer = AutoTokenizer.from_pretrained(chain["sft"].path)
    tokenizer.chat_template = (
        "{% if tools %}{{ tools[0]['function']['name'] }}{% endif %}{% for m in messages %}<|user|>{{ m['content'] }}"
        "{% for call in m['tool_calls'] or () %}{{ call['function']['name'] }}"
        "{{ call['function']['arguments'] | tojson }}{% endfor %}<|end|>{% endfor %}"
    )
    shutil.copytree(chain["sft"].path, tmp_path / "calls")
    tokenizer.save_pretrained(tmp_path / "calls")
    model = ResolvedInput(ref="calls", name="calls", kind="sft", fingerprint="f" * 64, path=str(tmp_path / "calls"))

    def called(arguments: dict[str, Any]) -> list[dict[str, Any]]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        return [*turns, {"role": "tool", "content": "red"}]

    tools = [[{"type": "function", "function": {"name": name, "parameters": {}}}] for name in "gh"]
    asked = [{"messages": called({"x": 1})}, {"messages": called({"x": "b"})}]
    asked += [{"messages": [{"role": "user", "content": "which"}], "tools": tool} for tool in tools]
    data = DataSource(path=str(write_jsonl(tmp_path / "asks.jsonl", asked)), format="messages")
    config = {"train": {**TRAIN, "max_steps": 1, "max_new_tokens": 4, "max_length": None}}
    ran = train_on("grpo", "by_tokens", config, data=data, inputs={"model": model})
    assert ran.outcome.result.rows == {"train": 4, "held_out": 0, "dropped": 0}
    assert ran.history[0]["reward_std"] > 0


def test_held_out_prompts_are_answered_and_measured(chain: Any, train_on: Callable[..., Any]) -> None:
    data = DataSource(path=str(chain.recipe.parent / "asks.jsonl"), held_out=0.2)
    ran = train_on("grpo", "polite", {"train": {**TRAIN, "max_steps": 4}}, data=data)
    assert 0 < ran.outcome.result.rows["held_out"] < 12
    assert 0 <= ran.outcome.result.metrics["eval_reward"] <= 1
    assert set(ran.outcome.result.best) == {"eval_reward", "step"}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"batch_size": 30}, "train.batch_size is 30; expected a multiple of train.num_generations"),
        ({"generation_batch_size": 48}, "train.generation_batch_size is 48; expected a multiple of train.batch_size"),
    ],
)
@KINDS
def test_batches_must_hold_whole_groups(kind: str, train: dict[str, Any], message: str) -> None:
    config = KINDS_BY_NAME[kind].config.model_validate(
        {"data": "a", "model": "m", "reward": ["rm"], "train": {**TRAIN, **train}}
    )
    assert next(str(problem) for problem in config.check()).startswith(message)


def test_a_loss_trl_does_not_have_is_refused_with_the_recipe() -> None:
    config = KINDS_BY_NAME["grpo"].config.model_validate(
        {"data": "a", "model": "m", "reward": ["rm"], "train": {"loss_type": "drgrpo"}}
    )
    (problem,) = config.check()
    assert re.match("train.loss_type is drgrpo; expected one of .*dr_grpo", str(problem))


def test_the_losses_are_those_of_trl() -> None:
    from trl.trainer import grpo_trainer

    source = Path(grpo_trainer.__file__).read_text(encoding="utf-8")
    lists = re.findall(r"self.loss_type in \[(.*?)\]", source) + re.findall(r'self.loss_type == (".*?")', source)
    assert {name for text in lists for name in re.findall(r'"(\w+)"', text)} == set(LOSSES)


def test_what_the_trainer_refuses_is_one_line(train_on: Callable[..., Any]) -> None:
    bounds = {"vllm_importance_sampling_clip_min": 3.0, "vllm_importance_sampling_clip_max": 2.0}
    ran = train_on("grpo", "polite", {"train": {**TRAIN, "use_vllm": True, **bounds}}, expect="failed")
    (problem,) = ran.outcome.problems
    said = "GRPOConfig does not take this `train`: vllm_importance_sampling_clip_min (3.0) must be less than"
    assert str(problem).startswith(said)
    assert ran.outcome.bad_input


def test_prompt_batches_are_those_of_trl() -> None:
    """Same groups, repeats and left-out rest as trl's own sampler, whose order differs by its random numbers only."""
    from trl.trainer.utils import RepeatSampler

    ours = PromptBatches(prompts=7, group=2, responses=4, repeats=3, seed=1, shuffle=False)
    theirs = list(RepeatSampler(range(7), mini_repeat_count=2, batch_size=2, repeat_count=3, shuffle=False))
    assert [row for batch in ours for row in batch] == theirs
    assert len(list(ours)) == len(ours) == 9
    shuffled = PromptBatches(prompts=7, group=2, responses=4, repeats=1, seed=1)
    first = list(shuffled)
    shuffled.set_epoch(1)
    assert list(shuffled) != first
    shuffled.set_epoch(0)
    assert list(shuffled) == first


# 20 rollouts without a difference end a run, 3 without any reward; a shorter run fails at its end.
NOTHING_LEARNT = {
    "alike": ("constant", 25, "the responses to a prompt all got the same reward in 20 rollouts in a row", 20),
    "alike to the end": ("constant", 2, "the responses to a prompt all got the same reward in any rollout", 2),
    "none": ("nothing", 25, "no response had a reward in 3 rollouts in a row", 3),
}


@of_kinds("case", NOTHING_LEARNT, grpo=("alike", "none"), rloo=("alike to the end",))
def test_rewards_that_teach_nothing_end_the_run_with_the_cause(
    kind: str, case: str, train_on: Callable[..., Any]
) -> None:
    reward, steps, why, when = NOTHING_LEARNT[case]
    train = {**TRAIN, "batch_size": 8, "max_new_tokens": 2, "max_steps": steps, "logging_steps": 1}
    asked: list[bool] = []  # whether to stop: once after every step but the last of a whole run

    def stopping() -> bool:
        asked.append(False)
        return False

    ran = train_on(kind, reward, {"train": train}, stopping=stopping, expect="failed")
    assert why in str(ran.outcome.problems[0])
    assert sum("nothing is learnt from it" in note for note in ran.notes) == 1  # told once, while it happens
    assert len(asked) == when - 1
