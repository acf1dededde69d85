"""What a comparison comes to: which figure decides, and what is said where two contradict."""

import numpy as np
import pytest

from pipeline.evaluation.answers import Answers, Prompt
from pipeline.evaluation.comparison import compare
from pipeline.evaluation.report.conclusion import Figures, conclude, of_model, summary, winners
from pipeline.evaluation.report.page import render
from pipeline.evaluation.report.record import WinCounts
from pipeline.evaluation.report.tables import headline
from pipeline.evaluation.stats.estimate import Delta, Estimate
from pipeline.evaluation.stats.intervals import Bootstrap

UP = Delta(value=0.18, low=0.14, high=0.22, n=500, p_value=1e-9)
DOWN = Delta(value=-0.18, low=-0.22, high=-0.14, n=500, p_value=1e-9)
FLAT = Delta(value=0.01, low=-0.02, high=0.04, n=500, p_value=0.6)
TORN = Delta(value=0.08, low=0.01, high=0.15, n=62, p_value=0.12)
"""Its interval leaves out zero, its test does not."""


def rate(value, low, high, p_value=1e-6, wins=200, losses=100):
    return {
        "win_rate": Estimate(value=value, low=low, high=high, n=500),
        "counts": WinCounts(wins=wins, ties=500 - wins - losses, losses=losses, p_value=p_value, won_by=2.6, lost_by=1),
    }


EVEN = rate(0.48, 0.44, 0.52, p_value=0.3, wins=200, losses=220)
WON, LOST = rate(0.7, 0.66, 0.74), rate(0.3, 0.26, 0.34, wins=100, losses=200)


@pytest.mark.parametrize(
    ("figures", "outcome", "deciding"),
    [
        ({"correct": UP, "score": UP, **EVEN}, "better", "correct"),
        ({"correct": DOWN, "score": DOWN, **LOST}, "worse", "correct"),
        ({"correct": FLAT, "score": UP, **WON}, "better", "win rate"),
        ({"correct": FLAT, "score": UP, **EVEN}, "better", "mean gold score"),
        ({"correct": DOWN, **WON}, "mixed", "correct"),  # wins by tone, forgets facts
        ({"score": DOWN, **WON}, "mixed", "win rate"),
        ({"correct": FLAT, "score": FLAT, **EVEN}, "even", ""),
        ({"correct": TORN, "score": FLAT, **EVEN}, "even", ""),
        (rate(0.64, 0.286, 0.929, p_value=0.45), "even", ""),  # an interval across one half is no win
        (rate(0.64, 0.51, 0.77, p_value=0.06), "even", ""),  # nor is one that the test does not confirm
        ({}, "even", ""),
    ],
)
def test_what_decides(figures, outcome, deciding):
    conclusion = conclude(Figures(judge="gold", level=0.95, **figures), "dpo", "ppo")
    assert (conclusion.outcome, conclusion.deciding) == (outcome, deciding)


def test_the_deciding_figure_leads_and_a_contradiction_is_explained():
    conclusion = conclude(Figures(judge="gold", level=0.95, correct=UP, score=UP, **EVEN), "dpo", "ppo")
    assert conclusion.lines == [
        "dpo is better than ppo: correct +18.0 points [14.0, 22.0], p = 1e-09.",
        "The win rate leans the other way, within noise (48.0 %).",
        "A win rate counts prompts, a mean counts by how much: "
        "dpo wins 200 prompts by 2.60 on average and loses 220 by 1.00.",
    ]


def test_two_figures_beyond_noise_on_two_sides_are_both_told():
    conclusion = conclude(Figures(judge="gold", level=0.95, correct=DOWN, **WON), "ppo", "sft")
    assert conclusion.lines == [
        "ppo is worse than sft by correct, but not by every figure: correct -18.0 points [-22.0, -14.0], p = 1e-09.",
        "The win rate says the opposite: win rate 70.0 % [66.0, 74.0], p = 1e-06.",
    ]


def test_gold_counts_where_a_reward_model_judges():
    conclusion = conclude(Figures(judge="reward", level=0.95, gold=DOWN, score=UP, **WON), "ppo", "sft")
    assert (conclusion.outcome, conclusion.deciding) == ("mixed", "mean gold score")


def model(name, gold, **more):
    count = len(gold)
    common = {"responses": ["x"] * count, "lengths": [5] * count, "ended": [True] * count}
    return Answers(name, gold=gold, **{**common, **more})


