"""From answers to a report: every figure of a comparison worked out by hand."""

import dataclasses

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.evaluation.answers import Answers, Prompt, samples
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.stats.intervals import Bootstrap, wilson


def test_win_rate_and_means(answers, prompts):
    dpo = compare(answers, prompts, bootstrap=Bootstrap(seed=0), baseline="sft").models["dpo"]
    # 15 won, 2 tied, 3 lost of 20: 16 / 20.
    assert dpo.win_rate.value == pytest.approx(0.8)
    assert (dpo.win_counts.wins, dpo.win_counts.ties, dpo.win_counts.losses) == (15, 2, 3)
    assert dpo.gold.value == pytest.approx((15 * 2 + 2) / 20)
    assert dpo.reward.value == 5
    assert dpo.length.value == 12
    assert dpo.eos_rate == wilson(19, 20)
    # 3 ln 2 per answer of 12 tokens.
    assert dpo.kl.value == pytest.approx(3 * np.log(2))
    assert dpo.kl_per_token.value == pytest.approx(np.log(2) / 4)
    # k3 of r = 1/2: -1/2 + ln 2, three times.
    assert dpo.kl_k3.value == pytest.approx(3 * (np.log(2) - 0.5))


def test_likelihood_under_the_baseline_is_per_token(answers, prompts):
    models = compare(answers, prompts, bootstrap=Bootstrap(seed=0), baseline="sft").models
    assert models["sft"].nll is None
    assert models["dpo"].nll.value == pytest.approx(2.0)  # 480 nats over 240 tokens
    assert models["sft (greedy)"].nll.value == pytest.approx(280 / 180)  # not the mean of 1 and 2
    empty = dataclasses.replace(answers[0], kl=None, kl_k3=None, nll=[np.nan, *[24.0] * 19], lengths=[0, *[12] * 19])
    again = compare([empty, *answers[1:]], prompts, bootstrap=Bootstrap(seed=0), baseline="sft").models["dpo"]
    assert again.nll.value == pytest.approx(2.0) and again.nll.n == 19


def test_correctness_beside_the_win_rate(answers, prompts):
    report = compare(answers, prompts, bootstrap=Bootstrap(seed=0), baseline="sft")
    dpo = report.models["dpo"]
    assert dpo.correct == wilson(10, 20)
    assert dpo.tasks["sum"].correct == wilson(10, 10)
    assert dpo.tasks["fact"].correct == wilson(0, 10)
    # Ten facts lost, none won: -1 with p = 2/2¹⁰.
    assert dpo.tasks["fact"].delta.value == -1
    assert dpo.tasks["fact"].delta.p_value == pytest.approx(2 / 1024)
    assert dpo.tasks["sum"].delta.value == 0
    assert dpo.delta.value == pytest.approx(-0.5)
    assert dpo.lower_tasks(report.level) == ["fact"]


def test_the_baseline_is_not_compared_with_itself(answers, prompts):
    sft = compare(answers, prompts, bootstrap=Bootstrap(seed=0), baseline="sft").models["sft"]
    assert (sft.win_rate, sft.win_counts, sft.delta) == (None, None, None)
    assert sft.tasks["sum"].delta is None
    assert sft.kl.value == 0
    assert sft.gold.value == 1


def test_prompts_without_a_checkable_answer_are_left_out(answers, prompts):
    greedy = compare(answers, prompts, bootstrap=Bootstrap(seed=0), baseline="sft").models["sft (greedy)"]
    assert greedy.correct.n == 19
    assert greedy.tasks["sum"].correct.n == 9
    assert greedy.tasks["sum"].delta.n == 9
    assert greedy.win_rate.value == 0.5
    assert greedy.kl is None


def test_the_reference_is_at_distance_zero(answers, prompts):
    unmeasured = [answers[0], dataclasses.replace(answers[1], kl=None, kl_k3=None), answers[2]]
    models = compare(unmeasured, prompts, bootstrap=Bootstrap(seed=0), baseline="sft").models
    assert (models["sft"].kl.value, models["sft"].kl.n) == (0, 20)
    assert models["sft (greedy)"].kl is None
    # Not when KL was measured to another model, nor when nobody's was.
    assert (
        compare(unmeasured, prompts, bootstrap=Bootstrap(seed=0), baseline="sft", reference="base").models["sft"].kl
        is None
    )
    nobody = [dataclasses.replace(each, kl=None, kl_k3=None) for each in answers]
    assert compare(nobody, prompts, bootstrap=Bootstrap(seed=0), baseline="sft").models["sft"].kl is None


