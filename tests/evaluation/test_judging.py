"""A reward model that guesses does not judge without a warning."""

import pytest

from pipeline.evaluation.judging import accuracy_summary, card_summary, judge_warning
from pipeline.evaluation.reward_card.card import build_card, headline
from pipeline.evaluation.reward_card.render import render
from pipeline.evaluation.stats.intervals import wilson


def card(right, pairs):
    """Score pairs so that ``right`` of them are ranked right."""
    chosen = [1.0] * right + [-1.0] * (pairs - right)
    return build_card(
        chosen=chosen, rejected=[0.0] * pairs, chosen_lengths=[5] * pairs, rejected_lengths=[5] * pairs, seed=0
    )


@pytest.mark.parametrize(
    ("right", "pairs", "warning", "summary", "page"),
    [
        # Wilson: 0 of 7 is [0, 35.4]; 5 of 7 is [35.9, 91.8]; 70 of 100 is [60.4, 78.1].
        (0, 7, "is at or below chance: right on 0.0 % [0.0, 35.4] of 7 held-out pairs.", "at or below", "at or below"),
        (5, 7, "cannot be told from chance, with too few pairs to tell: right on 71.4 %", "too few", "cannot be told"),
        (70, 100, "", "", "beats guessing"),
    ],
)
def test_by_its_cards_interval(right, pairs, warning, summary, page):
    made = card(right, pairs)
    assert made.accuracy == wilson(right, pairs)
    metrics = headline(made)
    for judges, consequence in ((True, "Its scores decide who wins here"), (False, "no win is decided by them")):
        message = judge_warning("rm", metrics, judges=judges)
        assert (warning in message and consequence in message) if warning else message == ""
    assert summary in accuracy_summary(metrics)
    assert ("chance" in accuracy_summary(metrics)) == bool(summary)
    assert page in render(made)


def test_one_without_a_report():
    assert "the reward model x/y has no report on held-out pairs" in judge_warning("x/y", {}, judges=True)
    assert judge_warning("x/y", {}, judges=False) == ""
    assert accuracy_summary({}) == "no held-out pairs"


def test_a_summary_has_the_accuracy_on_up_to_three_properties_and_of_more_the_lowest():
    metrics = headline(card(70, 100))
    assert card_summary({}) == "no held-out pairs"
    assert card_summary(metrics) == "70.0% of 100 held-out pairs"
    metrics["gold_agreement"] = 0.8
    on = {"a": 0.5, "b_low": 0.25, "c": 1.0}
    for name, value in on.items():
        metrics |= {f"accuracy_on_{name}{end}": value for end in ("", "_low", "_high")}
    shown = "70.0% of 100 held-out pairs, 80.0% agreement with gold"
    assert card_summary(metrics) == f"{shown}, 50.0% on a, 25.0% on b_low, 100.0% on c"
    metrics |= {f"accuracy_on_d{end}": 0.9 for end in ("", "_low", "_high")}
    assert card_summary(metrics) == f"{shown}, lowest of 4 properties on b_low with 25.0%"
