"""The names that a stage of a recipe mentions: which keys hold them, and replacing them by what they mean.

Owns environment variables that stand for such names. Knows nothing of rounds and sweeps, which give names their
meanings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from pipeline.errors import PipelineError
from pipeline.recipe.document import Node
from pipeline.recipe.paths import Variable, expand
from pipeline.stage import KINDS, Among, Input

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


def without_variables(node: Node) -> Node:
    """Return a value with the environment variables in its texts expanded; a text with a problem stays as it is."""
    if isinstance(node.value, dict):
        return Node({key: without_variables(child) for key, child in node.value.items()}, node.place)
    if isinstance(node.value, list):
        return Node([without_variables(child) for child in node.value], node.place)
    return Node(_expanded(node.value, []), node.place) if isinstance(node.value, str) else node


def with_names(root: Node, variables: list[Variable]) -> Node:
    """Return a recipe in which a variable that stands for a stage is its name, so that rounds and variants are found.

    All other texts keep their variables.

    Args:
        root: the recipe, before groups and sweeps are expanded.
        variables: the variables that are replaced are appended to it.
    """
    groups = root.mapping.get("groups", Node({}, ""))
    carried = (name for group in groups.mapping.values() for name in group.mapping.get("carry", Node({}, "")).mapping)
    stages = root.mapping.get("stages", Node({}, ""))
    names = {*stages.mapping, *(f"{name}{ALL}" for name in stages.mapping), *carried}
    entries = dict(root.mapping)
    for section in ("groups", "sweep"):
        if section in entries:
            entries[section] = _named(entries[section], names, variables)
    for section, entry in (("data", _named_source), ("stages", _named_stage)):
        if section in entries and entries[section].mapping:
            own = {name: entry(node, names, variables) for name, node in entries[section].mapping.items()}
            entries[section] = Node(own, entries[section].place)
    return Node(entries, root.place)


def _named_stage(node: Node, names: Collection[str], variables: list[Variable]) -> Node:
    named = {key: _named(node.mapping[key], names, variables) for key in marked_fields(node, Input, Among)}
    return Node({**node.mapping, **named}, node.place) if named else node


def _named_source(node: Node, names: Collection[str], variables: list[Variable]) -> Node:
    if "artifact" not in node.mapping:
        return node
    return Node({**node.value, "artifact": _named(node.value["artifact"], names, variables)}, node.place)


def _named(node: Node, names: Collection[str], variables: list[Variable]) -> Node:
    """Return a value in which each text with a variable that expands to one of ``names`` is that name."""
    if isinstance(node.value, dict):
        return Node({key: _named(child, names, variables) for key, child in node.value.items()}, node.place)
    if isinstance(node.value, list):
        return Node([_named(child, names, variables) for child in node.value], node.place)
    own: list[Variable] = []
    text = _expanded(node.value, own) if isinstance(node.value, str) else ""
    if not own or text not in names:
        return node
    variables += own
    return Node(text, node.place)


def _expanded(text: str, variables: list[Variable]) -> str:
    """Return a text with its variables expanded, or as it is if it has a problem, which its stage reports."""
    try:
        return expand(text, variables=variables)
    except PipelineError:
        return text
