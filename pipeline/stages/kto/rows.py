"""The rows of KTO: good and bad ones of pairs, mismatched responses, their order in batches, the balance of labels.

Pure functions on encoded rows. They know nothing of trainers and of torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pipeline.errors import PipelineError, Problem, agreeing, counted
from pipeline.training.fields import nothing_fits

if TYPE_CHECKING:
    from pipeline.training.data.encoding import EncodedRow

BALANCE = (1.0, 1.5)
"""Range of (λ_D n_D) / (λ_U n_U), the total weight of good rows over that of bad rows, by equation 9."""

FAR_OFF = 1.5
"""Factor by which the ratio must be below or above `BALANCE` before the stage notes it."""


def label_pairs(pairs: Sequence[EncodedRow]) -> list[EncodedRow]:
    """Return the good row and the bad row of each pair."""
    sides: tuple[tuple[Literal["chosen_ids", "rejected_ids"], bool], ...] = (
        ("chosen_ids", True),
        ("rejected_ids", False),
    )
    return [
        {"prompt_ids": pair["prompt_ids"], "completion_ids": pair[side], "label": label}
        for pair in pairs
        for side, label in sides
    ]


def check_labels(encoded: Sequence[EncodedRow], max_length: int, *, is_paired: bool) -> None:
    """Check that good and bad rows are left after rows that do not fit were removed.

    Raises:
        PipelineError: no row, or no row of one label, is left.
    """
    labels = {row["label"] for row in encoded}
    if len(labels) < 2:
        what = "pair" if is_paired else "row" if not labels else "bad row" if True in labels else "good row"
        raise nothing_fits(what, max_length)


def length_quantiles(lengths: Sequence[int], labels: Sequence[bool]) -> list[float]:
    """Return the quantile of each row's length among the rows of its label, from 0 to 1.

    Sorting by it mixes the labels evenly, in the proportion of their rows.
    """
    quantiles = [0.0] * len(lengths)
    for label in (True, False):
        alike = sorted((length, row) for row, length in enumerate(lengths) if labels[row] == label)
        for rank, (_, row) in enumerate(alike):
            quantiles[row] = (rank + 0.5) / len(alike)
    return quantiles


def weight_advice(good: int, bad: int, desirable_weight: float, undesirable_weight: float) -> str:
    """Return the advice for labels whose total weights are far from balance; empty if they are not.

    Reference: Ethayarajh et al. 2024, equation 9; the weight of the rarer label is raised.
    """
    if desirable_weight <= 0 or undesirable_weight <= 0:
        return ""  # one side is switched off on purpose
    low, high = BALANCE
    ratio = desirable_weight * good / (undesirable_weight * bad)
    if low / FAR_OFF <= ratio <= high * FAR_OFF:
        return ""
    if ratio < low:
        word, least, most = "desirable_weight", desirable_weight * low / ratio, desirable_weight * high / ratio
    else:
        word, least, most = "undesirable_weight", undesirable_weight * ratio / high, undesirable_weight * ratio / low
    weigh = agreeing(good, "weighs", "weigh")
    return (
        f"{counted(good, 'good row')} {weigh} {ratio:.3g} times as much as {counted(bad, 'bad one')}, arXiv:2402.01306 "
        f"advises {low:g} to {high:g}: set train.{word} between {least:.3g} and {most:.3g}"
    )


def add_mismatched(
    rows: Sequence[EncodedRow], pool: Sequence[EncodedRow], max_length: int, seed: int
) -> list[EncodedRow]:
    """Return each row with a mismatched response, one from ``pool`` to another prompt, truncated to ``max_length``.

    Raises:
        PipelineError: all rows of the pool have the same prompt.
    """
    rng = random.Random(f"{seed}/matched")
    completed: list[EncodedRow] = []
    for row in rows:
        drawn = rng.randrange(len(pool))
        following = (pool[(drawn + step) % len(pool)] for step in range(len(pool)))
        other = next((one for one in following if one["prompt_ids"] != row["prompt_ids"]), None)
        if other is None:
            statement = "all rows have the same prompt"
            raise PipelineError(Problem(statement, "at least two: responses to one are held against those to another"))
        room = max_length - len(row["prompt_ids"])
        completed.append({**row, "KL_completion_ids": other["completion_ids"][:room]})
    return completed
