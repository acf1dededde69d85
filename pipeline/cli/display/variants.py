"""Merges the rows of a table that say the same of all variants of a stage.

Knows nothing of what the rows say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def merged(
    rows: Sequence[Sequence[str]], variants: Mapping[str, str], *, names: int = 1, count: bool = False
) -> list[list[str]]:
    """Return rows with those of all variants of a stage as one, under `dpo-*`, if they are alike.

    Args:
        rows: cells; the first ones are names of stages.
        variants: name of each variant to that of its stage.
        names: number of columns with names.
        count: whether a name says of how many stages each has what the row says.
    """
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for row in rows:
        plain = tuple(_plain(cell, variants) for cell in row[:names])
        groups.setdefault(plain, []).append(list(row))
    table = []
    for plain, own in groups.items():
        if len({tuple(row[names:]) for row in own}) > 1 or len(own) == 1:
            table += own
        else:
            first = f"{plain[0]} (each of {len(own)})" if count else plain[0]
            table.append([first, *plain[1:], *own[0][names:]])
    return table


def under_plain_names(names: Sequence[str], variants: Mapping[str, str]) -> list[str]:
    """Return names of stages with variants as `dpo-*`, each once."""
    return list(dict.fromkeys(_plain(name, variants) for name in names))


def _plain(name: str, variants: Mapping[str, str]) -> str:
    return f"{variants[name]}-*" if name in variants else name
