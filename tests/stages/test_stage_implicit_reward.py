"""An implicit reward: it is the log-ratio of its two models, stands alone, and serves where a reward model does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from stopping import StopAfter
from transformers import AutoModelForSequenceClassification

from pipeline.errors import PipelineError
from pipeline.models.implicit_reward import ImplicitReward, load_implicit_reward
from pipeline.models.load.pretrained import load_reward_model, load_tokenizer
from pipeline.models.prompted_response import PromptedResponse
from pipeline.models.scoring import score, token_scores
from pipeline.recipe import DataSource
from pipeline.stage import ResolvedInput
from pipeline.stages.implicit_reward import run as stage
from pipeline.stages.implicit_reward.config import Config as ImplicitConfig
from pipeline.stages.ppo.config import Config as PPOConfig
from pipeline.stages.ppo.models import load_value_start
from pipeline.training.reward_models import open_scorer

Run = Callable[..., Any]
BETA = 0.5
HUB = ("tiny/taste@main", "tiny/rm")
CARD = ("reward_card.json", "reward_card.md", "held_out_scores.jsonl")


@pytest.fixture
def make(chain: Any, as_input: Any, run_stage: Run) -> Run:
    """Make an implicit reward of the chain's `dpo` and `sft`, or of other models."""

    def run(policy: Any = "dpo", reference: Any = "sft", *, test: Any = None, **more: Any) -> Any:
        named = {"policy": policy, "reference": reference}
        inputs = {field: as_input(chain[one]) if isinstance(one, str) else one for field, one in named.items()}
        options = {key: more.pop(key) for key in list(more) if key in ("expect", "stopping", "out", "name")}
        data = {"test": test} if test is not None else {}
        return run_stage("implicit_reward", {"beta": BETA, **more}, data=data, inputs=inputs, **options)

    return run


@pytest.fixture
def made(make: Run) -> ResolvedInput:
    """The implicit reward as an input from outside: nothing but its folder is known."""
    return as_folder(make().out)


def as_folder(folder: Path, name: str = "taste") -> ResolvedInput:
    return ResolvedInput(ref=name, name=name, kind="external", fingerprint="e" * 12, path=str(folder))


def refusal(ran: Any) -> str:
    [problem] = ran.outcome.problems
    return str(problem)


def test_a_score_is_beta_times_the_log_ratio_of_the_whole_response(
    make: Run, chain: Any, tiny_rows: Any, gain_over_sft: Any, read_rows: Any
) -> None:
    ran = make(test=chain.recipe.parent / "pairs_test.jsonl", group_by="task")
    gain, pairs = gain_over_sft(chain["dpo"].path), tiny_rows("pairs_test")
    rows = read_rows(ran.out / "held_out_scores.jsonl")
    assert len(rows) == len(pairs) == 60
    for row, pair in zip(rows[:12], pairs, strict=False):
        for side in ("chosen", "rejected"):
            assert row[f"{side}_score"] == pytest.approx(BETA * gain(pair["prompt"], pair[side]), abs=1e-4)
    metrics, card = ran.outcome.result.metrics, json.loads((ran.out / "reward_card.json").read_text())
    right = sum(row["chosen_score"] > row["rejected_score"] for row in rows)
    assert metrics["test_accuracy"] == pytest.approx(right / 60) and metrics["test_pairs"] == 60
    assert metrics["gold_agreement"] == 1.0 and set(card["groups"]) == {"short", "long"}
    assert ran.outcome.result.rows == {"held_out": 60}
    assert ran.outcome.result.summary.startswith("100.0% of 60 held-out pairs")


