"""The names that a stage of a recipe mentions: which keys hold them, and replacing them by what they mean.

Knows nothing of rounds and sweeps, which give names their meanings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pipeline.recipe.document import Node
from pipeline.stage import KINDS

ALL = "-*"
"""Ending that stands for all rounds, or all variants, of a stage."""


def marked_fields(stage: Node, *markers: type) -> Iterator[str]:
    """Yield the keys of a stage whose fields have one of the markers."""
    kind = stage.mapping["kind"].value if "kind" in stage.mapping else None
    if isinstance(kind, str) and kind in KINDS:
        for marker in markers:
            yield from (key for key in KINDS[kind].config.markers(marker) if key in stage.mapping)


def replaced(node: Node, meaning: Mapping[str, list[Node]]) -> Node:
    """Return a list, or a mapping of parts, with the names in it replaced; a name of several stands for all of them."""
    if isinstance(node.value, list):
        items: list[Node] = []
        for item in node.value:
            meant = meaning.get(item.value) if isinstance(item.value, str) else None
            items += [Node(one.value, one.place or item.place) for one in meant] if meant else [replaced(item, meaning)]
        return Node(items, node.place)
    if isinstance(node.value, dict):
        return Node({key: replaced(child, meaning) for key, child in node.value.items()}, node.place)
    meant = meaning.get(node.value, []) if isinstance(node.value, str) else []
    return Node(meant[0].value, meant[0].place or node.place) if len(meant) == 1 else node
