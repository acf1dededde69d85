"""Checks that a stage gets enough rows, for kinds that need other than one batch of them. No torch.

Owns the rules of kinds that count otherwise than `traits.fill_a_batch`. Knows nothing of where the rows come from: they
are counted before tokenization (`preflight/checks/sources.py`) or after it (`preflight/checks/tokens.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pipeline.errors import Problem, agreeing, counted
from pipeline.kind.traits import RowCounts, too_few

if TYPE_CHECKING:
    from pipeline.training.fields import CommonTrain


class SamplesResponses(Protocol):
    """A `train` block whose batches consist of responses.

    Attributes:
        num_generations: responses to each prompt.
    """

    num_generations: int

    @property
    def responses_at_once(self) -> int:
        """Return the responses sampled at a time."""
        ...


def any_number(_train: object, _rows: RowCounts) -> Problem | None:
    """Return no problem: where documents are cut into rows, their number says nothing."""
    return None


def fill_a_batch_of_sides(train: CommonTrain, rows: RowCounts) -> Problem | None:
    """Check rows of which a pair counts as two, the good response and the bad one."""
    is_paired = rows.shape == "preference"
    count = 2 * rows.train if is_paired else rows.train
    if count >= train.batch_size:
        return None
    paired = f" ({counted(rows.train, 'pair')})" if is_paired else ""
    statement = f"there {agreeing(count, 'is', 'are')} {counted(count, 'row')}{paired} to train on"
    return too_few(statement, f"one batch of {train.batch_size}", "rows")


def fill_a_batch_of_responses(train: SamplesResponses, rows: RowCounts) -> Problem | None:
    """Check prompts of which each gets `num_generations` responses of a batch."""
    needed = train.responses_at_once // train.num_generations
    if rows.train >= needed:
        return None
    wanted = f"{needed}, for one batch of {train.responses_at_once} responses"
    return too_few(f"there {_prompts(rows.train)} to learn from", wanted, "prompts")


def learn_and_hold_out(_train: object, rows: RowCounts) -> Problem | None:
    """Check prompts of which some are split off for evaluation if none are held out."""
    if rows.train >= 1 and rows.train + rows.held_out >= 2:
        return None
    statement = f"there {_prompts(rows.train)} to learn from and {rows.held_out} held out"
    return Problem(statement, "at least two prompts, one of them to learn from", "bring more prompts")


def _prompts(count: int) -> str:
    """Return ``is 1 prompt`` or ``are 3 prompts``."""
    return f"{agreeing(count, 'is', 'are')} {counted(count, 'prompt')}"