def test_the_end_token_counts_and_an_empty_response_gives_nothing(
    made: ResolvedInput, load_plain: Any, chain: Any
) -> None:
    reward, tokenizer = load_implicit_reward(made), load_tokenizer(made)
    assert reward is not None and reward.settings == (BETA, 1.0)
    ids = [5, 9, 12, 30, 7, tokenizer.eos_token_id]
    models = [load_plain(chain[name].path)[0] for name in ("dpo", "sft")]
    with torch.no_grad():
        logprobs_TV = [model(torch.tensor([ids])).logits[0].double().log_softmax(-1) for model in models]
    gains = [float(logprobs_TV[0][t - 1, ids[t]] - logprobs_TV[1][t - 1, ids[t]]) for t in range(1, len(ids))]
    answers = [PromptedResponse.of(ids[:cut], ids[cut:end]) for cut, end in ((2, 6), (2, 5), (4, 6), (2, 2))]
    # The response's first token is the one at index 2, which `gains` has at 1.
    expected = [BETA * sum(gains[1:5]), BETA * sum(gains[1:4]), BETA * sum(gains[3:5]), 0.0]
    assert score(reward, answers, 0) == pytest.approx(expected, abs=1e-5)
    assert score(reward, answers, 0, token_budget=6) == pytest.approx(expected, abs=1e-5)
    assert abs(expected[0] - expected[1]) > 1e-3  # else the end token would not show


def test_a_weight_below_one_leaves_some_of_the_policy_s_own_likelihood(make: Run, load_plain: Any, chain: Any) -> None:
    reward = load_implicit_reward(as_folder(make(reference_weight=0.25).out))
    assert reward is not None and reward.settings == (BETA, 0.25)
    ids = [5, 9, 12, 30, 7]
    with torch.no_grad():
        own_TV, other_TV = (
            load_plain(chain[name].path)[0](torch.tensor([ids])).logits[0].log_softmax(-1) for name in ("dpo", "sft")
        )
    expected = [BETA * float(own_TV[t - 1, ids[t]] - 0.25 * other_TV[t - 1, ids[t]]) for t in (2, 3, 4)]
    [tokens] = token_scores(reward, [PromptedResponse.of(ids[:2], ids[2:])])
    assert tokens == pytest.approx(expected, abs=1e-5)
    assert score(reward, [PromptedResponse.of(ids[:2], ids[2:])], 0) == [sum(tokens)]


def test_the_artifact_stands_alone(make: Run, chain: Any, load_plain: Any, tmp_path: Path) -> None:
    ran = make()
    moved = Path(shutil.copytree(ran.out, tmp_path / "elsewhere"))
    for folder, name in ((moved, "dpo"), (moved / "reference", "sft")):
        model, tokenizer = load_plain(folder)
        weights = load_file(chain[name].path / "model.safetensors")
        assert all(torch.equal(weights[key], tensor) for key, tensor in load_file(folder / "model.safetensors").items())
        assert type(model).__name__ == "LlamaForCausalLM" and tokenizer.chat_template
    settings = json.loads((moved / "implicit_reward.json").read_text())
    assert settings == {"version": 1, "beta": BETA, "reference_weight": 1.0}
    assert not (moved / "README.md").exists() and not (moved / "metrics.jsonl").exists()  # those are of the dpo stage
    assert ran.outcome.result.summary == "no held-out pairs"
    answers = [PromptedResponse([5, 6, 7, 8], 2)]
    scores = [score(load_implicit_reward(as_folder(folder)), answers, 0) for folder in (ran.out, moved)]
    assert scores[0] == scores[1] != [0.0]


def test_files_of_an_artifact_are_linked_and_those_of_a_user_copied(make: Run, chain: Any, tmp_path: Path) -> None:
    own = Path(shutil.copytree(chain["sft"].path, tmp_path / "mine"))
    out = make(reference=as_folder(own, "mine")).out
    assert (out / "model.safetensors").samefile(chain["dpo"].path / "model.safetensors")
    assert not (out / "reference" / "model.safetensors").samefile(own / "model.safetensors")
    (own / "model.safetensors").write_bytes(b"gone")
    assert load_implicit_reward(as_folder(out)) is not None


def test_an_adapter_s_own_files_stay_where_they_are(make: Run, chain: Any, as_input: Any, learn: Run) -> None:
    train = {"max_steps": 1, "batch_size": 8}
    tuned = learn("dpo", {"adapter": {"r": 2}, "train": train}, "pairs")
    out = make(policy=as_folder(tuned.out, "tuned")).out
    assert (tuned.out / "adapter").is_dir() and not (out / "adapter").exists()
    assert (out / "model.safetensors").read_bytes() == (tuned.out / "model.safetensors").read_bytes()


