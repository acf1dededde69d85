"""Who votes like nobody else is flagged, who votes like the crowd is not: simulated crowds with known people."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.stats.anomalies import ALPHA, Anomaly, anomalies
from pipeline.evaluation.stats.anomalies import _chi_square_tail as chi_square_tail
from pipeline.evaluation.stats.anomalies import _side_p as side_p

MISSING = -9
ITEMS, LABELS_PER_ITEM = 200, 3


def crowd(seed: int, accuracies: list[float], others: tuple[str, ...] = ()) -> tuple[Any, Any, list[list[int]]]:
    """Return signed strengths, sides and orders of a crowd.

    Three honest people label each of 200 items. They prefer the better response with their accuracy, at any strength,
    and say in a tenth of the cases that there is no difference. Each of the ``others`` labels half of the items:
    ``random`` prefers either response by chance, ``left`` the one on the left.
    """
    rng = np.random.default_rng(seed)
    honest, people = len(accuracies), len(accuracies) + len(others)
    truth_N = rng.choice([-1, 1], ITEMS)
    is_labelled = np.zeros((ITEMS, people), bool)
    is_labelled[:, :honest] = rng.random((ITEMS, honest)).argsort(1) < LABELS_PER_ITEM
    is_labelled[:, honest:] = rng.random((ITEMS, len(others))) < 0.5
    first_on_left = rng.choice([-1, 1], (ITEMS, people))
    vote = np.where(rng.random((ITEMS, honest)) < accuracies, truth_N[:, None], -truth_N[:, None])
    strength = np.where(rng.random((ITEMS, honest)) < 0.1, 0, vote * rng.integers(1, 4, (ITEMS, honest)))
    made = {"random": rng.choice([-1, 1], (ITEMS, people)), "left": first_on_left}
    columns = [made[kind][:, honest + number] for number, kind in enumerate(others)]
    strength = np.column_stack([strength, *columns])
    left = np.where(strength == 0, -1, (np.sign(strength) == first_on_left).astype(int))
    order = [list(map(int, rng.permutation(np.flatnonzero(is_labelled[:, a])))) for a in range(people)]
    return np.where(is_labelled, strength, MISSING), np.where(is_labelled, left, -1), order


def flags_of(seed: int, accuracies: list[float], others: tuple[str, ...] = ()) -> list[Anomaly]:
    """Return the tests of a simulated crowd."""
    return anomalies(*crowd(seed, accuracies, others), missing=MISSING, seed=0)


@pytest.mark.parametrize("accuracies", [[0.85] * 8, [0.75] * 8, list(np.linspace(0.75, 0.95, 8))])
def test_honest_people_are_rarely_flagged(accuracies: list[float]) -> None:
    """In 60 crowds of eight, each test flags at most its level of 5 %, also where some are more often right."""
    people = [one for seed in range(60) for one in flags_of(seed, accuracies)]
    assert np.mean([one.is_unlike_the_rest for one in people]) <= ALPHA
    assert np.mean([one.is_one_sided for one in people]) <= ALPHA + 0.015  # 480 people: 1.5 standard errors


def test_who_clicks_at_random_or_always_left_is_flagged() -> None:
    crowds = [flags_of(seed, [0.85] * 8, ("random", "left")) for seed in range(60)]
    random, left = ([one[place] for one in crowds] for place in (8, 9))
    assert np.mean([one.is_unlike_the_rest for one in random]) >= 0.9
    assert np.mean([one.is_unlike_the_rest for one in left]) >= 0.9
    assert all(one.is_one_sided for one in left)
    assert np.mean([one.is_one_sided for one in random]) <= 0.1
    honest = [one for people in crowds for one in people[:8]]
    assert np.mean([one.is_unlike_the_rest for one in honest]) <= ALPHA


def test_the_p_values_of_the_crowd_are_not_too_small() -> None:
    """Under exchangeability the p-value of all looks is at most t with probability t, at every t."""
    values = [one.p for seed in range(60) for one in flags_of(seed, [0.8] * 8)]
    for t in (0.01, 0.05, 0.1, 0.3):
        assert np.mean([p is not None and p <= t for p in values]) <= t + 0.02


def test_few_votes_are_not_tested() -> None:
    strength = np.full((6, 3), MISSING)
    strength[:4] = 1  # four items that everybody labelled
    strength[4:, 0] = -1  # two that nobody else did
    results = anomalies(
        strength, np.full((6, 3), -1), [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3], [0, 1, 2, 3]], missing=-9, seed=0
    )
    assert [one.votes for one in results] == [4, 4, 4]
    assert all(one.p is None and one.side_p is None and not one.is_unlike_the_rest for one in results)
    assert anomalies(np.full((0, 0), MISSING), np.full((0, 0), -1), [], missing=MISSING, seed=0) == []


def test_people_without_a_common_item_are_tested_for_their_side_only() -> None:
    strength = np.where(np.eye(2, dtype=bool).repeat(10, 0), 1, MISSING)
    left = np.where(strength == 1, 1, -1)
    one, other = anomalies(strength, left, [list(range(10)), list(range(10, 20))], missing=MISSING, seed=0)
    assert (one.votes, one.p) == (other.votes, other.p) == (0, None)
    assert one.is_one_sided and other.is_one_sided  # ten of ten on the left


def test_the_same_labels_give_the_same_values() -> None:
    assert flags_of(3, [0.8] * 6, ("random",)) == flags_of(3, [0.8] * 6, ("random",))


def test_tails_are_those_of_the_distributions() -> None:
    for x, half in ((3.0, 1), (40.0, 10), (250.0, 100), (0.0, 3)):
        assert chi_square_tail(x, half) == pytest.approx(stats.chi2.sf(x, 2 * half), rel=1e-9)
    assert chi_square_tail(2.0, 1) == pytest.approx(math.exp(-1))
    for left, n in ((9, 10), (5, 10), (70, 100), (0, 5)):
        sides = np.array([1] * left + [0] * (n - left) + [-1] * 3)
        assert side_p(sides) == pytest.approx(stats.binomtest(left, n).pvalue, rel=1e-9)
