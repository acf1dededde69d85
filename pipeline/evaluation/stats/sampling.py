"""Stratified sampling of prompts for a limited evaluation, with a seed.

Owns the choice. Knows nothing of prompts beyond their group. Files are often sorted by group, so their first rows would
represent only a few groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random


def stratified(groups: Sequence[str], limit: int, *, seed: int) -> list[int]:
    """Return the sorted indices of at most ``limit`` rows.

    The allocation is proportional, rounded by largest remainders, with at least one row per group if ``limit`` allows
    it. Within a group the rows are drawn at random. With the same seed, a group whose quota grows with the limit keeps
    its rows and gets more.

    Args:
        groups: group of each row; rows without one form a group of their own.
        limit: size of the sample, 1 or more.
        seed: seed of the sample.

    Reference: Neyman (1934), On the two different aspects of the representative method (proportional allocation).
    """
    if limit >= len(groups):
        return list(range(len(groups)))
    random = Random(seed)
    sizes = Counter(groups)
    indices: dict[str, list[int]] = {group: [] for group in sizes}
    for index, group in enumerate(groups):
        indices[group].append(index)
    for own in indices.values():
        random.shuffle(own)
    quotas = _quotas(sizes, limit, random)
    return sorted(index for group, quota in quotas.items() for index in indices[group][:quota])


def _quotas(sizes: Counter[str], limit: int, random: Random) -> dict[str, int]:
    """Return the number of rows of each group; equal remainders are ordered at random."""
    total = sizes.total()
    turn = dict(zip(sizes, random.sample(range(len(sizes)), len(sizes)), strict=True))
    quotas = {group: int(limit >= len(sizes)) for group in sizes}
    for _ in range(limit - sum(quotas.values())):
        open_groups = [group for group in sizes if quotas[group] < sizes[group]]
        chosen = max(open_groups, key=lambda group: (limit * sizes[group] / total - quotas[group], turn[group]))
        quotas[chosen] += 1
    return quotas
