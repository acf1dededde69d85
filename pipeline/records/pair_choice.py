"""Which answers to a prompt are compared: the pairs of a prompt's candidates, and how likely each was to be chosen.

    random     every pair is equally likely
    delta      the pair with the largest predicted gap
    uncertain  the pair on which several reward models disagree most; with one reward model, that of the smallest gap
    rank       some answers, equally likely any of them, to be ranked by one person: all pairs of them

`delta` and `uncertain` keep a floor of random choice: with probability `random_share` a prompt's pairs are chosen at
random. So every pair has a known probability above 0 to be chosen, its propensity, and a figure over the chosen pairs
that weights each by 1 / propensity is unbiased for all pairs (Horvitz and Thompson 1952).

Owns the rule and its propensities. Knows nothing of models: predicted scores are its input. No numerics: the plan
imports this module.

References: Christiano et al. 2017, arXiv:1706.03741, section 2.2.4 (variance of an ensemble's predicted preference);
Lewis and Gale 1994, arXiv:cmp-lg/9407020 (what one model is least certain of); Melikidze et al. 2026, arXiv:2603.09692
(pairs with a large predicted gap may teach more with fewer labels).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

from pydantic import Field

from pipeline.errors import Problem
from pipeline.plain_data import Row
from pipeline.stage import StageConfig

Unusable = Literal["empty", "names a model"]
"""Why an answer is not compared."""

By = Literal["random", "uncertain", "delta", "rank"]
"""What decides which pairs of a prompt's answers are compared."""

BY_SCORE: tuple[By, ...] = ("uncertain", "delta")
"""The choices that need scores of reward models."""

LEAST_RANKED = 3
"""Fewest answers that are ranked; two are compared."""

MOST_RANKED = 6
"""Most answers that are ranked."""


class PairChoice(StageConfig):
    """The fields of a stage that pairs answers.

    Attributes:
        pair_choice: what decides which pairs are compared: `random`, `uncertain`, `delta` or `rank`.
        random_share: share of the prompts whose pairs are random all the same, with `uncertain` and `delta`.
        pairs_per_prompt: pairs of each prompt's answers; 0 takes all.
        rank_size: answers of each prompt that are ranked, with `rank`.
    """

    pair_choice: By = "random"
    random_share: float = Field(default=0.2, gt=0, le=1)
    pairs_per_prompt: int = Field(default=1, ge=0)
    rank_size: int = Field(default=4, ge=LEAST_RANKED, le=MOST_RANKED)

    @property
    def rule(self) -> PairRule:
        """The rule that the fields describe."""
        return PairRule(self.pair_choice, self.pairs_per_prompt, self.random_share, self.rank_size)

    def changed(self) -> list[str]:
        """Return the fields of the choice that are not at their defaults."""
        fields = PairChoice.model_fields
        return [name for name in fields if getattr(self, name) != fields[name].default]

    def check(self) -> list[Problem]:
        """Return problems of fields that would have no effect on the choice."""
        by_score, ranks = self.pair_choice in BY_SCORE, self.pair_choice == "rank"
        changed, problems = self.changed(), super().check()
        if by_score and not self.pairs_per_prompt:
            statement = f"pair_choice is {self.pair_choice}, and pairs_per_prompt is 0: all pairs are taken"
            problems.append(Problem(statement, "a number of pairs to choose", "leave one of the two out"))
        if ranks and "pairs_per_prompt" in changed:
            statement = f"pair_choice is rank, and pairs_per_prompt is {self.pairs_per_prompt}"
            problems.append(Problem(statement, "rank_size: all pairs of so many answers", "leave pairs_per_prompt out"))
        if not ranks and "rank_size" in changed:
            statement = f"rank_size is {self.rank_size}, and pair_choice is {self.pair_choice}: nothing is ranked"
            problems.append(Problem(statement, "pair_choice: rank", "or leave rank_size out"))
        if not by_score and "random_share" in changed:
            statement = f"random_share is {self.random_share:g}, and pair_choice is {self.pair_choice}: all is random"
            problems.append(Problem(statement, "pair_choice: delta or uncertain", "or leave random_share out"))
        return problems


