"""Expands a sweep into ordinary stages: a stage becomes one for each combination of the settings that reach it.

    sweep: {stages.dpo.train.beta: [0.05, 0.5], stages.sft.seed: [17, 1]}

makes `sft-seed-17`, `sft-seed-1`, and `dpo-beta-0.05-sft.seed-17`, … . A setting reaches the stages and data sources
that it changes and those made from them. What no setting reaches stays one stage under its own name. A report is never
copied: in its lists, and as `dpo-*` in any list, a name means all variants. Names and configurations of a variant do
not depend on the other values, so that one more value leaves the artifacts that are there.

In a union of grids a stage is made for those grids that reach it with most settings: with β swept for `dpo` in one and
the KL price for `ppo` in another, both over seeds, no `dpo` is made without a β. What such a stage needs is made too.

Owns the expansion. `sweep.py` reads the section. Everything else knows only ordinary stages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.errors import Problem, counted, listed
from pipeline.recipe.document import Node
from pipeline.recipe.groups import Expansion
from pipeline.recipe.references import ALL, marked_fields, replaced
from pipeline.recipe.sweep import SEED, Grid, Setting, Swept, is_report, read_sweep, value_text
from pipeline.recipe.sweep_points import Key, Points, points_of
from pipeline.stage import KINDS, Among, Data, Input, PerRound, VariantsOf

LONGEST_NAME = 100
"""Longest name of a variant; a longer one ends with a digest. Manifests take 128 characters."""


@dataclass(frozen=True)
class Variants:
    """A recipe without a sweep.

    Attributes:
        root: the tree, with a stage for each variant and without `sweep`.
        names: swept stage, by the name it has without the sweep, to the names of its variants.
        swept: stages that a setting changes itself, each with its settings and their values in words.
        problems: the problems of the sweep.
    """

    root: Node
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    swept: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def expand_sweep(before: Node, expansion: Expansion) -> Variants:
    """Replace the sweep of a recipe by ordinary stages.

    Args:
        before: the recipe as read, whose stages tell which of them have a seed of their own.
        expansion: the same recipe without groups.
    """
    root = Node({key: node for key, node in expansion.root.value.items() if key != "sweep"}, expansion.root.place)
    node = expansion.root.mapping.get("sweep")
    if node is None or not root.mapping.get("stages", Node(None, "")).mapping:
        return Variants(root)
    seeded = {name for name, stage in before.mapping["stages"].mapping.items() if SEED in stage.mapping}
    seeded |= {each for name in seeded for each in expansion.rounds.get(name, ())}
    recipe = Swept(root, expansion.rounds, expansion.source_rounds, frozenset(seeded))
    grids = read_sweep(node, recipe)
    points = [points_of(grid, root, recipe.problems) for grid in grids or [()]]
    expanding = _Expanding(root, points, recipe.problems)
    expanded = expanding.expand()
    names = {name: tuple(made) for (section, name), made in expanding.made.items() if section == "stages"}
    return Variants(
        expanded,
        {name: made for name, made in names.items() if made != (name,)},
        _in_words(grids),
        recipe.problems,
    )


def copies_of(
    rounds: Mapping[str, tuple[str, ...]], variants: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Return all rounds and variants of each stage, by its name under `stages:`."""
    copies = {
        stage: tuple(each for name in names for each in variants.get(name, (name,))) for stage, names in rounds.items()
    }
    of_groups = {name for names in rounds.values() for name in names}
    return {**copies, **{stage: names for stage, names in variants.items() if stage not in of_groups}}


class _Variant(NamedTuple):
    """A stage or data source at one point.

    Attributes:
        grid: the grid that makes it.
        at: index of the first point that makes it.
    """

    grid: Points
    at: int

    def values(self, key: Key) -> list[tuple[Setting, Node]]:
        """Return the settings that reach a stage or data source at this point, with their values, as a name has them.

        Own settings come first, then those of other stages, then seeds.
        """

        def place(setting: Setting) -> tuple[bool, bool, str]:
            is_own = any(target.node == key for target in setting.targets)
            return setting.is_seed, not is_own, setting.label(key)

        values = self.grid.points[self.at].values
        return [(one, values[one.key]) for one in sorted(self.grid.reached_by(self.at, key), key=place)]

    def name(self, key: Key) -> str:
        """Return what a stage or data source is called at this point: `dpo-beta-0.05-seed-17`."""
        parts = [f"{setting.label(key)}-{value_text(setting.meant(value))}" for setting, value in self.values(key)]
        name = "-".join([key[1], *parts])
        if len(name) <= LONGEST_NAME:
            return name
        return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@dataclass
