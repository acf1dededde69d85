"""Pairs of responses to judge: from the candidates of a kind `sample`, or from preference rows. No numerics."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.errors import PipelineError, Problem
from pipeline.plain_data import JsonObject, Row, ShapedRow
from pipeline.records.pair_choice import PairRule, choose_pairs, unusable
from pipeline.records.shapes.turns import Turn

OWN_COLUMNS = frozenset({"chosen", "rejected", "margin", "candidates", "pairs", "row", "reward_scores"})
"""Columns of a row that hold its responses; a function does not get them."""


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt.

    Attributes:
        place: index of the row in the data.
        row: `prompt` (turns) and the columns beside the responses.
        first: turns of one response.
        second: turns of the other.
    """

    place: int
    row: ShapedRow
    first: Sequence[Turn]
    second: Sequence[Turn]

    @property
    def is_equal(self) -> bool:
        """Whether the responses are equal but for white space."""
        return _plain(self.first) == _plain(self.second)

    @property
    def identity(self) -> tuple[str, frozenset[str]]:
        """Prompt and responses without their order and white space: equal for the same pair of another source."""
        return conversation_text(self.row["prompt"]), frozenset((_plain(self.first), _plain(self.second)))

    @property
    def first_is_left(self) -> bool:
        """Whether the first response stands left in an order that is as good as random and the same in every source.

        Preference rows have the chosen response first. Labels by such a place would all be one class, and their
        agreement beyond chance would not be known.
        """
        first, second = (hashlib.sha256(_plain(turns).encode()).digest() for turns in (self.first, self.second))
        return first < second

    def is_same_response(self, turns: Sequence[Turn]) -> bool:
        """Return whether turns are the first response, white space aside."""
        return _plain(self.first) == _plain(turns)


class PairsToJudge(NamedTuple):
    """The pairs to judge.

    Attributes:
        pairs: pairs in the order of the data.
        left_out: number of responses and pairs that are not used, by reason.
    """

    pairs: list[Pair]
    left_out: Counter[str]


REPEATED = "repeated"
"""Why a pair is left out."""


def pairs_of(
    rows: Sequence[ShapedRow], shape: str, *, per_prompt: int | None = None, limit: int | None = None, seed: int = 0
) -> PairsToJudge:
    """Return the pairs of rows.

    Preference rows are pairs; which answer is called chosen is not used. Of the candidates of a prompt, those that are
    empty or name a model are in no pair, since a judge must not know whose answer it reads.

    Args:
        rows: preference rows, or prompts with `candidates`.
        shape: shape of the rows: ``preference`` or ``candidates``.
        per_prompt: random pairs of each prompt's candidates; 0 is all, None those that `sample` drew.
        limit: at most so many pairs, drawn at random.
        seed: seed of both choices.

    Raises:
        PipelineError: a prompt has no candidates.
    """
    left_out = Counter[str]()
    pairs, seen = [], set()
    of_row = _preference_pairs if shape == "preference" else _candidate_pairs
    for place, row in enumerate(rows):
        for pair in of_row(place, row, (per_prompt, seed), left_out):
            if pair.identity in seen:
                left_out[REPEATED] += 1
                continue
            seen.add(pair.identity)
            pairs.append(pair)
    if limit is not None and limit < len(pairs):
        kept = sorted(random.Random(seed).sample(range(len(pairs)), limit))
        pairs = [pairs[i] for i in kept]
    return PairsToJudge(pairs, left_out)


def _preference_pairs(place: int, row: ShapedRow, _: tuple[int | None, int], __: Counter[str]) -> Iterator[Pair]:
    yield Pair(place, _own(row), row["chosen"], row["rejected"])


def _candidate_pairs(
    place: int, row: ShapedRow, choice: tuple[int | None, int], left_out: Counter[str]
) -> Iterator[Pair]:
    """Yield the pairs of a prompt's candidates; which of two stands first is random where they are drawn here."""
    candidates = row.get("candidates")
    if not isinstance(candidates, list) or not all(isinstance(one, dict) and "text" in one for one in candidates):
        remedy = "name the file `candidates.jsonl` of a stage of kind sample, or a source of preference rows"
        raise PipelineError(Problem(f"row {place + 1} of data has no `candidates`", "answers to compare", remedy))
    usable = []
    for i, candidate in enumerate(candidates):
        reason = unusable(candidate)
        if reason is not None:
            left_out[reason] += 1
        else:
            usable.append(i)
    per_prompt, seed = choice
    drawn = row.get("pairs") if per_prompt is None else None
    if isinstance(drawn, list):
        places = [(one["first"], one["second"]) for one in drawn]
    else:
        rule = PairRule(count=per_prompt or 0)
        places = [pair[:2] for pair in choose_pairs(usable, [], rule, random.Random(f"{seed}/{place}"))]
    own = _own(row)
    for first, second in places:
        if first in usable and second in usable:
            yield Pair(place, own, *(_turns(candidates[i]) for i in (first, second)))


def _own(row: Row) -> ShapedRow:
    return {name: value for name, value in row.items() if name not in OWN_COLUMNS}


def _turns(candidate: JsonObject) -> list[Turn]:
    return [{"role": "assistant", "content": candidate["text"]}]


def conversation_text(turns: Sequence[Turn]) -> str:
    """Return turns as text for a judge: a single turn without its role, several with their roles."""
    if len(turns) == 1:
        return str(turns[0]["content"])
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def _plain(turns: Sequence[Turn]) -> str:
    return " ".join(conversation_text(turns).split())