def test_one_model_with_a_lighter_reference_is_rewarded_by_its_likelihood(make: Run) -> None:
    assert "are the same weights: every reward would be 0" in refusal(make(reference="dpo", expect="failed"))
    reward = load_implicit_reward(as_folder(make(reference="dpo", reference_weight=0.25).out))
    whole = load_implicit_reward(as_folder(make(reference_weight=0.0).out))
    answers = [PromptedResponse([5, 9, 12, 30, 7], 2)]
    assert reward is not None and whole is not None
    assert score(reward, answers, 0) == pytest.approx([0.75 * score(whole, answers, 0)[0]], abs=1e-5)
    alike = ImplicitConfig(policy="m", reference="m", beta=1.0)
    said = "policy and reference are both `m`: every reward would be 0"
    assert [problem.found for problem in alike.check()] == [said]
    assert not ImplicitConfig(policy="m", reference="m", beta=1.0, reference_weight=0.5).check()


def test_another_beta_than_the_policy_s_is_told(make: Run) -> None:
    assert make().notes == []
    [note] = make(beta=1.0).notes
    assert note == "dpo was trained with beta 0.5: with 1 rewards are 2 times as large"


def test_the_card_has_the_accuracy_by_property(make: Run, tiny_rows: Any, write_jsonl: Any, tmp_path: Path) -> None:
    rows = [{**row, "differs_in": "manners" if i % 3 else None} for i, row in enumerate(tiny_rows("pairs_test"))]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    ran = make(test=file, property_column="differs_in")
    assert ran.outcome.result.metrics["accuracy_on_manners"] == 1.0
    assert "manners" in (ran.out / "reward_card.md").read_text()
    text = refusal(make(test=file, property_column="differs", expect="failed"))
    assert text.startswith("property_column is `differs`, and none of 60 held-out pairs has a value in that column")


def test_held_out_pairs_of_the_test_source_are_those_it_reports_on(make: Run, chain: Any) -> None:
    source = DataSource(path=str(chain.recipe.parent / "pairs.jsonl"), held_out=0.1)
    ran = make(test=source)
    assert ran.outcome.result.rows == {"held_out": 16}
    assert len((ran.out / "held_out_scores.jsonl").read_text().splitlines()) == 16


def test_a_stopped_report_goes_on_with_what_it_has_not_scored(
    make: Run, chain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "AT_ONCE", 25)
    pairs = chain.recipe.parent / "pairs_test.jsonl"
    whole = make(test=pairs, name="whole")
    stopped = make(test=pairs, name="again", out=tmp_path / "again", stopping=StopAfter(1), expect="stopped")
    kept = {file: file.stat().st_mtime_ns for file in (stopped.work / "scores").iterdir()}
    assert len(kept) == 2 and not (stopped.out / "reward_card.json").exists()
    scored: list[int] = []
    plain = stage.score
    monkeypatch.setattr(
        stage, "score", lambda model, answers, pad: scored.append(len(answers)) or plain(model, answers, pad)
    )
    again = make(test=pairs, name="again", out=tmp_path / "again")
    assert scored == [10, 25, 25, 10]  # 60 = 25 + 25 + 10 of each side, of which two parts were scored
    assert all(file.stat().st_mtime_ns == then for file, then in kept.items())
    for name in CARD:
        assert (again.out / name).read_bytes() == (whole.out / name).read_bytes()
    done = [(event.step, event.total) for event in again.events if event.kind == "progress"][-6:]
    assert done == [(25, 120), (50, 120), (60, 120), (85, 120), (110, 120), (120, 120)]


