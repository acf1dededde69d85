"""The reward card: six pairs by hand, files, and what the page claims."""

import json

import numpy as np
import pytest
from scipy import stats

from pipeline.errors import PipelineError
from pipeline.evaluation.reward_card import render as reward_render
from pipeline.evaluation.reward_card.card import build_card, headline, to_json, write_card
from pipeline.evaluation.stats.intervals import wilson

# Margins 2, -1, 0, 3, 1, -2: three right, two wrong, one tie: (3 + 0.5) / 6.
CHOSEN = [3.0, 0.0, 1.0, 4.0, 2.0, 0.0]
REJECTED = [1.0, 1.0, 1.0, 1.0, 1.0, 2.0]
# Chosen longer in pairs 1, 2 and 4, shorter in 3 and 5, equal in 6.
CHOSEN_LENGTHS = [10, 9, 3, 8, 2, 5]
REJECTED_LENGTHS = [5, 4, 6, 7, 6, 5]


def six(**more):
    return build_card(
        chosen=CHOSEN,
        rejected=REJECTED,
        chosen_lengths=CHOSEN_LENGTHS,
        rejected_lengths=REJECTED_LENGTHS,
        seed=0,
        **more,
    )


def random_card(n=300, seed=0, scale=2.0):
    random = np.random.default_rng(seed)
    quality = random.normal(size=(2, n))
    noise = random.normal(scale=0.4, size=(2, n))
    swap = random.random(n) > 1 / (1 + np.exp(-(quality[0] - quality[1])))
    chosen, rejected = np.where(swap, quality[::-1], quality)
    return build_card(
        chosen=scale * (chosen + noise[0]),
        rejected=scale * (rejected + noise[1]),
        chosen_lengths=random.integers(1, 30, n),
        rejected_lengths=random.integers(1, 30, n),
        gold_chosen=chosen,
        gold_rejected=rejected,
        groups=["sum", "fact|x"] * (n // 2),
        seed=0,
    )


def test_accuracy_and_margin_by_hand():
    card = six()
    assert card.pairs == 6
    assert card.ties == 1
    assert card.accuracy == wilson(3.5, 6)
    assert card.margin.value == pytest.approx(0.5)  # (2 - 1 + 0 + 3 + 1 - 2) / 6
    # Squared distances from 0.5: 2.25, 2.25, 0.25, 6.25, 0.25, 6.25 = 17.5; / 5 = 3.5.
    assert card.margin_spread == pytest.approx(3.5**0.5)


def test_length_by_hand():
    length = six().length
    # Chosen longer: margins 2, -1, 3: two of three. Chosen shorter: 0 and 1: one and a half of two.
    assert length.chosen_longer == wilson(2, 3)
    assert length.chosen_shorter == wilson(1.5, 2)
    # The longer one is right in three pairs, wrong in two, undecided in one.
    assert length.longer_wins == wilson(3.5, 6)
    # Pair by pair 1, 0, 1/2, 1, 1, 0 against 1, 1, 0, 1, 0, 1/2: differences 0, -1, 1/2, 0, 1, -1/2 add up to 0.
    assert length.gain.value == 0
    scores, lengths = CHOSEN + REJECTED, CHOSEN_LENGTHS + REJECTED_LENGTHS
    assert length.pearson == pytest.approx(np.corrcoef(scores, lengths)[0, 1])
    assert length.spearman == pytest.approx(np.corrcoef(stats.rankdata(scores), stats.rankdata(lengths))[0, 1])


def test_a_model_that_scores_length_is_seen():
    random = np.random.default_rng(0)
    long, short = random.integers(1, 50, 200), random.integers(1, 50, 200)
    card = build_card(chosen=long, rejected=short, chosen_lengths=long, rejected_lengths=short, seed=0)
    assert card.length.pearson == pytest.approx(1.0)
    assert card.length.spearman == pytest.approx(1.0)
    assert card.length.chosen_longer.value == 1.0
    assert card.length.chosen_shorter.value == 0.0
    assert card.length.longer_wins.value == card.accuracy.value
    assert card.length.gain.value == 0


def test_no_correlation_without_variation():
    card = build_card(chosen=[1, 2], rejected=[0, 0], chosen_lengths=[3, 3], rejected_lengths=[3, 3], seed=0)
    assert (card.length.pearson, card.length.spearman) == (None, None)
    assert (card.length.chosen_longer, card.length.chosen_shorter) == (None, None)
    assert card.length.longer_wins.value == 0.5


def test_gold_by_hand():
    # Gold margins 1, 1, 1, -1, 0, 1; reward margins 2, -1, 0, 3, 1, -2. Pair 5 is a gold tie and left out.
    # Reward agrees: yes, no, half, no, -, no: 1.5 of 5. Labels (chosen first): yes, yes, yes, no, -, yes: 4 of 5.
    gold = six(gold_chosen=[1, 1, 1, 0, 2, 1], gold_rejected=[0, 0, 0, 1, 2, 0]).gold
    assert gold.reward == wilson(1.5, 5)
    assert gold.labels == wilson(4, 5)


def test_gold_that_never_differs_says_nothing():
    assert six(gold_chosen=[1] * 6, gold_rejected=[1] * 6).gold is None
    assert six().gold is None


def test_groups_by_hand():
    card = six(groups=["b", "a", "b", "a", "", "b"])
    # a: margins -1, 3; b: 2, 0, -2; the pair without a group is in none.
    assert list(card.groups) == ["a", "b"]
    assert card.groups["a"] == wilson(1, 2)
    assert card.groups["b"] == wilson(1.5, 3)


# Margins 2, -1, 0, 3, 1, -2. answer: 2, 0, -2; polite: -1, 3; the fifth pair differs in several properties.
PROPERTIES = ["answer", "polite", "answer", "polite", "", "answer"]


def test_properties_by_hand():
    properties = six(properties=PROPERTIES).properties
    assert list(properties) == ["answer", "polite"]
    assert properties["answer"].accuracy == wilson(1.5, 3)  # right, a tie, wrong
    assert properties["polite"].accuracy == wilson(1, 2)
    assert properties["answer"].groups == {}


def test_properties_by_group_by_hand():
    properties = six(properties=PROPERTIES, groups=["b", "a", "b", "b", "a", ""]).properties
    # answer: 2 and 0 in b, and -2 in no group; polite: -1 in a, 3 in b. a's pair without a property counts nowhere.
    assert properties["answer"].groups == {"b": wilson(1.5, 2)}
    assert properties["polite"].groups == {"a": wilson(0, 1), "b": wilson(1, 1)}
    assert properties["answer"].accuracy == wilson(1.5, 3)


def test_a_card_without_properties_is_as_it_was():
    assert six().properties is None
    assert "properties" not in json.loads(to_json(six()))
    assert "Which properties" not in reward_render.render(six())
    assert not [name for name in headline(six()) if name.startswith("accuracy_on_")]


def test_the_record_and_the_headline_have_the_accuracy_on_each_property():
    card = six(properties=PROPERTIES, groups=["b", "a", "b", "b", "a", ""])
    record = json.loads(to_json(card))["properties"]
    assert list(record) == ["answer", "polite"]
    assert record["answer"]["accuracy"] == pytest.approx(wilson(1.5, 3).model_dump(), rel=1e-7)
    assert record["polite"]["groups"]["b"]["n"] == 1
    on = {name: value for name, value in headline(card).items() if name.startswith("accuracy_on_")}
    # Wilson with z = 1.96: 1.5 of 3 is 0.5 ± 1.96 √(0.25/3 + 0.96/9) / (1 + 1.28) = 0.5 ± 0.3746.
    assert on["accuracy_on_answer"] == 0.5
    assert on["accuracy_on_answer_low"] == pytest.approx(0.5 - 0.3746, abs=1e-4)
    assert on["accuracy_on_answer_high"] == pytest.approx(0.5 + 0.3746, abs=1e-4)
    assert len(on) == 6


def by_property(**rights):
    """Return the page of a card: of each property, so many pairs ranked right, and so many wrong."""
    margins, names = [], []
    for name, (right, wrong) in rights.items():
        margins += [1.0] * right + [-1.0] * wrong
        names += [name] * (right + wrong)
    ones = [1] * len(margins)
    card = build_card(
        chosen=margins,
        rejected=[0] * len(margins),
        chosen_lengths=ones,
        rejected_lengths=ones,
        seed=0,
        resamples=100,
        properties=["" if name == "several" else name for name in names],
    )
    return reward_render.render(card)


@pytest.mark.parametrize(
    ("rights", "said"),
    [
        # Wilson: 20 of 20 is [83.9, 100], 10 of 20 is [29.9, 70.1], 8 of 20 is [21.9, 61.3], 2 of 20 is [2.8, 30.1].
        ({"polite": (20, 0)}, "It beats guessing on each of them.\n"),
        (
            {"polite": (20, 0), "answer": (10, 10)},
            "**On answer it cannot be told from guessing** with this many pairs.\n",
        ),
        ({"polite": (20, 0), "answer": (2, 18)}, "**On answer it is below chance**: it prefers the answer that was"),
        (
            {"a": (10, 10), "b": (2, 18), "c": (8, 12)},
            "**On a, c it cannot be told from guessing** with this many pairs. **On b it is below",
        ),
    ],
)
def test_the_page_names_the_properties_that_the_model_does_not_see(rights, said):
    page = by_property(**rights)
    assert said in page
    assert page.count("it cannot be told from guessing") == ("cannot be told from guessing" in said)
    assert page.count("below chance**: it prefers") == ("it is below" in said or "**On b" in said)
    for name, (right, wrong) in rights.items():
        assert f"| {name} | {right + wrong} | {100 * right / (right + wrong):.1f} % [" in page


def test_the_page_says_how_many_pairs_count_by_property():
    page = by_property(polite=(20, 0), several=(3, 2))
    assert "For 20 of 25 pairs the data name the one property in which the two answers differ." in page
    assert "by group" not in page.partition("## Which properties")[2]
    none = reward_render.render(six(properties=[""] * 6))  # those that name one were too long for the model
    assert "For 0 of 6 pairs the data name the one property" in none
    assert "| property |" not in none
    assert "beats guessing on each" not in none


def test_the_page_has_each_property_by_group():
    groups = ["b", "a", "b", "b|c", "a", "b"]
    page = reward_render.render(six(properties=["answer", "po|lite", "answer", "po|lite", "", "answer"], groups=groups))
    answer, _, polite = page.partition("### Pairs that differ only in answer, by group")[2].partition("### ")
    assert "| b | 3 | 50.0 % [" in answer and "| a |" not in answer
    assert polite.startswith(r"Pairs that differ only in po\|lite, by group")
    assert r"| b\|c | 1 | 100.0 % [" in polite and "| a | 1 | 0.0 % [" in polite


def test_histogram_holds_every_pair_and_splits_at_zero():
    card = random_card()
    edges, counts = card.histogram.edges, card.histogram.counts
    assert sum(counts) == card.pairs
    assert 0.0 in edges
    below = sum(count for left, count in zip(edges, counts, strict=False) if left < 0)
    # No margin is exactly zero here, so bars left of zero are the pairs that are wrong.
    assert below == round((1 - card.accuracy.value) * card.pairs)
    assert np.allclose(np.diff(edges), edges[1] - edges[0])


@pytest.mark.parametrize("margin", [0.0, 2.0, -2.0])
def test_histogram_of_equal_margins(margin):
    card = build_card(chosen=[margin] * 4, rejected=[0] * 4, chosen_lengths=[1] * 4, rejected_lengths=[1] * 4, seed=0)
    assert sum(card.histogram.counts) == 4


def test_headline_has_what_a_manifest_needs():
    figures = headline(random_card())
    assert {"test_accuracy", "test_accuracy_low", "test_accuracy_high", "gold_agreement", "ece"} <= set(figures)
    assert all(np.isfinite(value) for value in figures.values())
    assert "gold_agreement" not in headline(six())


def test_files(tmp_path):
    card = random_card()
    figures = write_card(card, tmp_path)
    assert figures == headline(card)
    data = json.loads((tmp_path / "reward_card.json").read_text(encoding="utf-8"))
    assert data["schema_version"] == 1
    assert data["accuracy"] == pytest.approx(card.accuracy.model_dump(), rel=1e-7)
    assert len(data["calibration"]["bins"]) == 10
    page = (tmp_path / "reward_card.md").read_text(encoding="utf-8")
    assert "(margins.svg)" in page
    assert "(reliability.svg)" in page
    assert r"fact\|x" in page  # a group's name cannot break the table
    assert "overconfident" in page  # scores are twice as far apart as the labels deserve
    assert f"right: {100 * card.accuracy.value:.1f} %" in (tmp_path / "margins.svg").read_text(encoding="utf-8")
    assert "perfectly calibrated" in (tmp_path / "reliability.svg").read_text(encoding="utf-8")


def test_the_page_says_when_nothing_is_shown(tmp_path):
    write_card(six(), tmp_path)
    assert "cannot be told from guessing" in (tmp_path / "reward_card.md").read_text(encoding="utf-8")
    random = np.random.default_rng(0)
    longer = random.random(400) < 0.9
    lengths = np.where(longer, 20, 5), np.where(longer, 5, 20)
    card = build_card(
        chosen=lengths[0], rejected=lengths[1], chosen_lengths=lengths[0], rejected_lengths=lengths[1], seed=0
    )
    write_card(card, tmp_path)
    assert "cannot be told from preferring the longer" in (tmp_path / "reward_card.md").read_text(encoding="utf-8")


def test_same_card_same_bytes():
    assert to_json(random_card()) == to_json(random_card())


def test_refuses_what_cannot_be_paired():
    lengths = {"chosen_lengths": [1], "rejected_lengths": [1]}
    with pytest.raises(PipelineError, match="2 scores against 1"):
        build_card(chosen=[1, 2], rejected=[1], seed=0, **lengths)
    with pytest.raises(PipelineError, match="no values"):
        build_card(chosen=[], rejected=[], chosen_lengths=[], rejected_lengths=[], seed=0)
    with pytest.raises(PipelineError, match="2 groups for 1 pair"):
        build_card(chosen=[1], rejected=[0], seed=0, groups=["a", "b"], **lengths)
    with pytest.raises(PipelineError, match="2 properties for 1 pair"):
        build_card(chosen=[1], rejected=[0], seed=0, properties=["a", "b"], **lengths)
    with pytest.raises(PipelineError, match="not finite"):
        build_card(chosen=[float("nan")], rejected=[0], seed=0, **lengths)


def page_of(margins):
    """Return the page of a card with these margins, all answers of one length."""
    ones = [1] * len(margins)
    card = build_card(
        chosen=margins, rejected=[0] * len(margins), chosen_lengths=ones, rejected_lengths=ones, seed=0, resamples=100
    )
    return reward_render.render(card)


@pytest.mark.parametrize(
    ("margins", "said"),
    [
        # One pair, right: the error of 0.12 is below the 0.26 that chance gives with one pair.
        ([2.0], "The ECE here is no larger, so the temperature says nothing of its confidence."),
        # All scores equal: half confident, half right, an error of zero.
        ([0.0] * 9, "The ECE here is no larger, so the temperature says nothing of its confidence."),
        # All right at a confidence of 0.55, and of 0.99 all wrong: any lower, any higher temperature fits better.
        ([0.2] * 40, "No temperature fits: every pair is right, and the best one lies beyond any bound."),
        ([-5.0] * 40, "No temperature fits: it is no better than guessing, and the best one lies beyond any bound."),
    ],
)
def test_the_temperature_claims_no_more_than_the_pairs_show(margins, said):
    page = page_of(margins)
    assert said in page
    assert "overconfident" not in page
    assert "less confident" not in page


def test_a_temperature_at_its_bound_is_shown_as_one():
    assert "| margins divided by ≤ 0.01 |" in page_of([0.2] * 40)
    assert "| margins divided by ≥ 100.00 |" in page_of([-5.0] * 40)


def test_one_pair_is_one_pair():
    assert "\n1 pair. " in page_of([2.0])
    assert "over 1 bin of equal mass" in page_of([2.0])
