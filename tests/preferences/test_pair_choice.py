"""Which pairs are compared: as before where it is random, by value where it is not, and always with its probability."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import combinations
from typing import Any, TypeVar, cast

import pytest

from pipeline.errors import PipelineError
from pipeline.preferences.candidates import _has_scores, chosen_pairs, pairs_to_label
from pipeline.preferences.items import items_of
from pipeline.records.loading import LoadedRows
from pipeline.records.pair_choice import ChosenPair, PairChoice, PairRule, choose_group, choose_pairs

TENTHS = 10
Drawn = TypeVar("Drawn")


class Script:
    """Stands in for random numbers: every draw takes the next of a list of outcomes, all of which are equally likely.

    `random` returns the middle of a tenth of [0, 1), so that a share of whole tenths is met exactly.
    """

    def __init__(self, path: list[int]) -> None:
        self.path, self.sizes = path, cast("list[int]", [])

    def _take(self, size: int) -> int:
        place = self.path[len(self.sizes)] if len(self.sizes) < len(self.path) else 0
        self.sizes.append(size)
        return place

    def random(self) -> float:
        return (self._take(TENTHS) + 0.5) / TENTHS

    def sample(self, population: list[Any], count: int) -> list[Any]:
        subsets = list(combinations(population, count))
        return list(subsets[self._take(len(subsets))])


def _outcomes(draw: Callable[[Any], Drawn]) -> Iterator[tuple[Fraction, Drawn]]:
    """Yield every outcome of a draw with its probability."""
    path: list[int] = []
    while True:
        script = Script(path)
        chosen = draw(script)
        yield Fraction(1, math.prod(script.sizes)), chosen
        path = [*path, *[0] * (len(script.sizes) - len(path))]
        while path and path[-1] == script.sizes[len(path) - 1] - 1:
            path.pop()
        if not path:
            return
        path[-1] += 1


# The third answer may not be compared. The model's gaps are 0-1: 1, 0-3: 1, 0-4: 3, 1-3: 0, 1-4: 2, 3-4: 2.
USABLE = [0, 1, 3, 4]
ONE_MODEL = [[3.0, 2.0, 9.0, 2.0, 0.0]]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("by", ["random", "delta", "uncertain", "rank"])
def test_a_propensity_is_the_frequency_over_all_outcomes(by: Any, count: int) -> None:
    rule = PairRule(by, count, random_share=0.2, rank_size=3)
    count = 3 if by == "rank" else count  # all pairs of three
    frequency, first = Counter[frozenset[int]](), Counter[frozenset[int]]()
    told: dict[frozenset[int], float] = {}
    total = Fraction(0)
    for probability, chosen in _outcomes(lambda rng: choose_pairs(USABLE, ONE_MODEL, rule, rng)):
        total += probability
        assert len({frozenset(pair[:2]) for pair in chosen}) == count
        for pair in chosen:
            both = frozenset(pair[:2])
            frequency[both] += probability  # type: ignore[assignment]
            first[both] += probability if pair.first < pair.second else 0  # type: ignore[assignment]
            assert told.setdefault(both, pair.propensity) == pair.propensity
    assert total == 1 and len(told) == 6  # the floor reaches every pair
    assert sum(frequency.values()) == count
    for both, share in frequency.items():
        assert told[both] == pytest.approx(float(share), abs=1e-12)
        assert first[both] == share / 2  # type: ignore[operator]


@pytest.mark.parametrize("size", [3, 4, 5])
def test_a_group_to_rank_is_one_of_all_with_equal_probability(size: int) -> None:
    rule = PairRule("rank", rank_size=size)
    expected = Fraction(1, math.comb(4, min(size, 4)))
    groups = Counter[frozenset[int]]()
    for probability, group in _outcomes(lambda rng: choose_group(USABLE, rule, rng)):
        assert group is not None and group.propensity == pytest.approx(float(expected), abs=1e-12)
        groups[frozenset(group.places)] += probability  # type: ignore[assignment]
    assert set(groups.values()) == {expected} and all(len(group) == min(size, 4) for group in groups)
    assert choose_group(USABLE[:2], rule, random.Random(0)) is None
    assert choose_pairs(USABLE[:2], [], rule, random.Random(0)) == []


def test_propensities_by_hand() -> None:
    def told(by: Any, count: int) -> dict[tuple[int, ...], float]:
        rule = PairRule(by, count, random_share=0.2)
        outcomes = _outcomes(lambda rng: choose_pairs(USABLE, ONE_MODEL, rule, rng))
        return {tuple(sorted(pair[:2])): pair.propensity for _, chosen in outcomes for pair in chosen}

    # delta, one pair: 0-4 is the widest; the floor gives each of six pairs 0.2 / 6.
    assert told("delta", 1) == pytest.approx(
        {pair: 0.2 / 6 + 0.8 * (pair == (0, 4)) for pair in combinations(USABLE, 2)}
    )
    # Two pairs: 0-4, and one of the equal 1-4 and 3-4; the floor gives each 0.2 · 2 / 6.
    halves = {(0, 4): 1.0, (1, 4): 0.5, (3, 4): 0.5}
    assert told("delta", 2) == pytest.approx(
        {pair: 0.2 / 3 + 0.8 * halves.get(pair, 0.0) for pair in combinations(USABLE, 2)}
    )
    # uncertain: the smallest gap is 1-3.
    assert told("uncertain", 1)[(1, 3)] == pytest.approx(0.2 / 6 + 0.8)


def test_several_models_are_uncertain_where_they_disagree() -> None:
    # 0-1: both say σ(0); 0-2: σ(2) and σ(-2), they disagree; 1-2 the same. 3 is far off for both: σ(±9) are near 0.
    scores = [[0.0, 0.0, -2.0, 9.0], [0.0, 0.1, 2.0, 9.0]]
    # Second model, 1-2: σ(-1.9); so 0-2 differs most: σ(2) - σ(-2) = 0.762 against σ(2) - σ(-1.9) = 0.750.
    rule = PairRule("uncertain", 1, random_share=0.1)
    pairs = Counter(tuple(sorted(choose_pairs(range(4), scores, rule, random.Random(i))[0][:2])) for i in range(40))
    assert pairs.most_common(1)[0][0] == (0, 2)
    # Two models that agree on a wide gap are not uncertain of it, and it is the delta: 2-3 is 11 and 7.
    rule = PairRule("delta", 1, random_share=0.1)
    pairs = Counter(tuple(sorted(choose_pairs(range(4), scores, rule, random.Random(i))[0][:2])) for i in range(40))
    # Mean gaps: 0-3 and 1-3 and 2-3 are (9 + 9) / 2, (9 + 8.9) / 2, (11 + 7) / 2: equal for 0-3 and 2-3.
    assert {pair for pair, _ in pairs.most_common(2)} == {(0, 3), (2, 3)}


CANDIDATES = [{"text": text, "names_model": text == "I am"} for text in ("a", "", "b", "I am", "d", "e", "f")]


@pytest.mark.parametrize(
    ("count", "seed", "place", "expected"),
    [
        (1, 0, 0, [(2, 5, 0.1)]),
        (1, 17, 4, [(4, 2, 0.1)]),
        (3, 0, 0, [(5, 2, 0.3), (4, 5, 0.3), (6, 2, 0.3)]),
        (3, 17, 4, [(4, 2, 0.3), (6, 2, 0.3), (5, 0, 0.3)]),
        (0, 17, 4, [(2, 0), (4, 0), (5, 0), (0, 6), (4, 2), (2, 5), (2, 6), (4, 5), (6, 4), (5, 6)]),
    ],
)
def test_random_pairs_are_those_of_before_there_was_a_choice(
    count: int, seed: int, place: int, expected: list[Any]
) -> None:
    pairs = chosen_pairs({"candidates": CANDIDATES}, PairRule("random", count), seed, place)
    assert [tuple(pair) for pair in pairs] == [(*pair, 1.0)[:3] for pair in expected]


def test_answers_that_are_empty_or_name_a_model_are_in_no_pair() -> None:
    def pairs(*texts: str) -> list[ChosenPair]:
        candidates = [{"text": text, "names_model": text == "I am Claude"} for text in texts]
        return chosen_pairs({"candidates": candidates}, PairRule(), 0, 0)

    ((first, second, propensity),) = pairs("a", "", "I am Claude", "b")
    assert ({first, second}, propensity) == ({0, 3}, 1.0)
    assert pairs("a", "", "I am Claude") == []


def _rows(shape: Any, *rows: dict[str, Any]) -> LoadedRows:
    return LoadedRows(shape, list(rows), [], [], 0, "", (), "", ())


ASKED = [{"role": "user", "content": "which?"}]


def test_candidates_become_pairs_to_label_with_their_propensity() -> None:
    row = {"prompt": ASKED, "row": 4, "candidates": CANDIDATES}
    alone = {"prompt": ASKED, "row": 5, "candidates": CANDIDATES[:2]}
    pairs, without = pairs_to_label(_rows("candidates", row, alone), PairChoice(), 17)
    assert without == 1
    assert pairs == [
        {
            "prompt": ASKED,
            "chosen": [{"role": "assistant", "content": "d"}],
            "rejected": [{"role": "assistant", "content": "b"}],
            "propensity": 0.1,
        }
    ]
    ((item,), _) = items_of(pairs)
    assert item.propensity == 0.1
    # An item's id is that of the same pair without a propensity: labels stay where they are.
    ((plain,), _) = items_of([{key: value for key, value in pairs[0].items() if key != "propensity"}])
    assert (plain.id, plain.propensity) == (item.id, None)


@pytest.mark.parametrize("value", [0, 1.5, -0.1, True, "0.5", math.nan, None])
def test_what_is_no_probability_is_no_propensity(value: Any) -> None:
    sides = {"chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}
    ((item,), _) = items_of([{"prompt": ASKED, **sides, "propensity": value}])
    assert item.propensity is None


def test_a_choice_by_scores_takes_those_of_the_candidates() -> None:
    row = {"prompt": ASKED, "candidates": CANDIDATES, "reward_scores": {"rm": [0, 9, 1, 9, 2, 3, 5]}}
    pairs, _ = pairs_to_label(_rows("candidates", *[{**row, "row": i} for i in range(30)]), DELTA, 0)
    widest = sum({pair["chosen"][0]["content"], pair["rejected"][0]["content"]} == {"a", "f"} for pair in pairs)
    assert widest > 20
    assert {round(pair["propensity"], 9) for pair in pairs} <= {0.82, 0.02}  # 0.2 / 10 + 0.8 for the widest of ten


DELTA = PairChoice(pair_choice="delta")


def test_a_choice_without_anything_to_choose_by_is_refused() -> None:
    row = {"prompt": ASKED, "candidates": CANDIDATES}
    for wrong in (None, {}, [], {"rm": [1.0]}, {"rm": 1.0}, {"rm": ["a"] * 7}):
        with pytest.raises(
            PipelineError, match="pair_choice is delta, and the candidates of “which\\?” have no scores"
        ):
            pairs_to_label(_rows("candidates", {**row, "reward_scores": wrong}), DELTA, 0)
    with pytest.raises(PipelineError, match="pair_choice is delta, and the data are pairs already"):
        pairs_to_label(_rows("preference", {}), DELTA, 0)


def test_equal_answers_are_one_and_scores_that_are_no_numbers_are_refused() -> None:
    answers = [{"text": "yes"}, {"text": " yes "}, {"text": "no"}]
    row = {"prompt": [{"role": "user", "content": "q"}], "candidates": answers}
    (pair,) = chosen_pairs(row, PairRule(), 1, 0)
    assert {pair.first, pair.second} == {0, 2}
    for score in (float("nan"), float("inf"), 10**400, True, "1"):
        assert not _has_scores({**row, "reward_scores": {"rm": [0.0, 1.0, score]}})