@dataclass(frozen=True)
class PairRule:
    """How pairs are chosen.

    Attributes:
        by: what decides.
        count: pairs of a prompt; 0 takes all.
        random_share: probability that a prompt's pairs are random although `by` is not.
        rank_size: answers that are ranked, if there are as many.
    """

    by: By = "random"
    count: int = 1
    random_share: float = 0.2
    rank_size: int = 4


class Group(NamedTuple):
    """Answers to one prompt that are ranked.

    Attributes:
        places: their places, in the order in which they stand.
        propensity: probability with which just these are chosen, given the prompt's answers.
    """

    places: tuple[int, ...]
    propensity: float


class ChosenPair(NamedTuple):
    """Two answers that are compared.

    Attributes:
        first: place of the answer that stands first.
        second: place of the other answer.
        propensity: probability with which the rule chooses these two, given the prompt's answers.
    """

    first: int
    second: int
    propensity: float


def unusable(candidate: Row) -> Unusable | None:
    """Return why an answer is not compared: it is empty, or says which model it comes from; None if it may be."""
    if not candidate["text"].strip():
        return "empty"
    return "names a model" if candidate.get("names_model") else None


def choose_group(usable: Sequence[int], rule: PairRule, rng: random.Random) -> Group | None:
    """Choose answers to rank; None if there are fewer than `LEAST_RANKED`.

    Reference: Ouyang et al. 2022, arXiv:2203.02155, section 3.5 (all pairs of a ranking are learnt from).
    """
    if len(usable) < LEAST_RANKED:
        return None
    size = min(rule.rank_size, len(usable))
    return Group(tuple(rng.sample(usable, size)), 1 / math.comb(len(usable), size))


def choose_pairs(
    usable: Sequence[int], scores: Sequence[Sequence[float]], rule: PairRule, rng: random.Random
) -> list[ChosenPair]:
    """Choose pairs of a prompt's answers; which of the two stands first is random.

    Args:
        usable: places of the answers that may be compared.
        scores: of each reward model, its score of every answer by place; empty if `rule.by` needs none.
        rule: how pairs are chosen.
        rng: random numbers of this prompt.
    """
    if rule.by == "rank":
        group = choose_group(usable, rule, rng)
        ranked = sorted(group.places) if group is not None else []
        both = len(ranked) * (len(ranked) - 1) / (len(usable) * (len(usable) - 1)) if ranked else 0.0
        return [_turned(pair, both, rng) for pair in combinations(ranked, 2)]
    possible = list(combinations(usable, 2))
    if not rule.count or rule.count >= len(possible):
        return [_turned(pair, 1.0, rng) for pair in possible]
    uniform = rule.count / len(possible)
    if rule.by == "random":
        return [_turned(pair, uniform, rng) for pair in rng.sample(possible, rule.count)]
    values = [_value(rule.by, scores, first, second) for first, second in possible]
    least = sorted(values, reverse=True)[rule.count - 1]
    above = [pair for pair, value in zip(possible, values, strict=True) if value > least]
    tied = [pair for pair, value in zip(possible, values, strict=True) if value == least]
    left = rule.count - len(above)
    chosen = rng.sample(possible, rule.count) if rng.random() < rule.random_share else above + rng.sample(tied, left)
    # The floor takes any pair with the same probability; else a pair is taken for its value, or by lot among equals.
    directed = {**dict.fromkeys(above, 1.0), **dict.fromkeys(tied, left / len(tied))}
    share = rule.random_share
    return [_turned(pair, share * uniform + (1 - share) * directed.get(pair, 0.0), rng) for pair in chosen]


def _turned(pair: tuple[int, int], propensity: float, rng: random.Random) -> ChosenPair:
    first, second = pair if rng.random() < 0.5 else pair[::-1]
    return ChosenPair(first, second, propensity)


def _value(by: By, scores: Sequence[Sequence[float]], first: int, second: int) -> float:
    """Return how much a pair is wanted, whichever of the two stands first."""
    margins = [own[first] - own[second] for own in scores]
    if by == "delta":
        return abs(math.fsum(margins)) / len(margins)
    if len(margins) == 1:
        return -abs(margins[0])
    shares = [_sigmoid(margin) for margin in margins]  # Bradley and Terry's probability that the first is preferred
    mean = math.fsum(shares) / len(shares)
    return math.fsum((share - mean) ** 2 for share in shares) / len(shares)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