@pytest.fixture
def small():
    """Fourteen prompts: greedy decoding of sft wins 9 and loses 5, dpo wins all, ppo as many as it loses."""
    base = np.zeros(14)
    return compare(
        [
            model("sft", base),
            model("sft (greedy)", np.array([1.0] * 9 + [-1.0] * 5), is_variant=True),
            model("dpo", base + 1),
            model("ppo", np.array([1.0, -1.0] * 7)),
        ],
        [Prompt(f"p{i}") for i in range(14)],
        bootstrap=Bootstrap(seed=0),
        baseline="sft",
    )


def test_neither_a_variant_nor_a_draw_wins(small):
    # 9 / 14 = 64.3 %, the highest win rate of a model that is no winner.
    assert small.models["sft (greedy)"].win_rate.value == pytest.approx(9 / 14)
    assert summary(small) == "better than sft: dpo; even: ppo"
    assert winners(small) == ["dpo"]
    bare = small.model_copy(update={"models": {name: m for name, m in small.models.items() if name != "dpo"}})
    assert summary(bare) == "none is better than sft; even: ppo"
    assert winners(bare) == []
    alone = small.model_copy(update={"models": {"sft": small.models["sft"]}})
    assert summary(alone) == "sft alone: nothing to compare it with"


def test_a_sample_is_told_wherever_its_figures_are(small):
    sample = small.model_copy(update={"available": 500, "sampled_by": "task"})
    assert summary(sample).endswith("(on 14 of 500 prompts)")
    assert "14 of 500 prompts, a sample stratified by task (seed 0)" in render(sample, [], [])
    assert "14 prompts, the same for all models" in render(small, [], [])


def test_page_leads_with_the_conclusions_and_warnings(small):
    page = render(small.model_copy(update={"warnings": ["the judge guesses"]}), [], [])
    lines = page.splitlines()
    assert lines[2] == "> **Warning:** the judge guesses"
    assert lines[4].startswith("- dpo is better than sft: win rate 100.0 % [")
    assert lines[5].startswith("- ppo cannot be told from sft beyond noise (win rate 50.0 % [")
    assert lines[6].startswith("- sft (greedy): the checkpoint of sft decoded in another way")


def test_the_sentence_of_a_model_has_the_figures_of_its_row(answers, prompts):
    report = compare(answers, prompts, bootstrap=Bootstrap(seed=0), baseline="sft")
    text = of_model(report, "dpo").text
    header, *rows = headline(report)
    row = next(row for row in rows if row[0] == "dpo")
    # 50 points fewer correct answers decide, although it wins 80 %.
    assert text.startswith("dpo is worse than sft by correct, but not by every figure: correct -50.0 points [")
    assert row[header.index("win rate vs sft")] in " ".join(of_model(report, "dpo").contradictions)
    assert row[header.index("correct")] == "50.0 % ▼"


def test_an_interval_that_the_test_does_not_confirm_is_explained():
    # A reader of the table sees [51.0, 77.0] beside "cannot be told from"; the sentence says why.
    torn = rate(0.64, 0.51, 0.77, p_value=0.06)
    conclusion = conclude(Figures(judge="gold", level=0.95, correct=FLAT, score=FLAT, **torn), "dpo", "ppo")
    assert conclusion.lines == [
        "dpo cannot be told from ppo beyond noise (correct +1.0 points [-2.0, 4.0], p = 0.6).",
        "Interval and test disagree near the edge, so nothing is claimed from it: "
        "win rate 64.0 % [51.0, 77.0], p = 0.06.",
    ]
    alone = conclude(Figures(judge="gold", level=0.95, **torn), "dpo", "ppo")
    assert alone.lines[1:] == ["Interval and test disagree near the edge, so nothing is claimed from it: win rate."]
    assert len(conclude(Figures(judge="gold", level=0.95, correct=FLAT, **EVEN), "dpo", "ppo").lines) == 1


def test_one_prompt_is_one_prompt():
    counts = WinCounts(wins=1, ties=0, losses=9, p_value=0.02, won_by=20.0, lost_by=0.1)
    lost = Estimate(value=0.1, low=0.0, high=0.3, n=10)
    conclusion = conclude(Figures(judge="gold", level=0.95, win_rate=lost, counts=counts, score=UP), "dpo", "ppo")
    assert "dpo wins 1 prompt by 20.00 on average and loses 9 by 0.10." in conclusion.lines[-1]
