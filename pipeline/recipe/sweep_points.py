"""The points of a sweep's grid: the recipe with each combination of values, and what each setting reaches in it.

A setting reaches the stages and data sources that it changes, and those made from them at the same point: a swept
`model:` may lead to another stage at each.

Owns applying settings and following names. `variants.py` makes stages of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

from pipeline.errors import Problem
from pipeline.recipe.document import Node
from pipeline.recipe.groups import SEEDS
from pipeline.recipe.merging import put
from pipeline.recipe.references import marked_fields
from pipeline.recipe.sweep import SEED, Grid, Setting, Target, is_report
from pipeline.stage import Data, Input

Key = tuple[str, str]
"""Section and name of a stage or data source."""


class Point(NamedTuple):
    """One combination of values.

    Attributes:
        tree: the recipe with these values.
        values: value of each setting, by its key.
    """

    tree: Node
    values: Mapping[str, Node]

    def needs(self, key: Key) -> Iterator[Key]:
        """Yield the stages and data sources that one reads; a name with `-*` needs no variant of its own."""
        section, name = key
        node = self.tree.mapping[section].mapping[name]
        stages, data = self.tree.mapping["stages"].mapping, self.tree.mapping.get("data", Node({}, "")).mapping
        if section == "data":
            given = [node.mapping["artifact"]] if "artifact" in node.mapping else []
        else:
            given = [one for field_name in marked_fields(node, Input) for one in node.mapping[field_name].walk()]
            sources = [node.mapping[field_name].value for field_name in marked_fields(node, Data)]
            yield from (("data", source) for source in sources if isinstance(source, str) and source in data)
        for one in given:
            if isinstance(one.value, str) and one.value in stages and not is_report(stages[one.value]):
                yield "stages", one.value


@dataclass
class Points:
    """A grid with its points.

    Attributes:
        settings: the settings of the grid.
        points: its points, the last setting changing fastest.
        known: what reaches each stage and data source, by the index of the point.
    """

    settings: Grid
    points: list[Point]
    known: dict[int, dict[Key, frozenset[str]]] = field(default_factory=dict)

    def targets(self, key: Key) -> set[str]:
        """Return the settings that change a stage or data source itself."""
        return {setting.key for setting in self.settings if any(target.node == key for target in setting.targets)}

    def changes(self, key: Key) -> bool:
        """Return whether a setting other than the recipe's seed changes a stage or data source itself."""
        return bool(self.targets(key) - {SEED})

    def reached(self, index: int, key: Key) -> frozenset[str]:
        """Return the settings that reach a stage or data source at one point."""
        known = self.known.setdefault(index, {})
        if key not in known:
            known[key] = frozenset()  # in a cycle, which the graph of the plan reports
            below = [self.reached(index, need) for need in self.points[index].needs(key)]
            known[key] = frozenset(self.targets(key)).union(*below)
        return known[key]

    def reached_by(self, index: int, key: Key) -> tuple[Setting, ...]:
        """Return the same settings in the order of the grid."""
        keys = self.reached(index, key)
        return tuple(setting for setting in self.settings if setting.key in keys)

    def reached_anywhere(self, key: Key) -> frozenset[str]:
        """Return the settings that reach a stage or data source at any of the points."""
        return frozenset[str]().union(*(self.reached(index, key) for index in range(len(self.points))))


def points_of(grid: Grid, root: Node, problems: list[Problem]) -> Points:
    """Return a grid with its points.

    Args:
        grid: the settings.
        root: the recipe that they change.
        problems: problems of applying them are added here, each once.
    """
    points = []
    for values in product(*(setting.values for setting in grid)):
        tree = root
        for setting, value in zip(grid, values, strict=True):
            for target in setting.targets:
                tree, own = _changed(tree, target, value, setting.place)
                problems += [problem for problem in own if problem not in problems]
        points.append(Point(tree, {setting.key: value for setting, value in zip(grid, values, strict=True)}))
    return Points(grid, points)


def _changed(tree: Node, target: Target, value: Node, place: str) -> tuple[Node, list[Problem]]:
    """Return the recipe with one setting changed in one place."""
    section = tree.mapping[target.section]
    entry = section.mapping[target.name]
    if target.section == "data" and isinstance(entry.value, str):
        entry = Node({"path": entry}, entry.place)  # the short form of a data source
    if target.path == (SEED,) and type(value.value) is int:
        value = Node((value.value + target.offset) % SEEDS, value.place)
    changed, problems = put(entry, target.path, value, place)
    entries = Node({**section.value, target.name: changed}, section.place)
    return Node({**tree.value, target.section: entries}, tree.place), problems