def test_ppo_is_paid_by_it_and_its_value_function_starts_from_the_policy(
    made: ResolvedInput, chain: Any, as_input: Any, run_stage: Run, read_rows: Any, gain_over_sft: Any
) -> None:
    train = {"iterations": 1, "rollout_batch": 8, "minibatches": 1, "max_new_tokens": 12, "eval_every": 1}
    inputs = {"model": as_input(chain["sft"]), "reward": made, "watch": made}
    config = {"train": {**train, "eval_prompts": 4}, "layout": "separate", "reward": ["taste"], "watch": ["taste"]}
    data = {"data": chain.recipe.parent / "asks.jsonl"}
    ran = run_stage("ppo", config, data=data, inputs=inputs)
    gain, rows = gain_over_sft(chain["dpo"].path), read_rows(ran.out / "samples.jsonl")
    asked = {row["prompt"] for row in read_rows(data["data"])}
    ended = 0
    for row in rows[:4]:  # before the first step the policy is `sft`, as the reference of the reward is
        [question] = [one for one in asked if one in row["prompt"]]
        if row["reward"] == pytest.approx(BETA * gain(question, row["response"]), abs=1e-3):
            ended += 1
    assert ended >= 3  # an answer that was cut has no end token, which `gain` counts
    assert ran.history[-1]["eval_watch"] == pytest.approx(ran.history[-1]["eval_reward"], abs=1e-6)


def test_ppo_gets_it_token_by_token_where_asked(made: ResolvedInput, chain: Any, as_input: Any, run_stage: Run) -> None:
    train = {"iterations": 2, "rollout_batch": 8, "minibatches": 1, "max_new_tokens": 12, "eval_every": 1}
    data, inputs = {"data": chain.recipe.parent / "asks.jsonl"}, {"model": as_input(chain["sft"]), "reward": made}

    def ran(expect: str = "done", **more: Any) -> Any:
        chosen = {**inputs, "reward": more.pop("reward_model", made)}
        config = {"train": {**train, **more}, "reward": ["taste"]}
        return run_stage("ppo", config, data=data, inputs=chosen, expect=expect)

    whole, tokens = ran(), ran(token_rewards=True)
    first, other = (next(row for row in one.history if "return_mean" in row) for one in (whole, tokens))
    assert first["reward"] == other["reward"]  # of the same first rollout
    assert first["return_mean"] != other["return_mean"]
    text = refusal(ran("failed", token_rewards=True, reward_model=as_input(chain["rm"])))
    assert text.startswith("stage ppo: train.token_rewards is true, and no reward is an implicit one")


def test_a_stopped_ppo_with_token_rewards_goes_on_to_the_same_policy(
    made: ResolvedInput, chain: Any, as_input: Any, run_stage: Run, tmp_path: Path
) -> None:
    train = {"iterations": 3, "rollout_batch": 8, "minibatches": 1, "max_new_tokens": 12, "token_rewards": True}
    data, inputs = {"data": chain.recipe.parent / "asks.jsonl"}, {"model": as_input(chain["sft"]), "reward": made}
    config = {"train": {**train, "score_scaling": "running", "eval_every": 1}, "reward": ["taste"]}
    whole = run_stage("ppo", config, data=data, inputs=inputs, name="whole")
    out = tmp_path / "again"
    run_stage("ppo", config, data=data, inputs=inputs, out=out, stopping=StopAfter(1), expect="stopped")
    again = run_stage("ppo", config, data=data, inputs=inputs, out=out)
    steps, before = (
        [
            {key: value for key, value in row.items() if "seconds" not in key}
            for row in one.history
            if "return_mean" in row
        ]
        for one in (again, whole)
    )
    assert steps == before and len(steps) == 3
    weights = [load_file(one.out / "model.safetensors") for one in (again, whole)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"reward_functions": ["f.py:f"]}, "train.token_rewards is true, and no reward is a model"),
        ({"reward": ["a", "b"], "reward_combine": "min"}, "train.token_rewards is true, and reward_combine is min"),
        ({"reward": ["a"]}, ""),
    ],
)
def test_token_rewards_that_cannot_be_given_are_told_before_anything_runs(fields: Any, said: str) -> None:
    config = PPOConfig(data="d", model="m", train={"token_rewards": True}, **fields)
    assert [problem.found for problem in config.check()] == ([said] if said else [])


