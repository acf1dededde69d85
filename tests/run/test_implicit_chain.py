"""Implicit rewards through plan, check and the real runner: what they cost, what is refused, what their card says."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.plan.evaluation_notes import evaluation_notes
from pipeline.preflight.forecast import Forecast, forecasts

TASTE = "  taste: {kind: implicit_reward, policy: dpo, reference: sft, beta: 0.5, test: pairs_test, group_by: task}\n"
PPO = "{iterations: 1, rollout_batch: 8, minibatches: 1, max_new_tokens: 12, eval_every: 1}"
AFTER = f"""\
  ppo: {{kind: ppo, data: asks, model: sft, reward: taste, train: {PPO}}}
  verdicts: {{kind: judge, data: pairs_test, reward: taste}}
"""


def extended(runs: Any, stages: str) -> Any:
    """Return the recipe with further stages."""
    runs.recipe.write_text(runs.recipe.read_text().replace("  report:\n", f"{stages}  report:\n"))
    return runs


def test_a_chain_with_it_runs_and_its_card_s_code_gives_its_scores(
    finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighted = TASTE.replace("beta: 0.5", "beta: 0.5, reference_weight: 0.6")
    runs = extended(finished, weighted + AFTER.replace("eval_every: 1}", "eval_every: 1, token_rewards: true}"))
    runs(until="ppo")
    taste, ppo = (runs.store.artifacts(name)[-1] for name in ("taste", "ppo"))
    dpo = runs.store.artifacts("dpo")[-1].manifest
    assert taste.manifest.makes == "reward" and taste.manifest.lineage["parent"] == dpo.fingerprint
    assert {record.name for record in ppo.manifest.inputs} == {"sft", "taste"}
    runs(until="ppo")
    assert {what for what, stage in runs.seen.calls if stage in ("taste", "ppo")} == {"cached"}
    text = (taste.path / "README.md").read_text(encoding="utf-8")
    assert "AutoModelForSequenceClassification" not in text and "pipeline_tag: text-generation" in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    row = json.loads((taste.path / "held_out_scores.jsonl").read_text().splitlines()[0])
    own = code[1].replace('"Hello!"', repr(row["prompt"][0]["content"]))
    own = own.replace('"Hello, how are you?"', repr(row["chosen"][0]["content"]))
    monkeypatch.chdir(taste.path)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        exec(own, {})  # what a reader of the card runs
    assert float(shown.getvalue()) == pytest.approx(row["chosen_score"], abs=1e-4)


def test_a_policy_tested_on_what_it_learnt_from_is_told(finished: Any) -> None:
    names = ("pairs", "learnt", "shown")
    tests = {name: TASTE.replace("pairs_test", name).replace("taste", f"on_{name}") for name in names}
    runs = extended(finished, "".join(tests.values()))
    sources = "  learnt: {path: pairs.jsonl}\n  shown: {path: shown.jsonl}\n"
    runs.recipe.write_text(runs.recipe.read_text().replace("  asks:", f"{sources}  asks:", 1))
    demos = [json.loads(line)["messages"] for line in (runs.recipe.parent / "demos.jsonl").read_text().splitlines()]
    rows = [{"prompt": demo[0]["content"], "chosen": "it is red .", "rejected": "no .", "task": "x"} for demo in demos]
    (runs.recipe.parent / "shown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes = evaluation_notes(runs.plan(), runs.store)
    told = [note for note in notes if note.startswith("stage on_learnt: ")]
    # `dpo` learnt from 144 of the 160 pairs; what `sft` learnt is in both models, and goes unsaid.
    assert len(told) == 1 and "144 of 160 prompts of learnt are ones that dpo learnt from" in told[0]
    assert not [note for note in notes if note.startswith(("stage on_pairs: ", "stage on_shown: "))]
    runs(until="on_learnt")
    [said] = [event.text for event in runs.seen.events if event.kind == "note"]
    assert said == told[0].replace("stage on_learnt", "warning")


def forecast_of(runs: Any, name: str, *sets: str) -> Forecast:
    [need] = [one for one in forecasts(runs.plan(*sets), runs.store)[0] if one.stage.spec.name == name]
    return need


@pytest.mark.parametrize("is_made", [False, True])
def test_both_models_are_in_the_forecast(finished: Any, is_made: bool) -> None:
    by_rm = AFTER.replace("reward: taste", "reward: rm").replace("ppo:", "by_rm:", 1).partition("  verdicts")[0]
    runs = extended(finished, TASTE + AFTER + by_rm)
    if not is_made:
        own = forecast_of(runs, "taste")
        assert own.tokens and own.flops and own.memory.weights == 2 * 4 * own.shape.parameters
    else:
        runs(until="taste")
    implicit, scalar = forecast_of(runs, "ppo"), forecast_of(runs, "by_rm")
    shape = implicit.shape
    head = 0 if shape.tied else shape.vocab * shape.hidden  # a head that gives a score takes its place
    # Beside the reward model PPO holds its own reference, in fp32 on a CPU.
    assert implicit.memory.others == 4 * (1 + 2) * shape.parameters
    assert scalar.memory.others == 4 * (2 * shape.parameters - head)
    assert implicit.flops and scalar.flops and implicit.flops > scalar.flops


def test_a_value_model_is_sized_as_the_policy(finished: Any) -> None:
    runs = extended(finished, TASTE + AFTER)
    apart = forecast_of(runs, "ppo", "stages.ppo.layout=separate")
    shape = apart.shape
    assert apart.trained == 2 * shape.parameters - shape.vocab * shape.hidden * (not shape.tied)


def other_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|user|>", "<|user|> "))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("reference: sft", "reference: dpo"), "policy and reference are both `dpo`: every reward would be 0"),
        (("policy: dpo", "policy: rm"), "policy: `rm` is of kind reward; expected a stage that makes a model"),
        (("beta: 0.5, ", ""), "`beta` is missing"),
        (("beta: 0.5", "beta: 0"), "beta is 0"),
        (("beta: 0.5", "beta: .inf"), "`.inf` is not a finite number"),
        (("test: pairs_test, ", ""), "group_by is `task`, and there are no pairs to report on"),
        (("reference: sft", "reference: other"), "policy `dpo` and reference `other` have different tokenizers"),
    ],
)
def test_what_makes_no_reward_is_refused_before_anything_runs(
    finished: Any, chain: Any, change: tuple[str, str], said: str
) -> None:
    folder = Path(shutil.copytree(chain["sft"].path, finished.recipe.parent / "other"))
    other_template(folder)
    runs = extended(finished, TASTE.replace(*change))
    problems = runs.problems()
    assert [str(problem) for problem in problems if said in str(problem)], problems
    assert all(problem.stage in ("taste", "") for problem in problems), problems


def test_the_columns_of_the_pairs_that_are_reported_on_are_checked(finished: Any) -> None:
    runs = extended(finished, TASTE)
    file = runs.recipe.parent / "pairs_test.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps({**row, "differs_in": "manners"}) + "\n" for row in rows))
    asked = "stages.taste.property_column=differs_in"
    assert "data pairs_test: nothing reads `differs_in`" not in runs.check(asked).notes
    for split, count in (("", 60), ("data.pairs_test.held_out=0.5", 29)):
        (problem,) = runs.problems("stages.taste.property_column=differs", *([split] if split else []))
        assert problem.stage == "taste" and f"none of {count} held-out pairs has a value" in problem.found


def test_no_training_starts_from_it(finished: Any) -> None:
    runs = extended(finished, TASTE + "  rm2: {kind: reward, data: pairs, model: taste}\n")
    [problem] = runs.problems()
    assert "model: `taste` is of kind implicit_reward; expected a stage that makes a model" in str(problem)


@pytest.mark.parametrize("is_made", [False, True])
def test_token_rewards_are_refused_before_anything_runs_where_no_reward_can_be_given_so(
    finished: Any, chain: Any, is_made: bool
) -> None:
    folder = Path(shutil.copytree(chain["sft"].path, finished.recipe.parent / "other"))
    other_template(folder)
    runs = extended(finished, TASTE + AFTER.replace("eval_every: 1}", "eval_every: 1, token_rewards: true}"))
    if is_made:
        runs(until="taste")
    asked = {"taste": "", "[rm, taste]": "", "rm": "another kind", "taste of another": "another tokenizer"}
    asked["rm of now"] = "another kind, and not made yet"
    for reward, refused in asked.items():
        sets = [f"stages.ppo.reward={reward.partition(' of ')[0] if refused else reward}"]
        sets += ["stages.ppo.model=other"] if "tokenizer" in refused else []
        sets += ["stages.rm.seed=5"] if "not made" in refused else []
        if not refused:
            assert runs.check(*sets)
            continue
        (problem,) = runs.problems(*sets)
        assert problem.found == (
            "train.token_rewards is true, and no reward is an implicit one with the policy's tokenizer"
        )
        assert problem.stage == "ppo" and problem.where
