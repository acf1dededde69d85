"""Merges the sources of a recipe into one tree: `extends`, profiles and `--set`.

Owns deep merging and overrides. A key set to null is removed (a field that may be null becomes null). Knows nothing of
kinds or of what keys mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import Problem, nearest
from pipeline.recipe.document import Node, parse, wrap


def merge(under: Node, over: Node) -> Node:
    """Merge ``over`` into ``under``: mappings key by key, other values are replaced; nulls stay for later removal."""
    if not isinstance(under.value, dict) or not isinstance(over.value, dict):
        return over
    merged = dict(under.value)
    for key, child in over.value.items():
        merged[key] = merge(merged[key], child) if key in merged else child
    return Node(merged, over.place)


def without_nulls(node: Node) -> Node:
    """Return a mapping without the entries that are null."""
    if not isinstance(node.value, dict):
        return node
    return Node({key: child for key, child in node.value.items() if child.value is not None}, node.place)


def override(root: Node, text: str) -> tuple[Node, list[Problem]]:
    """Apply one ``--set key.key=value``; the value is read as YAML.

    Returns:
        The new tree (the old one if there are problems) and the problems.
    """
    place = f"--set {text}"
    dotted, equals, raw = text.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        example = "--set stages.dpo.train.beta=0.05"
        return root, [Problem("cannot be read", "key.key=value", f"for example `{example}`", where=place)]
    value, problems = parse(raw.strip(), place)
    if problems:
        return root, [Problem(p.found, p.expected, p.remedy, where=place) for p in problems]
    fresh = wrap(value.plain() if raw.strip() else None, place)
    keys = joined_path(root, keys)
    words = {"stages": "stage", "data": "data source", "groups": "group"}
    if keys[0] in words and len(keys) > 2:
        known = root.mapping[keys[0]].mapping if keys[0] in root.mapping else {}
        if keys[1] not in known:
            return root, [Problem(f"no {words[keys[0]]} `{keys[1]}`", remedy=nearest(keys[1], known), where=place)]
    return put(root, keys, fresh, place)


def joined_path(root: Node, parts: list[str]) -> list[str]:
    """Rejoin parts of a dotted path that form an existing key with dots in its name."""
    keys: list[str] = []
    node: Node | None = root
    while parts:
        known = node.mapping if node is not None else {}
        size = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in known), 1)
        key = ".".join(parts[:size])
        node = node.child(int(key) if key.isdecimal() and not known else key) if node is not None else None
        keys.append(key)
        parts = parts[size:]
    return keys


def put(node: Node, keys: Sequence[str], fresh: Node, place: str) -> tuple[Node, list[Problem]]:
    """Return ``node`` with ``fresh`` put at ``keys``; mappings are merged, and missing ones made.

    Args:
        node: the tree.
        keys: the path.
        fresh: the value.
        place: ``file:line`` of what is made.

    Returns:
        The new tree (the old one if there are problems) and the problems.
    """
    if not keys:
        return merge(node, fresh) if fresh.value is not None else fresh, []
    key, rest = keys[0], keys[1:]
    if isinstance(node.value, list):
        if not key.isdigit() or int(key) >= len(node.value):
            return node, [Problem(f"`{key}` is not an index", f"0 to {len(node.value) - 1}", where=place)]
        items = list(node.value)
        items[int(key)], problems = put(items[int(key)], rest, fresh, place)
        return Node(items, node.place), problems
    if not isinstance(node.value, dict) and node.value is not None:
        return node, [Problem(f"`{key}` is set inside {node.plain()!r}", f"a mapping at {node.place}", where=place)]
    below = node.mapping.get(key, Node({} if rest else None, place))
    child, problems = put(below, rest, fresh, place)
    return Node({**node.mapping, key: child}, node.place), problems
