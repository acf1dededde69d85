"""Agreement is what the textbooks say; simulated crowds get back the truth and the errors they were made with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.stats.annotators import (
    MISSING,
    against_the_rest,
    annotator_pairs,
    cohen_kappa,
    dawid_skene,
    krippendorff_alpha,
    raw_agreement,
)

# Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, section C: four observers, twelve units.
OBSERVERS = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)
TEXTBOOK = np.array([[MISSING if v == "." else int(v) for v in line.split()] for line in OBSERVERS]).T


def crowd(
    accuracies: list[float], items: int, *, classes: int = 2, seed: int = 0, share: float = 1.0
) -> tuple[Any, Any]:
    """Return true classes, and labels of people who are right with these probabilities, else give any other class."""
    rng = np.random.default_rng(seed)
    truth_N = rng.integers(0, classes, items)
    wrong = (truth_N[:, None] + rng.integers(1, classes, (items, len(accuracies)))) % classes
    labels_NA = np.where(rng.random((items, len(accuracies))) < accuracies, truth_N[:, None], wrong)
    labels_NA[rng.random(labels_NA.shape) > share] = MISSING
    return truth_N, labels_NA


def test_alpha_of_the_textbook() -> None:
    assert krippendorff_alpha(TEXTBOOK) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(TEXTBOOK, "ordinal") == pytest.approx(0.815, abs=5e-4)
    assert krippendorff_alpha(np.array([[0, 0], [1, 1]])) == 1
    assert krippendorff_alpha(np.array([[0, 1], [1, 0]])) == pytest.approx(-0.5)
    assert krippendorff_alpha(np.array([[0, 0], [0, 0]])) is None  # nothing differs
    assert krippendorff_alpha(np.array([[0, MISSING], [MISSING, 1]])) is None  # nothing to compare


def test_kappa_of_the_textbook() -> None:
    # 20 both yes, 5 yes and no, 10 no and yes, 15 both no: 0.7 agree, 0.5 by chance.
    one = np.repeat([1, 1, 0, 0], [20, 5, 10, 15])
    other = np.repeat([1, 0, 1, 0], [20, 5, 10, 15])
    assert cohen_kappa(one, other) == pytest.approx(0.4)
    assert cohen_kappa(one, one) == 1
    assert cohen_kappa(np.zeros(3, int), np.zeros(3, int)) is None


def test_pairs_of_people_are_compared_where_both_labelled() -> None:
    labels = np.array([[0, 0, MISSING], [1, 0, MISSING], [MISSING, 1, 1], [0, MISSING, MISSING]])
    first, second = annotator_pairs(labels)
    assert (first.first, first.second, first.items, first.same) == (0, 1, 2, 0.5)
    assert (second.first, second.second, second.items, second.same) == (1, 2, 1, 1.0)


def test_raw_agreement_counts_pairs_of_labels_of_one_item() -> None:
    labels = np.array([[0, 0, 1], [1, MISSING, 1], [1, MISSING, MISSING]])
    agreed = raw_agreement(labels, seed=0)
    assert agreed is not None and (agreed.value, agreed.n) == (0.5, 2)  # 1 of 3 pairs, and 1 of 1
    assert raw_agreement(labels[2:], seed=0) is None
    assert raw_agreement(np.full((2, 2), MISSING), seed=0) is None


def test_the_interval_of_agreement_covers_what_the_crowd_was_made_with() -> None:
    """Five people who are right in 80 %: two agree with probability 0.8² + 0.2² = 0.68. Items are resampled, since the
    ten pairs of an item's labels depend on one another; an interval over pairs covers far less."""
    covered = 0
    for seed in range(200):
        agreed = raw_agreement(crowd([0.8] * 5, 60, seed=seed)[1], seed=0)
        covered += agreed is not None and agreed.low <= 0.68 <= agreed.high
    assert 180 <= covered <= 199  # 95 %: between 0.90 and 0.995, at 200 crowds


