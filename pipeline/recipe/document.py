"""Parses YAML text into a tree of nodes with file and line.

Owns reading one YAML document safely (version 1.2, no tags that construct objects, duplicate keys are problems). Knows
nothing of what a recipe means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from pipeline.errors import Problem

DEPTH_LIMIT = 100
"""Largest depth of nested mappings and lists; no recipe needs more, and the parsers of a recipe fail at 200."""
DEEP, DEEP_EXPECTED = "nested too deeply", f"at most {DEPTH_LIMIT} levels of lists and mappings"

NODE_LIMIT = 100_000
LARGEST_INT = 2**63
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a document and its position.

    Attributes:
        value: a scalar, a dictionary of nodes, or a list of nodes.
        place: ``file:line`` of its key; of the value itself inside a list.
    """

    value: Any
    place: str

    @property
    def mapping(self) -> dict[str, Node]:
        """The entries of a mapping; empty for other values."""
        return self.value if isinstance(self.value, dict) else {}

    def plain(self) -> Any:
        """Return the value as plain Python data."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, key: str | int) -> Node | None:
        """Return the entry of a mapping or a list, or None."""
        if isinstance(self.value, dict):
            return self.value.get(str(key))
        if isinstance(self.value, list) and isinstance(key, int) and key < len(self.value):
            entry: Node = self.value[key]
            return entry
        return None

    def where(self, *keys: str | int) -> str:
        """Return ``file:line`` of the deepest existing node on the path ``keys``."""
        node = self
        for key in keys:
            below = node.child(key)
            if below is None:
                break
            node = below
        return node.place

    def walk(self) -> Iterator[Node]:
        """Yield this node and all below it."""
        yield self
        for child in self.value.values() if isinstance(self.value, dict) else self.value_list():
            yield from child.walk()

    def value_list(self) -> list[Node]:
        """Return the entries of a list; empty for other values."""
        return self.value if isinstance(self.value, list) else []


def wrap(value: object, place: str) -> Node:
    """Convert plain data to nodes that all have the same place."""
    if isinstance(value, dict):
        return Node({str(key): wrap(child, place) for key, child in value.items()}, place)
    if isinstance(value, list):
        return Node([wrap(child, place) for child in value], place)
    return Node(value, place)


def parse(text: str, label: str) -> tuple[Node, list[Problem]]:
    """Read one YAML document.

    Args:
        text: the document.
        label: name of the file in places.

    Returns:
        The tree and all problems of the text; the tree is an empty mapping if the text is not YAML.
    """
    yaml = YAML(typ="safe", pure=True)
    empty = Node({}, f"{label}:1")
    try:
        root = yaml.compose(text)
        if root is None:
            return empty, []
        reader = _Reader(yaml, label)
        return reader.read(root, None), reader.problems
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        statement = f"not valid YAML: {error.problem or error.context or 'cannot be read'}"
        # A brace inside {…} or […] ends a plain scalar, and YAML's own message does not say so.
        is_variable = "${" in "".join(text.splitlines()[line - 1 : line])
        remedy = "put a text with ${NAME} in quotes where it stands inside {…} or […]" if is_variable else ""
        return empty, [Problem(statement, "", remedy, where=f"{label}:{line}")]
    except YAMLError as error:
        return empty, [Problem(f"not valid YAML: {str(error).splitlines()[0]}", where=f"{label}:1")]
    except RecursionError:
        return empty, [Problem(DEEP, DEEP_EXPECTED, where=f"{label}:1")]


class _Reader:
    """Converts composed YAML nodes to `Node`, collecting problems."""

    def __init__(self, yaml: YAML, label: str) -> None:
        self.yaml = yaml
        self.label = label
        self.problems: list[Problem] = []
        self.count = 0
        self.open: set[int] = set()

    def place(self, node: Any) -> str:
        return f"{self.label}:{node.start_mark.line + 1}"

    def bad(self, node: object, statement: str, expected: str = "", remedy: str = "") -> None:
        self.problems.append(Problem(statement, expected, remedy, where=self.place(node)))

    def read(self, node: object, place: str | None) -> Node:
        """Convert ``node``; ``place`` is the line of its key, if it has one."""
        place = place or self.place(node)
        self.count += 1
        if id(node) in self.open:
            self.bad(node, "an alias stands inside its own anchor")
            return Node(None, place)
        if self.count > NODE_LIMIT:
            if self.count == NODE_LIMIT + 1:
                self.bad(node, f"aliases expand to more than {NODE_LIMIT:,} values")
            return Node(None, place)
        if len(self.open) == DEPTH_LIMIT:
            self.bad(node, DEEP, DEEP_EXPECTED)
            return Node(None, place)
        self.open.add(id(node))
        try:
            if isinstance(node, MappingNode):
                return Node(self.entries(node), place)
            if isinstance(node, SequenceNode):
                return Node([self.read(item, None) for item in node.value], place)
            return Node(self.scalar(node), place)
        finally:
            self.open.discard(id(node))

    def entries(self, node: Any) -> dict[str, Node]:
        """Return the entries of a mapping; keys must be text and unique, and ``<<`` merges defaults."""
        if not str(node.tag).endswith(":map"):
            self.bad(node, f"tag `{node.tag}` is not allowed", "plain YAML values")
        own: dict[str, Node] = {}
        inherited: dict[str, Node] = {}
        for key_node, value_node in node.value:
            if isinstance(key_node, ScalarNode) and str(key_node.tag) == f"{_TAG}merge":
                sources = value_node.value if isinstance(value_node, SequenceNode) else [value_node]
                for source in reversed(sources):
                    inherited.update(self.read(source, None).mapping)
                continue
            key = self.scalar(key_node) if isinstance(key_node, ScalarNode) else None
            if not isinstance(key, str):
                shown = key_node.value if isinstance(key_node, ScalarNode) else "a list or mapping"
                self.bad(key_node, f"key `{shown}` is not text", remedy="put it in quotes")
                continue
            if key in own:
                self.bad(key_node, f"key `{key}` is given twice, first at {own[key].place}", "", "remove one of them")
                continue
            own[key] = self.read(value_node, self.place(key_node))
        return {**inherited, **own}

    def scalar(self, node: Any) -> Any:
        """Return the value of a scalar; dates stay text, and numbers must be finite."""
        tag = str(node.tag).removeprefix(_TAG)
        if tag in {"str", "timestamp", "merge", "value"}:
            return str(node.value)
        if tag == "null":
            return None
        if tag == "bool":
            return str(node.value).lower() == "true"
        if tag in {"int", "float"}:
            try:
                number = getattr(self.yaml.constructor, f"construct_yaml_{tag}")(node)
            except ValueError:
                self.bad(node, f"`{node.value}` is not a number")
                return None
            if isinstance(number, int) and abs(number) >= LARGEST_INT:
                self.bad(node, f"`{str(node.value)[:40]}` is too large", "a whole number of 64 bits at most")
                return None
            if math.isfinite(number):
                return number
            self.bad(node, f"`{node.value}` is not a finite number")
            return None
        self.bad(node, f"tag `{node.tag}` is not allowed", "plain YAML values")
        return None
