"""A judge's figures: how often it prefers what it sees first, flips, prefers the longer, and agrees with people.

Shape legend: N prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.evaluation.judges.pairs import Pair, conversation_text
from pipeline.evaluation.judges.verdicts import OrderVerdict, Outcome
from pipeline.evaluation.stats.annotators import Labels, cohen_kappa
from pipeline.evaluation.stats.estimate import Estimate, Record
from pipeline.evaluation.stats.intervals import LEVEL, RESAMPLES, share_interval, wilson
from pipeline.plain_data import Row
from pipeline.records.shapes.turns import Turn

Units = Iterable[tuple[str, bool]]
"""Trials of a share: the prompt of each, which is its cluster, and whether it succeeded."""


@dataclass(frozen=True)
class JudgedPair:
    """A pair and what the judge says of it.

    Attributes:
        pair: the pair.
        outcome: what becomes of it.
        probability: that the first response is better; None without a verdict.
        orders: verdict with the first response shown as A, then with the second; None where a call failed. Empty if
            the judge scores each response alone, and for equal responses.
        scores: scores of both responses, if the judge scores each alone.
        error: why a verdict is missing.
        unreadable: replies that have no verdict in the format that was asked for, by their place in `orders`.
    """

    pair: Pair
    outcome: Outcome
    probability: float | None = None
    orders: tuple[OrderVerdict | None, ...] = ()
    scores: tuple[float, float] | None = None
    error: str = ""
    unreadable: Mapping[int, str] = field(default_factory=dict)

    @property
    def is_parse_failure(self) -> bool:
        """Whether a reply has no verdict in the format that was asked for."""
        return bool(self.unreadable)

    @property
    def prompt(self) -> str:
        """The prompt as text."""
        return conversation_text(self.pair.row["prompt"])

    @property
    def sides(self) -> tuple[str, str]:
        """Both responses as text."""
        return conversation_text(self.pair.first), conversation_text(self.pair.second)


class PeopleAgreement(Record):
    """A judge beside people, on the pairs that both compared.

    Attributes:
        pairs: number of these pairs.
        same: share on which the judge prefers the response that people prefer; a tie or a flip of the judge does not.
        kappa: Cohen's kappa, with a bootstrap interval over pairs; None if either gave one class only.
    """

    pairs: int
    same: Estimate
    kappa: Estimate | None


class JudgeFigures(Record):
    """A judge's figures; a rate is None without a trial.

    Attributes:
        pairs: number of pairs.
        preferences: pairs with a preference.
        ties: pairs without a difference.
        flips: pairs whose verdict flips with the order.
        equal: pairs of equal responses, which are ties without a call.
        errors: pairs without a verdict.
        parse_failures: those of them with a reply that has no verdict.
        first_position: share of verdicts for the response shown first, among those that prefer one.
        flip_rate: share of the judged pairs that flip.
        longer_wins: share of preferences for the response with more characters.
        parse_failure_rate: share of the asked pairs with a reply that has no verdict.
        error_rate: share of the asked pairs without a verdict, for whatever reason.
        people: agreement with people.
    """

    pairs: int
    preferences: int
    ties: int
    flips: int
    equal: int
    errors: int
    parse_failures: int
    first_position: Estimate | None
    flip_rate: Estimate | None
    longer_wins: Estimate | None
    parse_failure_rate: Estimate | None
    error_rate: Estimate | None
    people: PeopleAgreement | None = None


def figures_of(judged: Sequence[JudgedPair], *, seed: int, people: Sequence[Row] = ()) -> JudgeFigures:
    """Return the figures of a judge.

    Args:
        judged: its pairs.
        seed: seed of the resampling.
        people: preference rows whose chosen response people preferred.
    """
    count = {outcome: sum(one.outcome == outcome for one in judged) for outcome in ("tie", "flip", "equal", "error")}
    asked = [one for one in judged if one.outcome != "equal"]
    compared = [one for one in asked if len(one.orders) == 2]
    won = [one for one in judged if one.outcome in ("first", "second")]
    firsts = (
        (one.prompt, verdict.choice == "A")
        for one in compared
        for verdict in one.orders
        if verdict is not None and verdict.choice != "tie"
    )
    judged_twice = [one for one in compared if one.outcome != "error"]
    longer = (
        (one.prompt, (len(one.sides[0]) > len(one.sides[1])) == (one.outcome == "first"))
        for one in won
        if len(one.sides[0]) != len(one.sides[1])
    )
    return JudgeFigures(
        pairs=len(judged),
        preferences=len(won),
        ties=count["tie"],
        flips=count["flip"],
        equal=count["equal"],
        errors=count["error"],
        parse_failures=sum(one.is_parse_failure for one in judged),
        first_position=clustered_share(firsts, seed=seed),
        flip_rate=clustered_share(((one.prompt, one.outcome == "flip") for one in judged_twice), seed=seed),
        longer_wins=clustered_share(longer, seed=seed),
        parse_failure_rate=clustered_share(((one.prompt, one.is_parse_failure) for one in compared), seed=seed),
        error_rate=clustered_share(((one.prompt, one.outcome == "error") for one in compared), seed=seed),
        people=agreement_with(judged, people, seed=seed) if people else None,
    )


def clustered_share(units: Units, *, seed: int, level: float = LEVEL) -> Estimate | None:
    """Return a share with an interval that knows of clusters (`share_interval`); None without a trial."""
    trials: dict[str, list[bool]] = defaultdict(list)
    for cluster, is_success in units:
        trials[cluster].append(is_success)
    if not trials:
        return None
    successes, sizes = [sum(own) for own in trials.values()], [len(own) for own in trials.values()]
    return share_interval(successes, sizes, seed=seed, level=level)


def agreement_with(judged: Sequence[JudgedPair], people: Sequence[Row], *, seed: int) -> PeopleAgreement | None:
    """Return how far a judge agrees with people; None if no pair has a verdict of both.

    Pairs are the same if prompt and both responses are, white space aside. A pair that people judged in two ways as
    often is left out.
    """
    preferred = _preferred(people)
    theirs, own, same = [], [], []
    for one in judged:
        if one.outcome == "error":
            continue
        votes = preferred.get(one.pair.identity, [])
        lead = sum(1 if one.pair.is_same_response(turns) else -1 for turns in votes)
        if lead:
            left, right = (0, 1) if one.pair.first_is_left else (1, 0)
            theirs.append(left if lead > 0 else right)
            own.append({"first": left, "second": right}.get(one.outcome, 2))
            same.append((one.prompt, theirs[-1] == own[-1]))
    share = clustered_share(same, seed=seed)
    if share is None:
        return None
    kappa = kappa_interval(np.array(theirs), np.array(own), seed=seed)
    return PeopleAgreement(pairs=len(theirs), same=share, kappa=kappa)


def _preferred(people: Sequence[Row]) -> Mapping[tuple[str, frozenset[str]], list[list[Turn]]]:
    """Return the responses that people chose, by the identity of their pair."""
    chosen: dict[tuple[str, frozenset[str]], list[list[Turn]]] = defaultdict(list)
    for row in people:
        chosen[Pair(0, dict(row), row["chosen"], row["rejected"]).identity].append(row["chosen"])
    return chosen


def kappa_interval(
    one_N: Labels, other_N: Labels, *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> Estimate | None:
    """Return Cohen's kappa with a percentile bootstrap interval over items; None if it is not defined.

    Resamples in which it is not defined, because all of their labels are one class, count as no agreement beyond
    chance. Where all labels agree, every resample does too; the lower end then is the kappa of the same shares of
    classes at the lower end of the agreement (Wilson's).
    """
    value = cohen_kappa(one_N, other_N)
    if value is None:
        return None
    random = np.random.default_rng(seed)
    resampled = []
    for _ in range(resamples):
        picked = random.integers(0, len(one_N), size=len(one_N))
        kappa = cohen_kappa(one_N[picked], other_N[picked])
        resampled.append(0.0 if kappa is None else kappa)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    if (one_N == other_N).all():
        by_chance = float(sum((one_N == label).mean() ** 2 for label in np.unique(one_N)))
        least = wilson(len(one_N), len(one_N), level=level).low
        low = min(low, (least - by_chance) / (1 - by_chance))
    return Estimate(value=value, low=min(float(low), value), high=max(float(high), value), n=len(one_N))
