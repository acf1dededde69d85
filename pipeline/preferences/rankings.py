"""Rankings of three responses and more: what a person sends, the pairs that follow from it, and how far people agree.

A ranking is a weak order: tiers, best first, of responses that share a rank. Each two responses of it are a comparison:
the better one is preferred, and two of one tier are a tie. The strength is the number of tiers between them, at most
3. So what is computed of pairs is computed of rankings too; `Implied.group_N` says which pairs belong together, since
those of one ranking are not independent of each other.

Reference: Ouyang et al. 2022, arXiv:2203.02155, section 3.5 (all pairs of a ranking train the reward model).

Shape legend: N pairs; of a group: K responses, P pairs, O orders of the responses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, permutations
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.errors import PipelineError, Problem
from pipeline.evaluation.stats.estimate import Estimate
from pipeline.evaluation.stats.intervals import wilson
from pipeline.evaluation.stats.rankings import rank_agreement
from pipeline.preferences.agreement import Decide, Decision
from pipeline.preferences.events import STRONGEST, EventBody, Verdict
from pipeline.preferences.items import Item, is_ranked
from pipeline.preferences.labels import Answer, FinalVerdict, State, Tiers
from pipeline.records.pair_choice import MOST_RANKED

ScreenTiers = Annotated[list[Annotated[list[int], Field(max_length=MOST_RANKED)]], Field(max_length=MOST_RANKED)]
"""A ranking as a browser sends it: places on the screen, from 0, in tiers, best first."""

CYCLE = "pair in a cycle"
"""Why a pair makes no row: majorities contradict each other, a over b, b over c and c over a."""


class Ranked(NamedTuple):
    """A ranking as a browser sends it.

    Attributes:
        ranking: places on the screen, from 0, in tiers, best first.
        seconds: time the ranking took.
        request: id of the request; empty without one.
        comment: what the person wrote about the group.
    """

    ranking: Sequence[Sequence[int]]
    seconds: float = 0.0
    request: str = ""
    comment: str = ""


class Implied(NamedTuple):
    """Pairs, and their labels as they follow from rankings.

    Attributes:
        items: the pairs; those of one group follow each other.
        state: labels of the pairs; of a batch of pairs, the state itself.
        group_N: place of each pair's group in the batch; None of a batch of pairs.
    """

    items: Sequence[Item]
    state: State
    group_N: NDArray[np.int64] | None


def by_response(ranking: Sequence[Sequence[int]], order: Sequence[int]) -> Tiers:
    """Return a ranking by the order of the data, from one by places on the screen.

    Raises:
        PipelineError: a place is missing, named twice, or not on the screen.
    """
    named = [place for tier in ranking for place in tier]
    if sorted(named) != list(range(len(order))) or not all(ranking):
        raise PipelineError(Problem(f"a ranking of the places {named}", f"each of 0 to {len(order) - 1} once"))
    return tuple(tuple(sorted(order[place] for place in tier)) for tier in ranking)


def ranking_body(given: Ranked, order: Sequence[int]) -> EventBody:
    """Return the fields of a label's event that hold a ranking.

    Raises:
        PipelineError: it does not rank every answer of the screen once.
    """
    tiers = by_response(given.ranking, order)
    body = EventBody(ranking=list(map(list, tiers)), order=list(order), seconds=given.seconds)
    return {**body, "comment": given.comment} if given.comment.strip() else body


def ranks_of(tiers: Tiers) -> list[int]:
    """Return the rank of each response, from 0 for the best, in the order of the data."""
    rank = {place: number for number, tier in enumerate(tiers) for place in tier}
    return [rank[place] for place in range(len(rank))]


def implied(items: Sequence[Item], state: State) -> Implied:
    """Return each two responses of each group as a pair, with the labels that the rankings give it.

    What was dropped, flagged or adjudicated as a group is so in each of its pairs.
    """
    if not is_ranked(items):
        return Implied(items, state, None)
    pairs: list[Item] = []
    groups: list[int] = []
    made = replace(
        state,
        answers=defaultdict(dict),
        given=defaultdict(dict),
        flags=defaultdict(int),
        dropped={},
        adjudicated={},
        touched=set(),
    )
    for group, item in enumerate(items):
        final = state.adjudicated.get(item.id)
        for first, second in combinations(range(len(item.responses)), 2):
            name = f"{item.id}/{first}-{second}"
            pairs.append(Item(name, item.prompt, (item.responses[first], item.responses[second]), tools=item.tools))
            groups.append(group)
            if state.is_flagged(item.id):
                made.flags[name] = state.flags[item.id]
            if item.id in state.dropped:
                made.dropped[name] = state.dropped[item.id]
            if final is not None and final.tiers is not None:
                verdict, strength = _compared(final.tiers, first, second)
                made.adjudicated[name] = FinalVerdict(final.lead, verdict, strength, final.reason)
            for who, answer in state.given.get(item.id, {}).items():
                made.given[name][who] = _of_pair(answer, first, second)
    for name, given in made.given.items():
        for who, answer in given.items():
            made.answers[who][name] = answer
    for who, own in made.answers.items():
        made.answers[who] = dict(sorted(own.items(), key=lambda one: one[1].number))
    return Implied(pairs, made, np.array(groups, np.int64))


def _of_pair(answer: Answer, first: int, second: int) -> Answer:
    if answer.tiers is None:
        return answer
    verdict, strength = _compared(answer.tiers, first, second)
    order = answer.order
    swapped = None if order is None else order.index(second) < order.index(first)
    return answer._replace(verdict=verdict, strength=strength, swapped=swapped, tiers=None, order=None)


def _compared(tiers: Tiers, first: int, second: int) -> tuple[Verdict, int]:
    """Return which of two responses a ranking prefers, and how strongly."""
    ranks = ranks_of(tiers)
    apart = ranks[second] - ranks[first]
    if not apart:
        return "tie", 1
    return ("first" if apart > 0 else "second"), min(abs(apart), STRONGEST)


def without_cycles(pairs: Implied, decide: Decide) -> Decide:
    """Return an aggregation whose decisions on the pairs of a group never contradict each other.

    Of the decisions of ``decide``, it keeps those that hold in every order of the group's responses for which the sum
    of the margins of the decisions it follows, less those it contradicts, is largest. A decision that does not hold in
    all of them is one of a cycle, and prefers neither response.

    Args:
        pairs: pairs of groups; those of a batch of pairs belong to no group, and ``decide`` is returned as it is.
        decide: aggregates the labels of a pair.

    Reference: Young (1988), Condorcet's theory of voting (Kemeny's rule), with margins in place of numbers of votes.
    """
    if pairs.group_N is None:
        return decide
    state, groups = pairs.state, defaultdict[int, list[Item]](list)
    for item, group in zip(pairs.items, pairs.group_N.tolist(), strict=True):
        groups[group].append(item)
    in_cycle: set[str] = set()
    for own in groups.values():
        labels = [list(state.labels(item.id).values()) for item in own]
        if len(labels[0]) < 2:  # one person's ranking has no cycle
            continue
        margins = [decide(item.id, one).margin for item, one in zip(own, labels, strict=True)]
        in_cycle |= {own[place].id for place in _contradicted(margins)}

    def decide_all(item: str, labels: Sequence[Answer]) -> Decision:
        return Decision(CYCLE, 0.0) if item in in_cycle else decide(item, labels)

    return decide_all


def _contradicted(margins: Sequence[float]) -> list[int]:
    """Return the places of the margins, one for each two responses, that not every best order follows."""
    follows_OP = _orders(len(margins))
    score_O = follows_OP @ np.asarray(margins, float)
    best_OP = follows_OP[score_O >= score_O.max() - 1e-9]
    against_P = (best_OP * np.sign(margins) < 0).any(0)
    return [int(place) for place in np.flatnonzero(against_P)]


@cache
def _orders(pairs: int) -> NDArray[np.int64]:
    """Return what each order of the responses that make so many pairs says of each pair: 1 if the first is better."""
    count = next(k for k in range(3, MOST_RANKED + 1) if k * (k - 1) // 2 == pairs)
    rank_OK = np.argsort(np.array(list(permutations(range(count)))), 1)
    pairs_of = combinations(range(count), 2)
    return np.stack([np.sign(rank_OK[:, second] - rank_OK[:, first]) for first, second in pairs_of], 1)


def shown_first(answers: Iterable[Answer]) -> Estimate | None:
    """Return the share of preferences for the response shown first, on the left or further up; None without any.

    Labels of pairs are independent of each other. The preferences of one ranking are not, so that Wilson's interval
    counts a ranking as one trial, which is too wide rather than too narrow.
    """
    counts = [_sides(answer) for answer in answers]
    counts = [(first, of) for first, of in counts if of]
    if not counts:
        return None
    share = sum(first for first, _ in counts) / sum(of for _, of in counts)
    return wilson(share * len(counts), len(counts))


def _sides(answer: Answer) -> tuple[int, int]:
    """Return how many preferences of a label are for the response shown first, and how many there are."""
    if answer.tiers is None:
        is_known = answer.verdict in ("first", "second") and answer.swapped is not None
        return int((answer.verdict == "second") == answer.swapped) if is_known else 0, int(is_known)
    if answer.order is None:
        return 0, 0
    ranks = ranks_of(answer.tiers)
    apart = [ranks[later] - ranks[earlier] for earlier, later in combinations(answer.order, 2)]
    return sum(one > 0 for one in apart), sum(one != 0 for one in apart)


def tau_b(items: Sequence[Item], state: State, *, seed: int = 0) -> Estimate | None:
    """Return how far the rankings of two people agree, as `rank_agreement` does; None without two of a group."""
    names = (item.id for item in items)
    given = ([ranks_of(one.tiers) for one in state.labels(name).values() if one.tiers] for name in names)
    return rank_agreement([ranks for ranks in given if len(ranks) > 1], seed=seed)


def differ(tiers: Iterable[Tiers]) -> str:
    """Return how rankings of one group differ: ``order`` if two reverse a pair, ``ties``, or empty if they do not."""
    distinct = {tuple(map(frozenset, one)) for one in tiers}
    ranks = [ranks_of(tuple(map(tuple, one))) for one in distinct]
    for one, other in combinations(ranks, 2):
        if any((one[a] - one[b]) * (other[a] - other[b]) < 0 for a, b in combinations(range(len(one)), 2)):
            return "order"
    return "ties" if len(distinct) > 1 else ""
