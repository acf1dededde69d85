"""PPO as a stage: what it learns, what it keeps, and what it refuses before it has begun."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from stopping import StopAfter
from transformers import AutoTokenizer

from pipeline.stage import ResolvedInput
from pipeline.stages.ppo.config import Config

Run = Callable[..., Any]

TRAIN = {
    "iterations": 12,
    "rollout_batch": 32,
    "epochs": 2,
    "minibatches": 2,
    "max_new_tokens": 12,
    "learning_rate": 1e-3,
    "eval_every": 4,
    "eval_prompts": 8,
}
QUICK = {**TRAIN, "iterations": 2, "rollout_batch": 8, "eval_every": 1, "learning_rate": 1e-3}
LAYOUTS: dict[str, dict[str, Any]] = {
    "full": {},
    "separate": {"layout": "separate"},
    "lora": {"adapter": {"r": 8}, "train": {**TRAIN, "learning_rate": 4e-3}},
    "top half": {"adapter": {"r": 8, "layers": "top-half"}, "train": {**TRAIN, "learning_rate": 1e-2}},
}
REWARDS = '''\
"""Rewards of the tests."""


def friendly(completions, **columns):
    """Pay for answers to a friend."""
    return [float("friend" in turns[-1]["content"].split()) for turns in completions]


def clumsy(completions, **columns):
    """Is what a judge would say of answers to a friend who should not be one."""
    return [1.0 - float("friend" in turns[-1]["content"].split()) for turns in completions]


def raises(completions, **columns):
    raise RuntimeError("no judge today")


def not_a_number(completions, **columns):
    return [float("nan")] + [1.0] * (len(completions) - 1)


def too_few(completions, **columns):
    return [1.0] * (len(completions) - 1)


def inflates(completions, **columns):
    CALLS.append(1)
    return [len(CALLS) + 1e-3 * len(turns[-1]["content"]) for turns in completions]


CALLS = []


def raises_later(completions, **columns):
    CALLS.append(1)
    if len(CALLS) > 2:
        raise RuntimeError("no judge any more")
    return [float(len(turns[-1]["content"])) for turns in completions]
'''


@pytest.fixture
def rewards(tmp_path: Path) -> str:
    """A file of reward functions, as a recipe names one."""
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    return str(tmp_path / "rewards.py")


@pytest.fixture
def ppo(chain: Any, as_input: Any, run_stage: Run, rewards: str, write_jsonl: Any, tmp_path: Path) -> Run:
    """Run a PPO stage that starts from the chain's SFT model and asks what it was tuned on."""
    demos = [json.loads(line) for line in (chain.recipe.parent / "demos.jsonl").read_text().splitlines()]
    asks = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": row["messages"][0]["content"]} for row in demos[:80]])

    def run(function: str | None = "friendly", *, data: Any = None, **more: Any) -> Any:
        config = {"train": TRAIN, **more.pop("config", {})}
        if function is not None:
            config |= {"reward_functions": [f"{rewards}:{function}"], "reward": []}
        inputs = {"model": as_input(chain["sft"]), **more.pop("inputs", {})}
        source = {"data": data or asks}
        return run_stage("ppo", config, data={**source, **more.pop("sources", {})}, inputs=inputs, **more)

    return run


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_learns_what_a_function_pays_for(layout: str, ppo: Run, chain: Any, load_plain: Any, read_rows: Any) -> None:
    ran = ppo(config=LAYOUTS[layout], pictures=True)
    metrics, history = ran.outcome.result.metrics, ran.history
    # A quarter of the demonstrations are addressed to a friend.
    assert history[0]["eval_reward"] < 0.6
    assert metrics["eval_reward"] >= 0.75
    # The best by reward minus KL, which need not be the one with the highest reward.
    best = max((row for row in history if "eval_objective" in row), key=lambda row: row["eval_objective"])
    assert ran.outcome.result.best["step"] == best["step"]
    assert metrics["eval_reward"] == pytest.approx(best["eval_reward"], rel=1e-6)
    assert abs(history[1]["kl"]) < 1e-4  # the reference is the start
    assert metrics["eval_kl"] > 0.1
    # What is kept says so too when loaded by transformers alone.
    model, tokenizer = load_plain(ran.out)
    start, _ = load_plain(chain["sft"].path)
    friends = [0, 0]
    asks = read_rows(chain.recipe.parent / "asks.jsonl")
    for row in asks:
        turns = [{"role": "user", "content": row["prompt"]}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        for i, one in enumerate((start, model)):
            output = one.generate(**prompt, max_new_tokens=12, do_sample=False)
            friends[i] += "friend" in tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert friends[1] > max(friends[0] + 4, 0.7 * len(asks)), friends
    if layout == "top half":
        lower = zip(model.model.layers[0].parameters(), start.model.layers[0].parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in lower)
    for name in ("metrics.jsonl", "training.svg", "samples.jsonl", "value/value.safetensors"):
        assert (ran.out / name).stat().st_size > 100
    samples = read_rows(ran.out / "samples.jsonl")
    assert [row["step"] for row in samples] == [step for step in (0, 4, 8, 12) for _ in range(8)]
    assert samples[-1]["reward"] == float("friend" in samples[-1]["response"].split())


def test_a_policy_that_only_gets_worse_is_not_what_is_kept(ppo: Run, chain: Any) -> None:
    ran = ppo(config={"train": {**QUICK, "learning_rate": 1.0, "target_kl": 0.0}})
    assert ran.outcome.result.best["step"] == 0
    assert ran.history[-1]["eval_objective"] < ran.history[0]["eval_objective"]
    start, kept = (load_file(folder / "model.safetensors") for folder in (chain["sft"].path, ran.out))
    assert all(torch.equal(start[name], kept[name]) for name in start)


def test_what_is_kept_is_best_by_reward_less_the_price_of_divergence(ppo: Run) -> None:
    # Each evaluation pays more than the one before, and no reward is worth this divergence.
    train = {**QUICK, "learning_rate": 1e-2, "kl_coef": 1e3, "target_kl": 0.0}
    ran = ppo("inflates", config={"train": train})
    seen = [row["eval_reward"] for row in ran.history if "eval_reward" in row]
    assert seen == sorted(seen) and seen[-1] > seen[0] + 1
    assert ran.outcome.result.best["step"] == 0
    assert ran.outcome.result.metrics["eval_reward"] == pytest.approx(seen[0], abs=1e-3)


def test_conversations_of_ppo_ptx_come_in_passes_and_their_padding_does_not_count(chain: Any, load_plain: Any) -> None:
    from types import SimpleNamespace

    from single_rows import encode_conversation

    from pipeline.labels import IGNORE
    from pipeline.stages.ppo.data import language_loss

    model, tokenizer = load_plain(chain["sft"].path)
    demos = [json.loads(line) for line in (chain.recipe.parent / "demos.jsonl").read_text().splitlines()]
    distinct = list({row["messages"][0]["content"]: row for row in demos}.values())[:8]
    known = [encode_conversation(tokenizer, row["messages"]) for row in distinct]
    assert len({len(row.ids) for row in known}) > 1
    config = Config.model_validate(
        {"data": "a", "model": "m", "reward": ["r"], "ptx_data": "d", "train": {"ptx_coef": 1.0, "ptx_batch": 2}}
    )
    rows = SimpleNamespace(train=distinct, held_out=[], places=[""] * len(distinct))
    silent = dict.fromkeys(("phase", "progress", "note"), lambda *told: None)
    context: Any = SimpleNamespace(seed=3, load_rows=lambda name: rows, **silent)
    loss = language_loss(context, config, tokenizer, limit=64)
    places: list[list[int]] = []

    def remember(module: Any, arguments: Any, given: dict[str, Any]) -> None:
        rows = given["input_ids"].tolist()
        places.append([next(i for i, k in enumerate(known) if row[: len(k.ids)] == list(k.ids)) for row in rows])

    model.register_forward_pre_hook(remember, with_kwargs=True)
    with torch.no_grad():
        losses = [float(loss(model, step)) for step in range(8)]
        firsts, seconds = ([i for pair in places[start : start + 4] for i in pair] for start in (0, 4))
        assert sorted(firsts) == sorted(seconds) == list(range(8)) and firsts != seconds
        for value, pair in zip(losses, [firsts[i : i + 2] for i in range(0, 8, 2)], strict=False):
            total, count = 0.0, 0
            for place in pair:  # each alone, without padding
                logp = model(input_ids=torch.tensor([known[place].ids])).logits[0, :-1].log_softmax(-1)
                kept = [(t, label) for t, label in enumerate(known[place].labels[1:]) if label != IGNORE]
                total -= sum(float(logp[t, label]) for t, label in kept)
                count += len(kept)
            assert value == pytest.approx(total / count, abs=1e-5)


def test_learns_what_a_reward_model_pays_for(ppo: Run, chain: Any, as_input: Any) -> None:
    config = {"reward": ["rm"], "layout": "separate"}
    ran = ppo(None, config=config, inputs={"reward": as_input(chain["rm"])})
    history = [row for row in ran.history if "eval_reward" in row]
    assert history[-1]["eval_reward"] > history[0]["eval_reward"] + 0.5
    # The separate value function started from the reward model, which reads the same tokens: its trunk, still near it.
    value, start = load_file(ran.out / "value" / "value.safetensors"), load_file(chain["rm"].path / "model.safetensors")
    name = next(name for name in value if name.endswith("layers.1.mlp.up_proj.weight"))
    assert (value[name] - start["model.layers.1.mlp.up_proj.weight"]).abs().max() < 0.5


def test_a_reward_model_trained_on_the_policy_s_start_is_an_adapter_on_its_trunk(
    ppo: Run, chain: Any, as_input: Any
) -> None:
    inputs = {"reward": as_input(chain["rm"])}
    config = {"reward": ["rm"], "adapter": {"r": 4}, "train": QUICK}
    together = ppo(None, config={**config, "value": "adapter"}, inputs=inputs, name="together")
    assert any("reward model rm is an adapter on the policy's own trunk" in note for note in together.notes)
    assert "the value function starts as the reward model" in together.notes
    apart = ppo(None, config={"reward": ["rm"], "train": QUICK}, inputs=inputs, name="apart")
    assert not any("own trunk" in note for note in apart.notes)
    # The same start answers the same held-out prompts: one trunk gives the scores of two.
    assert together.history[0]["eval_reward"] == pytest.approx(apart.history[0]["eval_reward"], abs=1e-4)
    value = load_file(together.out / "value" / "value.safetensors")
    assert any("lora_A.value" in name for name in value) and "linear.weight" in value
    adapter = load_file(together.out / "adapter" / "adapter_model.safetensors")
    assert adapter and not any("value" in name or "reward" in name for name in adapter)
    assert sorted(path.name for path in (together.out / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_trackers_of_transformers_get_every_row_and_an_end_however_the_run_ends(
    ppo: Run, rewards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    told: list[Any] = []

    class Tracker(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            told.append("begin")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            told.append((state.global_step, logs))

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            told.append("end")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["tensorboard"])
    quick = {**QUICK, "epochs": 1, "eval_prompts": 2}
    ran = ppo(config={"train": {**quick, "report_to": ["tensorboard"]}})
    assert told[0] == "begin" and told[-1] == "end"
    assert [step for step, _ in told[1:-1]] == [0, 1, 2]
    for (_, logs), row in zip(told[1:-1], ran.history, strict=True):
        assert {name: logs[name] for name in row} == pytest.approx(row, rel=1e-3, abs=1e-5)
    assert "seconds_rollout" in told[-2][1]
    told.clear()
    ppo("raises_later", expect="failed", config={"train": {**quick, "report_to": ["tensorboard"]}})
    assert told[-1] == "end"
    text = _refused(ppo(expect="failed", config={"train": {**QUICK, "report_to": ["paper"]}}))
    assert "train.report_to: paper is not supported" in text


def test_what_samples_is_said(ppo: Run) -> None:
    said = "responses are sampled by the `{}` engine"
    quick = {**QUICK, "iterations": 1, "epochs": 1, "eval_prompts": 2}
    assert any(note.startswith(said.format("batched")) for note in ppo(config={"train": quick}).notes)
    ran = ppo(config={"train": quick, "rollout_engine": "generate"})
    assert not any(note.startswith("responses are sampled") for note in ran.notes)  # as asked
    assert ran.outcome.result.metrics["steps"] > 0


def test_answers_are_shown_at_each_evaluation(ppo: Run) -> None:
    ran = ppo(config={"train": QUICK})
    shown = [note for note in ran.notes if note.startswith("iteration ")]
    assert len(shown) == 2 * 3  # before, and after each of two iterations
    assert all(" → " in note and ", reward " in note for note in shown)
    sample = json.loads((ran.out / "samples.jsonl").read_text().splitlines()[0])
    assert sample["response"][-20:] in shown[0]


def test_a_reward_that_rises_while_what_is_watched_falls_ends_the_run(ppo: Run, rewards: str) -> None:
    train = {**TRAIN, "eval_every": 1, "eval_prompts": 32}
    ran = ppo(config={"train": train, "watch_functions": [f"{rewards}:clumsy"]})
    gamed = [note for note in ran.notes if "the reward is being gamed" in note]
    assert len(gamed) == 2  # told, and then stopped for it
    assert "stopped at iteration" in gamed[1]
    watched = [row["eval_watch"] for row in ran.history if "eval_watch" in row]
    assert watched[0] == pytest.approx(1 - ran.history[0]["eval_reward"])
    assert watched[-1] < watched[0]


def test_the_best_weights_may_be_those_that_what_is_watched_likes_best(ppo: Run, rewards: str) -> None:
    """What is watched falls as the reward rises: the start is the best, where the objective likes the end."""
    train = {**TRAIN, "iterations": 2, "eval_every": 1, "eval_prompts": 32, "best_by": "watch"}
    ran = ppo(config={"train": train, "watch_functions": [f"{rewards}:clumsy"]})
    rows = [row for row in ran.history if "eval_watch" in row]
    best = max(rows, key=lambda row: row["eval_watch"])
    assert ran.outcome.result.best == {"eval_watch": best["eval_watch"], "step": best["step"]}
    assert ran.outcome.result.metrics["eval_watch"] == best["eval_watch"]
    assert best["step"] == 0 < max(rows, key=lambda row: row["eval_objective"])["step"]


def test_a_gamed_reward_that_never_helped_what_is_watched_leaves_nothing_to_keep(ppo: Run, rewards: str) -> None:
    train = {**TRAIN, "eval_every": 1, "eval_prompts": 32, "best_by": "watch"}
    text = _refused(ppo(config={"train": train, "watch_functions": [f"{rewards}:clumsy"]}, expect="failed"))
    assert "never got better than its start; expected a watched score above that of the reference" in text


def test_one_prompt_leaves_none_to_watch(ppo: Run, rewards: str, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"prompt": "which colour has the cat ?"}\n')
    config = {"train": {**QUICK, "best_by": "watch"}, "watch_functions": [f"{rewards}:clumsy"]}
    text = _refused(ppo(data=tmp_path / "one.jsonl", config=config, expect="failed"))
    assert "train.best_by is watch, and data " in text and "has one prompt" in text


def test_weights_cannot_be_chosen_by_what_nobody_watches() -> None:
    config = Config(data="d", model="m", reward=["rm"], train={"best_by": "watch"})
    (problem,) = config.check()
    assert problem.found.startswith("train.best_by is watch, and nothing is watched")
    assert config.model_copy(update={"watch": ["other"]}).check() == []


def test_responses_of_a_skipped_step_are_kept_to_look_at(ppo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.rl.ppo.trainer import PPOTrainer

    update = PPOTrainer.update

    def poisoned(self: PPOTrainer, episodes: Any) -> Any:
        if self.iteration == 0:
            episodes[0].advantages_T[0] = float("nan")
        return update(self, episodes)

    monkeypatch.setattr(PPOTrainer, "update", poisoned)
    ran = ppo(config={"train": {**QUICK, "epochs": 1}})
    rows = [json.loads(line) for line in (ran.out / "skipped.jsonl").read_text().splitlines()]
    assert {row["iteration"] for row in rows} == {0} and len(rows) == 4  # one of two minibatches of eight
    assert any("nan" in row["advantages"] for row in rows)
    assert any("an optimizer step was skipped" in note for note in ran.notes)


def test_an_engine_that_is_not_there_is_refused_before_training(ppo: Run) -> None:
    if find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here: tests/rl/test_vllm.py samples with it")
    text = _refused(ppo(config={"train": QUICK, "rollout_engine": "vllm"}, expect="failed"))
    assert "rollout_engine is vllm, but vLLM is not installed" in text and "rollout_engine: auto" in text


def test_rewards_are_added_up_by_their_weights(ppo: Run, chain: Any, as_input: Any, rewards: str) -> None:
    reward_model = {"reward": as_input(chain["rm"])}
    alone = ppo(None, config={"reward": ["rm"], "train": QUICK}, inputs=reward_model, name="a").history[0]
    function = ppo(config={"train": QUICK}, name="b").history[0]
    both = ppo(
        None,
        config={
            "reward": ["rm"],
            "reward_functions": [f"{rewards}:friendly"],
            "reward_weights": [0.5, 3.0],
            "train": QUICK,
        },
        inputs=reward_model,
        name="c",
    ).history[0]
    # The same start answers the same held-out prompts with the same random numbers.
    assert both["eval_reward"] == pytest.approx(0.5 * alone["eval_reward"] + 3 * function["eval_reward"], abs=1e-4)


@pytest.mark.parametrize("layout", ["full", "top half"])
def test_stopped_twice_gives_the_bytes_of_one_session(layout: str, ppo: Run, tmp_path: Path) -> None:
    train = {
        **QUICK,
        "iterations": 6,
        "eval_every": 2,
        "kl_target": 0.5,
        "score_scaling": "running",
        "ptx_coef": 0.1,
        "ptx_batch": 2,
    }
    demos = tmp_path / "demos.jsonl"
    texts = ("red", "blue", "green", "white", "black", "red , my friend", "blue , my friend", "white , my friend")
    ask = {"role": "user", "content": "which colour has the cat ?"}
    talks = [[ask, {"role": "assistant", "content": f"it is {text} ."}] for text in texts]
    demos.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    config = {**LAYOUTS[layout], "train": train}

    def run(out: str, **more: Any) -> Any:
        return ppo(config=config, sources={"ptx_data": demos}, out=tmp_path / out, **more)

    whole = run("whole")
    first = run("cut", stopping=StopAfter(1), expect="stopped")
    assert "stopped as asked at iteration 2 of 6" in str(first.outcome.problems[0])
    second = run("cut", stopping=StopAfter(2), expect="stopped", compute={"checkpoint_every_s": 1e-9})
    assert "resumes at iteration 2 of 6" in second.notes
    last = run("cut")
    assert "resumes at iteration 5 of 6" in last.notes
    kept = [
        {n: v for n, v in vars(r.outcome.result).items() if n not in ("trainer_seconds", "metrics")}
        for r in (whole, last)
    ]
    assert kept[0] == kept[1]
    assert _hashes(tmp_path / "cut" / "payload") == _hashes(tmp_path / "whole" / "payload")


def test_a_data_set_of_one_prompt_keeps_what_was_learnt(ppo: Run, tmp_path: Path) -> None:
    # Nothing can be held out; a reward below zero must not make the start look best.
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"prompt": "which colour has the cat ?"}) + "\n")
    (tmp_path / "rewards.py").write_text(
        REWARDS + "\n\ndef below(completions, **columns):\n    return [r - 5 for r in friendly(completions)]\n"
    )
    ran = ppo("below", data=one, config={"train": {**TRAIN, "iterations": 4}})
    assert ran.outcome.result.best["step"] > 0
    assert ran.outcome.result.rows == {"train": 1, "held_out": 0}


def _refused(ran: Any) -> str:
    """Return the one line a failed stage says; it wrote nothing and has learnt nothing."""
    assert len(ran.outcome.problems) == 1
    text = str(ran.outcome.problems[0])
    assert len(text.splitlines()) == 1
    assert not [path for path in ran.out.rglob("*") if path.is_file() and "rejects" not in path.parts]
    assert not (ran.work / "state").exists()
    return text


def test_a_prompt_that_leaves_no_room_is_named(ppo: Run, tmp_path: Path) -> None:
    rows = [{"prompt": "which colour has the cat ?"}] * 3 + [{"prompt": "the cat " * 40}]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = _refused(ppo(data=tmp_path / "long.jsonl", expect="failed"))
    assert "long.jsonl:4 stage" in text and "the prompt has" in text
    assert "at most 52 tokens, for the model's context is 64" in text
    assert "lower train.max_new_tokens" in text


def test_an_empty_set_of_prompts_is_refused(ppo: Run, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    assert "none.jsonl" in _refused(ppo(data=tmp_path / "none.jsonl", expect="failed"))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", "raised RuntimeError: no judge today for row 0 ("),
        ("not_a_number", "returned nan for row 0 ("),
        ("too_few", "returned 2 values; expected one per row (3)"),
    ],
)
def test_a_wrong_reward_function_is_found_before_the_first_update(
    function: str, message: str, ppo: Run, rewards: str
) -> None:
    text = _refused(ppo(function, expect="failed", config={"train": {**TRAIN, "eval_prompts": 3}}))
    assert f"reward function {rewards}:{function} {message}" in text


def test_a_reward_function_that_fails_later_leaves_nothing_either(ppo: Run) -> None:
    assert "no judge any more" in _refused(ppo("raises_later", expect="failed"))


def test_a_reward_model_of_another_tokenizer_needs_a_chat_template(
    chain: Any, as_input: Any, ppo: Run, run_stage: Run, tmp_path: Path
) -> None:
    words = run_stage(
        "tokenizer", {"vocab_size": 300}, data={"data": chain.recipe.parent / "corpus.jsonl"}, name="other"
    )
    folder = tmp_path / "foreign"
    shutil.copytree(chain["rm"].path, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
        if (words.out / name).exists():
            shutil.copy(words.out / name, folder / name)
    source = ResolvedInput(ref="foreign", name="foreign", kind="reward", fingerprint="f" * 64, path=str(folder))
    config = {"reward": ["foreign"], "train": QUICK}
    assert (
        ppo(None, config=config, inputs={"reward": source}).outcome.result.metrics["steps"] > 0
    )  # rendered its own way

    own = (folder / "chat_template.jinja").read_text()
    refuses = "{{ raise_exception('no questions') if 'cat' in messages|string }}"
    (folder / "chat_template.jinja").write_text(refuses + own)
    problems = ppo(None, config=config, inputs={"reward": source}, expect="failed").outcome.problems
    assert problems[0].found.endswith("the chat template, which says: no questions (reward model `foreign`)")
    assert problems[0].where.endswith("prompts.jsonl:4")

    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert AutoTokenizer.from_pretrained(folder).chat_template is None
    text = _refused(ppo(None, config=config, inputs={"reward": source}, expect="failed"))
    assert "reward model `foreign` has another tokenizer than the policy, without a chat template" in text
    assert "Put a chat_template.jinja into its folder" in text


CHAIN = """\
name: bad
data:
  asks: {{path: asks.jsonl}}
stages:
  ppo:
    kind: ppo
    data: asks
    model: ./sft
    reward: {{function: gold.py:gold}}
    train: {{{train}}}
"""


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("kl_target: 0", "tiny.yaml:10 stage ppo: train.kl_target is 0; it must be > 0"),
        ("rollout_batch: 8, minibatches: 3", "train.rollout_batch 8 does not divide into 3 minibatches"),
        ("ptx_coef: 1.0", "train.ptx_coef without ptx_data; expected both or neither"),
        ("temperature: 0", "tiny.yaml:10 stage ppo: train.temperature is 0; it must be > 0"),
    ],
)
def test_contradictions_are_told_by_file_and_line_before_anything_runs(
    train: str, message: str, chain: Any, tiny_recipe: Path, call: Any
) -> None:
    shutil.copytree(chain["sft"].path, tiny_recipe.parent / "sft")
    tiny_recipe.write_text(CHAIN.format(train=train), encoding="utf-8")
    store = tiny_recipe.parent / "store"
    ended = call("run", tiny_recipe, "--store", store, cwd=tiny_recipe.parent)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert message in ended.stdout + ended.stderr
    assert not list(store.glob("ppo*"))


def test_a_recipe_runs_ppo_after_the_stages_it_starts_from(chain: Any, tiny_recipe: Path, call: Any) -> None:
    text = CHAIN.format(train="iterations: 2, rollout_batch: 8, max_new_tokens: 8, eval_every: 1")
    shutil.copytree(chain["sft"].path, tiny_recipe.parent / "sft")
    shutil.copytree(chain["rm"].path, tiny_recipe.parent / "rm")
    rewards = "\n      - {model: ./rm, weight: 0.5}\n      - {function: gold.py:gold, weight: 2.0}"
    tiny_recipe.write_text(text.replace(" {function: gold.py:gold}", rewards), encoding="utf-8")
    store = tiny_recipe.parent / "store"
    ended = call("run", tiny_recipe, "--store", store, cwd=tiny_recipe.parent)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    again = call("run", tiny_recipe, "--store", store, cwd=tiny_recipe.parent)
    assert again.returncode == 0
    (made,) = list(store.rglob("samples.jsonl"))
    assert made.parent.joinpath("model.safetensors").is_file()
