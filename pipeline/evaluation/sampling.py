"""Which prompts a limited evaluation asks: a seeded sample that keeps the share of every group.

Owns the choice. Knows nothing of prompts beyond their group: files are often sorted by it, and their first rows would
speak for a few groups only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random


def stratified(groups: Sequence[str], limit: int, *, seed: int) -> list[int]:
    """Return positions of at most ``limit`` rows, in their order.

    Every group gets its share, rounded by largest remainders, and at least one row where ``limit`` allows one for each.
    Within a group the rows are drawn at random; a larger limit with the same seed only adds to them where its quota of
    each group is no smaller.

    Args:
        groups: of each row; rows without one are a group of their own.
        limit: how many to draw, 1 or more.
        seed: of the draw.

    Reference: Neyman (1934), On the two different aspects of the representative method (proportional allocation).
    """
    if limit >= len(groups):
        return list(range(len(groups)))
    random = Random(seed)
    sizes = Counter(groups)
    places: dict[str, list[int]] = {group: [] for group in sizes}
    for place, group in enumerate(groups):
        places[group].append(place)
    for own in places.values():
        random.shuffle(own)
    quotas = _quotas(sizes, limit, random)
    return sorted(place for group, quota in quotas.items() for place in places[group][:quota])


def _quotas(sizes: Counter[str], limit: int, random: Random) -> dict[str, int]:
    """Return how many rows each group gets; equal remainders are settled by chance."""
    total = sizes.total()
    turn = dict(zip(sizes, random.sample(range(len(sizes)), len(sizes)), strict=True))
    quotas = {group: int(limit >= len(sizes)) for group in sizes}
    for _ in range(limit - sum(quotas.values())):
        open_groups = [group for group in sizes if quotas[group] < sizes[group]]
        chosen = max(open_groups, key=lambda group: (limit * sizes[group] / total - quotas[group], turn[group]))
        quotas[chosen] += 1
    return quotas