class _Expanding:
    """Makes the variants of all stages and data sources, then writes them.

    Attributes:
        root: the recipe.
        grids: the grids of its sweep.
        problems: the problems.
        made: stage or data source to its variants by name, in the order they are made.
    """

    root: Node
    grids: list[Points]
    problems: list[Problem]
    made: dict[Key, dict[str, _Variant]] = field(default_factory=dict)

    def expand(self) -> Node:
        """Return the recipe with all variants at the place of their stage."""
        keys = [(section, name) for section in ("data", "stages") for name in self.entries(section)]
        keys = [key for key in keys if not self.is_report(key)]
        for key in keys:
            most = [grid.reached_anywhere(key) for grid in self.grids]
            for grid, own in zip(self.grids, most, strict=True):
                if not any(own < other for other in most) or self.is_exception(grid, key, most):
                    for index in range(len(grid.points)):
                        self.make(key, _Variant(grid, index))
        sections = {}
        for section in ("data", "stages"):
            sections[section] = {
                written: node for name in self.entries(section) for written, node in self.written((section, name))
            }
        entries = {
            key: Node(sections[key], node.place) if sections.get(key) else node for key, node in self.root.value.items()
        }
        return Node(entries, self.root.place)

    def entries(self, section: str) -> dict[str, Node]:
        """Return the data sources or the stages of the recipe."""
        return self.root.mapping.get(section, Node({}, "")).mapping

    def is_report(self, key: Key) -> bool:
        return key[0] == "stages" and is_report(self.root.mapping["stages"].mapping[key[1]])

    def is_exception(self, grid: Points, key: Key, most: list[frozenset[str]]) -> bool:
        """Return whether a grid makes a stage that another reaches with more settings, since it changes it itself.

        So does a grid that makes a stage from such a one.
        """
        waiting, seen = [key], {key}
        while waiting:
            one = waiting.pop()
            all_of = most if one == key else [other.reached_anywhere(one) for other in self.grids]
            if grid.changes(one) and any(grid.reached_anywhere(one) < other for other in all_of):
                return True
            new = {need for point in grid.points for need in point.needs(one)} - seen
            seen |= new
            waiting += new
        return False

    def make(self, key: Key, variant: _Variant) -> None:
        """Make the variant of a stage or data source at a point, and those it needs."""
        variants = self.made.setdefault(key, {})
        name = variant.name(key)
        if name in variants:
            return
        variants[name] = variant
        taken = self.entries(key[0]).get(name)
        if taken is not None and name != key[1]:
            what = "stage" if key[0] == "stages" else "data source"
            text = f"{what} `{name}` has the name of a variant of `{key[1]}`"
            self.problems.append(Problem(text, "", "give it another name", taken.place))
        for need in variant.grid.points[variant.at].needs(key):
            self.make(need, variant)

    def written(self, key: Key) -> Iterator[tuple[str, Node]]:
        """Yield the variants of a stage or data source with the names in them replaced by what they mean."""
        section, name = key
        if self.is_report(key):
            yield name, self.report(name)
            return
        every = self.every()
        for written, variant in self.made.get(key, {}).items():
            point = variant.grid.points[variant.at]
            meaning = every | {need: [variant.name(need)] for need in point.needs(key)}
            node = self.renamed(point.tree.mapping[section].mapping[name], meaning, written, written.removeprefix(name))
            yield written, node
        if key not in self.made:
            yield name, self.root.mapping[section].mapping[name]

    def every(self) -> dict[Key, list[str]]:
        """Return the meaning of names that end with `-*`: all variants."""
        return {(section, f"{name}{ALL}"): list(made) for (section, name), made in self.made.items()}

    def renamed(self, node: Node, meaning: Mapping[Key, list[str]], stage: str, suffix: str) -> Node:
        """Return a variant of a stage or data source with the names in it replaced."""
        if not isinstance(node.value, dict):
            return node
        body = dict(node.value)
        stages = _nodes(meaning, "stages")
        if "artifact" in body and "kind" not in body:
            body["artifact"] = self.single("artifact", body["artifact"], stages, "")
        for key in marked_fields(node, Input, Among):
            given = node.mapping[key]
            is_one = not isinstance(given.value, list | dict)
            body[key] = self.single(key, given, stages, stage) if is_one else replaced(given, stages)
        for key in marked_fields(node, Data):
            source = meaning.get(("data", str(body[key].value)))
            body[key] = Node(source[0], body[key].place) if source else body[key]
        for key in marked_fields(node, PerRound):
            if suffix and isinstance(body[key].value, str) and body[key].value:
                body[key] = Node(f"{body[key].value}{suffix}", body[key].place)
        return Node(body, node.place)

    def single(self, key: str, given: Node, meaning: Mapping[str, list[Node]], stage: str) -> Node:
        """Return the one name that a field means; record a problem if there are several."""
        meant = [one.value for one in meaning.get(str(given.value), [])]
        if not meant or given.value in meant:
            return given
        if len(meant) > 1:
            text = f"{key}: `{given.value}` is {counted(len(meant), 'variant')} of the sweep"
            expected = f"one of {listed(meant)}"
            self.problems.append(Problem(text, expected, f"write `{meant[0]}`", given.place, stage))
        return Node(meant[0], given.place)

    def report(self, name: str) -> Node:
        """Return a report on all variants of the stages that its lists name."""
        node = self.root.mapping["stages"].mapping[name]
        if not isinstance(node.value, dict):
            return node
        stages = _nodes({**self.made, **self.every()}, "stages")
        data = _nodes(self.made, "data")
        body = dict(node.value)
        config = KINDS[str(node.mapping["kind"].value)].config
        for key in marked_fields(node, Input, Among, Data):
            given = node.mapping[key]
            meaning = data if key in config.markers(Data) else stages
            among = config.markers(Among).get(key)
            if not isinstance(given.value, list | dict):
                body[key] = self.single(key, given, meaning, name)
            elif among is not None and among.is_sequence:
                body[key] = Node([self.single(key, one, stages, name) for one in given.value_list()], given.place)
            else:
                body[key] = replaced(given, meaning)
        for key, marker in config.markers(VariantsOf).items():
            described = self.described(body.get(marker.field, Node([], "")), node.place)
            if described:
                given = body.get(key, Node({}, node.place))
                body[key] = (
                    Node({**described, **given.mapping}, given.place) if isinstance(given.value, dict) else given
                )
        return Node(body, node.place)

    def described(self, models: Node, place: str) -> dict[str, Node]:
        """Return which stage and settings each variant among some models is."""
        known = {
            name: (key, values)
            for key, variants in self.made.items()
            for name, variant in variants.items()
            if key[0] == "stages" and (values := variant.values(key))
        }
        described = {}
        for one in models.value_list():
            if isinstance(one.value, str) and one.value in known:
                key, values = known[one.value]
                settings = {setting.label(key): Node(_plain(setting.meant(value)), place) for setting, value in values}
                described[one.value] = Node({"stage": Node(key[1], place), "settings": Node(settings, place)}, place)
        return described


def _nodes(meaning: Mapping[Key, Iterable[str]], section: str) -> dict[str, list[Node]]:
    """Return what the names of stages, or of data sources, mean."""
    return {name: [Node(one, "") for one in names] for (part, name), names in meaning.items() if part == section}


def _plain(value: Node) -> object:
    """Return a value as it stands in a report: a scalar, or the text of a list or mapping."""
    return value_text(value) if isinstance(value.value, list | dict) else value.value


def _in_words(grids: list[Grid]) -> dict[str, str]:
    """Return what is swept of each stage: `beta: 0.05, 0.1; seed: 17, 1`."""
    words: dict[str, list[str]] = {}
    for grid in grids:
        for setting in grid:
            text = ", ".join(value_text(setting.meant(value)) for value in setting.values)
            for target in setting.targets:
                if target.section == "stages" and setting.key != SEED:
                    words.setdefault(target.name, []).append(f"{setting.label(target.node)}: {text}")
    return {name: "; ".join(dict.fromkeys(parts)) for name, parts in words.items()}