def test_several_samples_per_prompt_count_prompts(prompts):
    def model(name, gold, correct):
        return Answers(name, ["x"] * 20, np.full((20, 2), 5), np.ones((20, 2)), gold=gold, correct=correct)

    baseline = model("sft", np.ones((20, 2)), np.ones((20, 2)))
    # Two samples, one better and one equal: 0.75 per prompt; half of them correct.
    policy = model("dpo", np.tile([2, 1], (20, 1)), np.tile([1, 0], (20, 1)))
    dpo = compare([policy, baseline], prompts, bootstrap=Bootstrap(seed=0), baseline="sft").models["dpo"]
    assert (dpo.win_rate.value, dpo.win_rate.n) == (0.75, 20)
    assert (dpo.correct.value, dpo.correct.n) == (0.5, 20)
    assert dpo.delta.value == -0.5
    assert dpo.eos_rate.n == 20


def test_judge(answers, prompts):
    report = compare(answers, prompts, bootstrap=Bootstrap(seed=0), baseline="sft")
    assert report.judge == "gold"
    # By reward dpo wins everywhere.
    by_reward = compare(answers, prompts, bootstrap=Bootstrap(seed=0), baseline="sft", judge="reward")
    assert by_reward.models["dpo"].win_rate.value == 1.0
    assert by_reward.models["dpo"].win_rate.low < 1.0
    # Without gold scores of one model, the reward model judges.
    some = [dataclasses.replace(answers[0], gold=None), *answers[1:]]
    assert compare(some, prompts, bootstrap=Bootstrap(seed=0), baseline="sft").judge == "reward"


def test_same_seed_same_report(answers, prompts):
    one = compare(answers, prompts, bootstrap=Bootstrap(seed=3), baseline="sft")
    assert one == compare(answers, prompts, bootstrap=Bootstrap(seed=3), baseline="sft")


def test_samples_keep_prompts_and_scores(answers, prompts):
    rows = samples(answers, prompts, baseline="sft")
    assert [each.prompt for each in rows] == [prompt.text for prompt in prompts]
    assert (rows[19].answers["dpo"].score, rows[19].answers["sft"].score) == (0, 1)
    assert rows[1].answers["dpo"].correct == 0
    assert rows[0].answers["sft (greedy)"].correct is None


def test_all_that_is_wrong_is_said_at_once(answers, prompts):
    broken = [*answers, dataclasses.replace(answers[0], gold=[1, 2], responses=["a"])]
    with pytest.raises(PipelineError) as caught:
        compare(broken, prompts, bootstrap=Bootstrap(seed=0), baseline="stf")
    text = str(caught.value)
    assert "baseline `stf`" in text
    assert "Did you mean `sft`?" in text
    assert "`dpo` 2 times" in text
    assert "2 gold; expected one for each of the 20 prompts" in text
    assert "1 responses" in text


def test_needs_prompts_and_a_judge(answers, prompts):
    with pytest.raises(PipelineError, match="no prompts"):
        compare([], [], bootstrap=Bootstrap(seed=0), baseline="sft")
    bare = [dataclasses.replace(each, gold=None, reward=None) for each in answers]
    with pytest.raises(PipelineError, match="no judge"):
        compare(bare, prompts, bootstrap=Bootstrap(seed=0), baseline="sft")
    half = [dataclasses.replace(answers[0], gold=None), *answers[1:]]
    with pytest.raises(PipelineError, match="no gold scores"):
        compare(half, prompts, bootstrap=Bootstrap(seed=0), baseline="sft", judge="gold")


def test_no_task_no_table():
    one = Answers("a", ["x"], [1], [True], gold=[1.0])
    report = compare([one], [Prompt("p")], bootstrap=Bootstrap(seed=0), baseline="a")
    assert report.task_names == []
    assert report.models["a"].correct is None