def test_a_value_function_never_starts_from_an_implicit_reward(
    made: ResolvedInput, chain: Any, as_input: Any, make_context: Any
) -> None:
    inputs = {"model": [as_input(chain["sft"])], "reward": [made]}
    ctx = replace(make_context(), inputs=inputs)
    config = PPOConfig(data="d", model="sft", reward=["taste"], layout="separate")
    value = load_value_start(ctx, config, load_tokenizer(as_input(chain["sft"])))
    assert not value.score.weight.any()
    start = load_file(chain["sft"].path / "model.safetensors")
    assert torch.equal(value.model.embed_tokens.weight, start["model.embed_tokens.weight"])


def test_trl_s_trainers_are_paid_by_it(made: ResolvedInput, chain: Any, as_input: Any, run_stage: Run) -> None:
    train = {"max_steps": 1, "batch_size": 8, "num_generations": 4, "max_new_tokens": 12}
    inputs = {"model": as_input(chain["sft"]), "reward": made}
    ran = run_stage(
        "grpo", {"train": train, "reward": ["taste"]}, data={"data": chain.recipe.parent / "asks.jsonl"}, inputs=inputs
    )
    assert ran.history[0]["reward"] != 0.0


def test_it_judges_evaluates_and_chooses(
    made: ResolvedInput, chain: Any, as_input: Any, run_stage: Run, read_rows: Any, gain_over_sft: Any
) -> None:
    gain, world = gain_over_sft(chain["dpo"].path), chain.recipe.parent
    judged = run_stage("judge", {}, data={"data": world / "pairs_test.jsonl"}, inputs={"reward": made})
    for row in read_rows(judged.out / "verdicts.jsonl")[:6]:
        for turns, value in zip((row["first"], row["second"]), row["scores"], strict=True):
            assert value == pytest.approx(BETA * gain(row["prompt"][0]["content"], turns[0]["content"]), abs=1e-4)
    reads = {"data": world / "asks.jsonl"}
    sampled = run_stage(
        "sample",
        {"n": 3, "max_new_tokens": 12, "reward": ["taste"]},
        data=reads,
        inputs={"models": [as_input(chain["sft"])], "reward": made},
    )
    first = read_rows(sampled.out / "candidates.jsonl")[0]
    question, answers = first["prompt"][0]["content"], [one["text"] for one in first["candidates"]]
    scores = first["reward_scores"]["taste"]
    assert scores == pytest.approx([BETA * gain(question, text) for text in answers], abs=1e-4)
    best = run_stage(
        "best_of_n",
        {"reward": ["taste"], "resamples": 100},
        data={"data": sampled.out / "candidates.jsonl"},
        inputs={"reward": made},
    )
    demo = read_rows(best.out / "demos.jsonl")[0]["messages"]
    assert [turn["content"] for turn in demo] == [question, answers[scores.index(max(scores))]]
    report = run_stage(
        "evaluate",
        {"baseline": "sft", "max_new_tokens": 12, "resamples": 100, "reward": "taste"},
        data=reads,
        inputs={"models": [as_input(chain[name]) for name in ("sft", "dpo")], "reward": made},
    )
    metrics = report.outcome.result.metrics
    # What DPO raised is what it likes: its own mean reward is above that of its start.
    assert metrics["dpo/reward"] > metrics["sft/reward"]


@pytest.fixture
def other_tokenizer(chain: Any, tmp_path: Path) -> ResolvedInput:
    """The chain's `sft` with another chat template."""
    folder = Path(shutil.copytree(chain["sft"].path, tmp_path / "other"))
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|user|>", "<|user|> "))
    return as_folder(folder, "other")


def test_models_that_make_no_reward_are_refused(
    make: Run, chain: Any, as_input: Any, other_tokenizer: ResolvedInput, tmp_path: Path
) -> None:
    text = refusal(make(reference=other_tokenizer, expect="failed"))
    assert text.startswith("policy `dpo` and reference `other` have different tokenizers: the chat template of `other`")
    assert text.endswith("Name the model that the policy was trained from as `reference`")
    text = refusal(make(policy=as_folder(chain["rm"].path, "rm"), expect="failed"))
    assert "policy: `rm` is a reward model: it gives a score, and no probabilities" in text
    text = refusal(make(reference=as_input(chain["dpo"]), expect="failed"))
    assert "`dpo` and `dpo` are the same weights: every reward would be 0" in text
    alone = Path(shutil.copytree(chain["rm"].path / "adapter", tmp_path / "adapter"))
    assert "`alone` has no config.json" in refusal(make(policy=as_folder(alone, "alone"), expect="failed"))


