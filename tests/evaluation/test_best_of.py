"""The best of n: the estimate is the mean over all sets of n answers, and the report says what it gains."""

import json
import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.evaluation.best_of_n.curve import ScoredAnswers, measure, to_json, write_curve
from pipeline.evaluation.best_of_n.render import conclusion, render
from pipeline.evaluation.stats.best_of import expected_best, kl_of_best
from pipeline.evaluation.stats.intervals import Bootstrap

BOOTSTRAP = Bootstrap(seed=0, resamples=200)


def brute_force(scores, n, values):
    """Go through every set of n answers; of several best answers each counts alike."""
    means = []
    for chosen in combinations(range(len(scores)), n):
        highest = max(scores[i] for i in chosen)
        best = [values[i] for i in chosen if scores[i] == highest]
        means.append(sum(best) / len(best))
    return sum(means) / len(means)


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-9, 9)), min_size=1, max_size=7),
    st.integers(1, 7),
)
def test_the_estimate_is_the_mean_over_all_sets(answers, n):
    scores, values = zip(*answers, strict=True)  # small integers, so that many are equal
    if n > len(scores):
        with pytest.raises(PipelineError, match=f"the best of {n} of {len(scores)} answer"):
            expected_best(scores, n)
        return
    assert expected_best(scores, n) == pytest.approx(brute_force(scores, n, scores), abs=1e-9)
    assert expected_best(scores, n, values) == pytest.approx(brute_force(scores, n, values), abs=1e-9)


def test_the_estimate_by_hand():
    # Sets of two of 1, 2, 4: (1, 2), (1, 4), (2, 4), with the best 2, 4, 4: 10 / 3.
    assert expected_best([4, 1, 2], 2) == pytest.approx(10 / 3)
    assert expected_best([4, 1, 2], 1) == pytest.approx(7 / 3)
    assert expected_best([4, 1, 2], 3) == 4
    assert expected_best(range(1000), 500) == pytest.approx(500 * 1001 / 501 - 1)  # E[max] = n (N + 1) / (n + 1)


def test_the_divergence_by_hand():
    assert kl_of_best(1) == 0
    assert kl_of_best(2) == pytest.approx(math.log(2) - 0.5)
    assert kl_of_best(16) == pytest.approx(math.log(16) - 15 / 16)


def test_every_point_is_over_the_same_prompts():
    # Twenty prompts with three answers and one with a single answer: nine in ten have three.
    prompts = [ScoredAnswers([0.0, 1.0, 2.0 + i % 2]) for i in range(20)] + [ScoredAnswers([50.0])]
    curve = measure(prompts, BOOTSTRAP, is_one_policy=True)
    assert (curve.prompts, curve.fewer, [point.n for point in curve.points]) == (20, 1, [1, 2, 3])
    # Half have 0, 1, 2 and half 0, 1, 3. One: 1 and 4/3; two: 5/3 and 7/3; three: 2 and 3.
    assert [point.score.value for point in curve.points] == pytest.approx([7 / 6, 2.0, 2.5])
    assert [point.kl for point in curve.points] == pytest.approx([0.0, math.log(2) - 1 / 2, math.log(3) - 2 / 3])
    assert curve.gain.value == pytest.approx(4 / 3)
    assert all(point.score.low <= point.score.value <= point.score.high for point in curve.points)
    page = render(curve)
    assert "1 prompt has fewer than 3 usable answers and is in no row of the table." in page
    assert "| n | score of the best | KL, at most |" in page and "gold" not in page


def test_answers_of_several_policies_have_no_known_divergence():
    curve = measure([ScoredAnswers([0.0, 1.0])] * 3, BOOTSTRAP, is_one_policy=False)
    assert curve.last.kl is None and "kl" not in json.loads(to_json(curve))["points"][0]
    assert "no known divergence" in render(curve)


@pytest.mark.parametrize(
    ("gold", "says"),
    [
        ((0.0, 1.0), "Gold rises too: +0.500"),
        ((1.0, 0.0), "**Gold falls**: -0.500"),
        ((0.5, 0.5), "**Gold does not rise beyond noise**: 0.000"),
    ],
)
def test_gold_beside_the_score_shows_overoptimisation(gold, says):
    # The judge scores the second answer higher; of two, it is always chosen: gold 1 or 0 against a mean of a half.
    curve = measure([ScoredAnswers([0.0, 2.0], gold)] * 12, BOOTSTRAP, is_one_policy=True)
    assert "The best of 2 scores +1.000" in conclusion(curve)
    assert says in conclusion(curve)
    assert [point.gold.value for point in curve.points] == pytest.approx([0.5, gold[1]])


def test_a_single_answer_leaves_nothing_to_choose():
    curve = measure([ScoredAnswers([1.0])] * 3, BOOTSTRAP, is_one_policy=True)
    assert curve.gain is None and "nothing to choose" in render(curve)
    with pytest.raises(PipelineError, match="no answer has a score"):
        measure([ScoredAnswers([])], BOOTSTRAP, is_one_policy=True)


def test_the_files_are_the_same_bytes_each_time(tmp_path):
    curve = measure([ScoredAnswers([0.0, 1.0, i % 3], [0, 0, 1]) for i in range(9)], BOOTSTRAP, is_one_policy=True)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_curve(curve, tmp_path / folder)
    for name in ("best_of_n.json", "best_of_n.md", "best_of_n.svg"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    picture = (tmp_path / "one" / "best_of_n.svg").read_text()
    assert "score" in picture and "gold" in picture and "KL" in picture