def test_few_labels_that_all_agree_do_not_prove_that_all_would() -> None:
    # One pair each: Wilson's, whose lower end at n of n is n / (n + z²) with z² = 3.8415.
    five = raw_agreement(np.zeros((5, 2), int), seed=0)
    assert five is not None and (five.value, five.high) == (1, 1)
    assert five.low == pytest.approx(5 / 8.8415, abs=1e-4)
    # Three pairs each, all equal: more than 1 - 0.025^(1/5) of the items would have shown another share.
    three = raw_agreement(np.zeros((5, 3), int), seed=0)
    assert three is not None and three.low == pytest.approx(0.025 ** (1 / 5), abs=1e-4) and three.high == 1


@pytest.mark.parametrize(("people", "items"), [(2, 10), (3, 15)])
def test_the_interval_of_agreement_covers_near_its_ends(people: int, items: int) -> None:
    """People who are right in 95 %: two agree with probability 0.95² + 0.05² = 0.905."""
    covered = 0
    for seed in range(200):
        agreed = raw_agreement(crowd([0.95] * people, items, seed=seed)[1], seed=0)
        covered += agreed is not None and agreed.low <= 0.905 <= agreed.high
    assert covered >= 180  # of an interval of 95 %


def test_who_guesses_agrees_least_with_the_rest() -> None:
    _, labels = crowd([0.9, 0.9, 0.9, 0.5], 400)
    good, *_, guessing = (one for one in against_the_rest(labels) if one is not None)
    assert good.low > guessing.high
    assert guessing.low < 0.5 < guessing.high
    alone = against_the_rest(np.array([[0, MISSING], [1, MISSING]]))
    assert alone == [None, None]


def test_dawid_and_skene_give_back_how_right_each_was() -> None:
    accuracies = [0.95, 0.85, 0.75, 0.6, 0.5]
    truth, labels = crowd(accuracies, 4000, classes=3, share=0.8)
    is_labelled = (labels != MISSING).any(1)
    truth, labels = truth[is_labelled], labels[is_labelled]
    result = dawid_skene(labels, range(3))
    assert result.accuracy_A == pytest.approx(accuracies, abs=0.05)
    counts = np.stack([(labels == value).sum(1) for value in range(3)], 1)
    majority = (counts.argmax(1) == truth).mean()
    assert (result.posterior_NK.argmax(1) == truth).mean() > majority + 0.02
    assert result.posterior_NK.sum(1) == pytest.approx(np.ones(len(labels)))


def test_items_of_one_label_count_as_many_as_there_are() -> None:
    """The estimate joins equal items of a single label; this is the method of the paper on the table as it is."""
    _, labels = crowd([0.9, 0.8, 0.6, 0.7], 300, classes=3, share=0.35, seed=4)
    labels = labels[(labels != MISSING).any(1)]
    assert 50 < ((labels != MISSING).sum(1) == 1).sum() < len(labels) - 50
    one_hot = np.stack([labels == value for value in range(3)], 2).astype(float)
    posterior = one_hot.sum(1) / one_hot.sum((1, 2))[:, None]
    for _ in range(40):
        confusion = np.einsum("nj,nak->ajk", posterior, one_hot) + 1 / 3
        confusion /= confusion.sum(2, keepdims=True)
        log = np.log(posterior.mean(0)) + np.einsum("nak,ajk->nj", one_hot, np.log(confusion))
        posterior = np.exp(log - log.max(1, keepdims=True))
        posterior /= posterior.sum(1, keepdims=True)
    result = dawid_skene(labels, range(3), most_steps=40, epsilon=0)
    assert result.posterior_NK == pytest.approx(posterior, abs=1e-9)
    assert result.confusion_AKK == pytest.approx(confusion, abs=1e-9)


def test_dawid_and_skene_see_through_a_person_who_says_the_opposite() -> None:
    truth, labels = crowd([0.9, 0.9, 0.1], 500, seed=2)
    result = dawid_skene(labels, range(2))
    assert result.accuracy_A == pytest.approx([0.9, 0.9, 0.1], abs=0.06)
    assert (result.posterior_NK.argmax(1) == truth).mean() > 0.95


def test_one_label_each_is_the_label_itself() -> None:
    result = dawid_skene(np.array([[0, MISSING], [MISSING, 1]]), range(2))
    assert result.posterior_NK.argmax(1).tolist() == [0, 1]