def test_pairs_that_do_not_fit_are_told(make: Run, chain: Any, write_jsonl: Any, tmp_path: Path) -> None:
    row = {"prompt": "the cat has which colour ?", "chosen": "it is red . " * 40, "rejected": "go away ."}
    text = refusal(make(test=write_jsonl(tmp_path / "long.jsonl", [row]), expect="failed"))
    assert text.startswith("no pair of `test` fits") and "at most 64 tokens" in text
    short = Path(shutil.copytree(chain["sft"].path, tmp_path / "short"))
    settings = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 9}))
    text = refusal(make(reference=as_folder(short), test=chain.recipe.parent / "pairs_test.jsonl", expect="failed"))
    assert text.startswith("no pair of `test` fits") and "at most 9 tokens" in text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('{"version": 2, "beta": 0.5}', "is of version 2"),
        ('{"version": 1}', "cannot be read"),
        ("[]", "cannot be read"),
        ('{"version": 1, "beta": -1}', "has beta -1"),
        ('{"version": 1, "beta": NaN}', "has beta nan"),
        ('{"version": 1, "beta": 1, "reference_weight": 1.5}', "has reference_weight 1.5"),
    ],
)
def test_broken_settings_are_told(made: ResolvedInput, settings: str, said: str) -> None:
    (Path(made.path) / "implicit_reward.json").write_text(settings)
    with pytest.raises(PipelineError, match=said):
        load_implicit_reward(made)


def test_no_head_is_put_on_it(made: ResolvedInput, chain: Any, learn: Run) -> None:
    """With a new head it would load as a reward model that knows nothing."""
    with pytest.raises(PipelineError, match="`taste` is an implicit reward: two language models"):
        load_reward_model(made, load_tokenizer(made))
    ran = learn("reward", {"train": {"max_steps": 1, "batch_size": 8}}, "pairs", model=made, expect="failed")
    assert "is an implicit reward" in refusal(ran)


def test_both_forms_are_opened_by_one_function(
    made: ResolvedInput, chain: Any, as_input: Any, make_context: Any
) -> None:
    tokenizer = load_tokenizer(made)
    implicit, scalar = (open_scorer(make_context(), one, tokenizer) for one in (made, as_input(chain["rm"])))
    assert isinstance(implicit, ImplicitReward) and not isinstance(scalar, ImplicitReward)
    assert not any(parameter.requires_grad for model in implicit.models for parameter in model.parameters())
    ids = [5, 6, 7, 8, 9]
    head = AutoModelForSequenceClassification.from_pretrained(chain["rm"].path).eval()
    with torch.no_grad():
        expected = head(torch.tensor([ids])).logits[0, 0].item()
    # Where the response begins makes no difference to a score of the whole.
    for cut in (1, 3):
        assert score(scalar, [PromptedResponse(ids, cut)], tokenizer.pad_token_id) == pytest.approx(
            [expected], abs=1e-5
        )


def test_a_pushed_one_is_found_on_the_hub_by_its_id(
    made: ResolvedInput, chain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache, offline: policy, reference and settings are one repository."""
    for name, folder in (("taste", Path(made.path)), ("rm", chain["rm"].path)):
        place = tmp_path / "hub" / f"models--tiny--{name}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("c" * 40)
        shutil.copytree(folder, place / "snapshots" / ("c" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    taste, rm = (ResolvedInput(ref=one, name=one, kind="external", fingerprint=f"hub:{one}", path=one) for one in HUB)
    answers = [PromptedResponse([5, 6, 7, 8], 2)]
    assert score(load_implicit_reward(taste), answers, 0) == score(load_implicit_reward(made), answers, 0)
    assert load_implicit_reward(rm) is None
