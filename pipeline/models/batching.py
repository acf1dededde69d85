"""Groups rows of similar length into batches. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""


def length_batches(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Yield row indices of similar length whose padded size stays within a budget.

    Args:
        lengths: tokens of each row.
        token_budget: padded tokens of a batch; a longer row goes alone.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        # Rows come in rising length, so the newest row sets the batch's width.
        if batch and (len(batch) + 1) * lengths[row] > token_budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
