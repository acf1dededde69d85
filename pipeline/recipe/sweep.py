"""Reads the `sweep:` of a recipe: settings with the values that each takes in turn.

    sweep: {stages.dpo.train.beta: [0.05, 0.1, 0.5]}        # three values
    sweep:                                                  # two grids, one after the other
      - {stages.dpo.train.beta: [0.05, 0.1], stages.dpo.seed: [17, 1, 2]}
      - {stages.ppo.train.kl_coef: [0.02, 0.1], stages.ppo.seed: [17, 1, 2]}

A mapping is the grid of all combinations of its values, a list of mappings the union of their grids. A setting is
written as in `--set`, below `stages` or `data`; `seed` is the seed of every stage that has none of its own.

Owns reading the section and its problems. `variants.py` makes the stages.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

from pipeline.errors import Problem, listed, nearest
from pipeline.recipe.checking import shown
from pipeline.recipe.data_source import VARIABLE_KEYS
from pipeline.recipe.document import Node
from pipeline.recipe.merging import joined_path
from pipeline.recipe.references import without_variables
from pipeline.stage import KINDS, Among, Code, Input

MOST_RUNS = 1000
"""Most combinations of a sweep."""

SEED = "seed"
_EXAMPLE = "stages.dpo.train.beta: [0.05, 0.1]"
_LONGEST_VALUE = 40
_UNNAMEABLE = re.compile(r"[^A-Za-z0-9_.-]+")


class Target(NamedTuple):
    """A place in the recipe that a setting changes.

    Attributes:
        section: `stages` or `data`.
        name: name of the stage or of the data source.
        path: keys below it.
        offset: what is added to a seed: a stage of round r of a group has its seed plus r - 1.
    """

    section: str
    name: str
    path: tuple[str, ...]
    offset: int = 0

    @property
    def node(self) -> tuple[str, str]:
        """Section and name."""
        return self.section, self.name


@dataclass(frozen=True)
class Setting:
    """A setting of a sweep.

    Attributes:
        key: the setting as written, with dots.
        targets: places that it changes.
        values: its values, each named once.
        place: ``file:line`` of the setting.
        takes_variables: whether environment variables in its values stand for what they name.
    """

    key: str
    targets: tuple[Target, ...]
    values: tuple[Node, ...]
    place: str
    takes_variables: bool = False

    @property
    def is_seed(self) -> bool:
        """Whether it is the seed of the recipe or of a stage."""
        return self.key == SEED or self.targets[0].path == (SEED,)

    def meant(self, value: Node) -> Node:
        """Return one of its values as names and reports have it: environment variables expanded."""
        return without_variables(value) if self.takes_variables else value

    def label(self, node: tuple[str, str]) -> str:
        """Return its short name for a stage or data source that it reaches: `beta`, or `sft.seed` of another stage."""
        if self.key == SEED:
            return SEED
        own = ".".join(self.targets[0].path).removeprefix("train.")
        is_own = any(target.node == node for target in self.targets)
        return own if is_own else f"{_written_name(self)}.{own}"


Grid = tuple[Setting, ...]
"""Settings of which all combinations of values are runs."""


@dataclass
class Swept:
    """What the stages and data sources of a recipe are called before a sweep is read.

    Attributes:
        root: the recipe, its groups expanded.
        rounds: stage of a group to its rounds.
        source_rounds: data source of a group to its rounds.
        own_seeds: stages with a seed of their own, those of groups by the names of their rounds.
        problems: the problems of the section.
    """

    root: Node
    rounds: Mapping[str, tuple[str, ...]]
    source_rounds: Mapping[str, tuple[str, ...]]
    own_seeds: frozenset[str]
    problems: list[Problem] = field(default_factory=list)

    def names(self, section: str) -> dict[str, tuple[str, ...]]:
        """Return the names that a sweep may use, each with the stages or data sources that it means."""
        known = self.root.mapping.get(section, Node({}, "")).mapping
        rounds = self.rounds if section == "stages" else self.source_rounds
        of_rounds = {name for names in rounds.values() for name in names}
        plain = {name: (name,) for name in known if name not in of_rounds}
        return {**plain, **{name: (*plain.get(name, ()), *names) for name, names in rounds.items()}}

    def add(self, statement: str, expected: str = "", remedy: str = "", *, where: str) -> None:
        """Record a problem."""
        self.problems.append(Problem(statement, expected, remedy, where))


def read_sweep(node: Node, recipe: Swept) -> list[Grid]:
    """Return the grids of a `sweep`; settings with problems are left out, and the problems recorded in ``recipe``."""
    grids = []
    for entry in node.value if isinstance(node.value, list) else [node]:
        if not isinstance(entry.value, dict):
            expected = f"a mapping of settings to lists of values, as in {{{_EXAMPLE}}}, or a list of mappings"
            recipe.add(f"sweep is {shown(entry.plain())}", expected, where=entry.place)
            continue
        grid = _read_grid(entry, recipe)
        runs = math.prod(len(setting.values) for setting in grid)
        if runs > MOST_RUNS:
            recipe.add(f"sweep has {runs:,} combinations", f"at most {MOST_RUNS:,}", where=entry.place)
        elif grid:
            grids.append(grid)
    if isinstance(node.value, list) and not node.value:
        recipe.add("sweep is an empty list", f"settings and their values, as in {{{_EXAMPLE}}}", where=node.place)
    return grids


def value_text(value: Node) -> str:
    """Return a value as it stands in the name of a stage: other characters than a name's become `-`, with a digest."""
    plain = value.plain()
    if isinstance(plain, float):
        return f"{plain:.12g}".replace("+", "")
    text = plain if isinstance(plain, str) else json.dumps(plain, sort_keys=True)
    if text and len(text) <= _LONGEST_VALUE and not _UNNAMEABLE.search(text):
        return text
    slug = _UNNAMEABLE.sub("-", text).strip("-")[:_LONGEST_VALUE]
    return f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:4]}".lstrip("-")


def _read_grid(entry: Node, recipe: Swept) -> Grid:
    settings: dict[str, Setting] = {}
    given = list(_flat(entry, ""))
    if not given:
        recipe.add("sweep names no setting", f"settings and their values, as in {{{_EXAMPLE}}}", where=entry.place)
    for key, node in given:
        if key in settings:
            recipe.add(f"sweep: `{key}` is given twice", "each setting once", where=node.place)
            continue
        own_seeds = {name for key, _ in given if (name := _stage_of_seed(key))}
        targets = _targets(key, node, recipe, own_seeds)
        takes_variables = bool(targets) and _takes_variables(targets[0], recipe)
        values = _values(key, node, recipe, takes_variables=takes_variables)
        inside = _inside_another(targets, settings.values())
        if inside:
            expected = "settings that do not change each other's values"
            statement = f"sweep: `{key}` and `{inside}` hold one another"
            recipe.add(statement, expected, "sweep one of them", where=node.place)
        elif targets and values:
            settings[key] = Setting(key, targets, values, node.place, takes_variables)
    return tuple(settings.values())


def _flat(node: Node, prefix: str) -> Iterator[tuple[str, Node]]:
    """Yield the settings of a mapping; a mapping inside it is the longer way to write a setting with dots."""
    for name, child in node.mapping.items():
        key = f"{prefix}.{name}" if prefix else name
        if isinstance(child.value, dict) and child.value:
            yield from _flat(child, key)
        elif child.value is not None:
            yield key, child


def _values(key: str, node: Node, recipe: Swept, *, takes_variables: bool) -> tuple[Node, ...]:
    """Return the values of a setting, without repetitions."""
    if not isinstance(node.value, list):
        example = f"write [{shown(node.plain())}]" if not isinstance(node.value, dict) else ""
        recipe.add(f"sweep: `{key}` is {shown(node.plain())}", "must be a list of values", example, where=node.place)
        return ()
    if not node.value:
        recipe.add(f"sweep: `{key}` has no values", "at least one", where=node.place)
    values: dict[str, Node] = {}
    for value in node.value:
        text = value_text(without_variables(value) if takes_variables else value)
        if text in values:
            recipe.add(f"sweep: `{key}` has the value {text} twice", "each value once", where=value.place)
        values.setdefault(text, value)
    return tuple(values.values())


def _targets(key: str, node: Node, recipe: Swept, own_seeds: set[str]) -> tuple[Target, ...]:
    """Return the places that a setting changes; record a problem and return none if it changes nothing."""
    if key == SEED:
        seeded = _seeded(recipe, own_seeds)
        if not seeded:
            remedy = "sweep `stages.NAME.seed` instead"
            recipe.add("sweep: `seed` reaches no stage", "one without a seed of its own", remedy, where=node.place)
        return seeded
    section, _, rest = key.partition(".")
    if section not in ("stages", "data"):
        expected = "a setting below `stages` or `data`, or `seed`"
        recipe.add(f"sweep: `{key}` cannot be swept", expected, _below_a_stage(key, recipe), where=node.place)
        return ()
    names = recipe.names(section)
    name, *path = joined_path(Node({known: Node(None, "") for known in names}, ""), rest.split("."))
    what = "stage" if section == "stages" else "data source"
    if name not in names:
        expected = f"one of {listed(names)}" if names else f"the recipe has no `{section}:`"
        recipe.add(f"sweep: no {what} `{name}`", expected, nearest(name, names), where=node.place)
        return ()
    if not path or not all(path):
        example = f"{section}.{name}.{'train.beta' if what == 'stage' else 'limit'}"
        expected = f"a key below it, as in `{example}`"
        recipe.add(f"sweep: `{key}` names no setting of the {what}", expected, where=node.place)
        return ()
    problem = _unsweepable(key, names[name][0], path, recipe) if section == "stages" else None
    if problem is not None:
        recipe.problems.append(Problem(*problem, where=node.place))
        return ()
    rounds = (recipe.rounds if section == "stages" else recipe.source_rounds).get(name, ())
    targets = tuple(
        Target(section, each, tuple(path), rounds.index(each) if each in rounds else 0) for each in names[name]
    )
    return targets if _takes_effect(key, targets, node, recipe) else ()


def _inside_another(targets: tuple[Target, ...], settings: Iterable[Setting]) -> str:
    """Return the setting that holds one of the targets, or is held by it; empty if there is none."""
    for setting in settings:
        for one, other in product(targets, setting.targets):
            shorter = min(len(one.path), len(other.path))
            if one.node == other.node and one.path[:shorter] == other.path[:shorter]:
                return setting.key
    return ""


def _takes_variables(target: Target, recipe: Swept) -> bool:
    """Return whether environment variables stand in the values of a setting, as they do in its key without a sweep."""
    if target.section == "data":
        return target.path[0] in VARIABLE_KEYS
    stage = recipe.root.mapping["stages"].mapping[target.name]
    kind = stage.mapping["kind"].value if "kind" in stage.mapping else None
    config = KINDS[kind].config if isinstance(kind, str) and kind in KINDS else None
    return config is not None and any(target.path[0] in config.markers(marker) for marker in (Input, Among, Code))


def _unsweepable(key: str, stage: str, path: list[str], recipe: Swept) -> tuple[str, str, str] | None:
    """Return the problem of a setting of a stage that a sweep may not change: found, expected, remedy."""
    if path[0] == "kind":
        return f"sweep: `{key}` is the kind of a stage", "a setting of a stage", "write a stage for each kind"
    if path[0] == "compute" and path[1:] != ["precision"]:
        return f"sweep: `{key}` cannot change a result", "a setting that can", "set it with a profile"
    if is_report(recipe.root.mapping["stages"].mapping[stage]):
        statement = f"sweep: `{stage}` is a report, which is made once for all variants"
        return statement, "a setting of a stage that it compares", f"write a second stage beside `{stage}`"
    return None


def _takes_effect(key: str, targets: tuple[Target, ...], node: Node, recipe: Swept) -> bool:
    """Return whether no `--set` of the same setting is hidden by the sweep; record a problem if one is."""
    for target in targets:
        below = recipe.root.mapping[target.section].mapping[target.name]
        place = below.where(*target.path) if _reaches(below, target.path) else ""
        if place.startswith("--set "):
            remedy = f"write `--set 'sweep.{key}=[…]'`, or `--set sweep=null` for no sweep"
            recipe.add(f"has no effect: the sweep at {node.place} sets `{key}`", "", remedy, where=place)
            return False
    return True


def _reaches(node: Node, path: tuple[str, ...]) -> bool:
    below: Node | None = node
    for key in path:
        below = below.child(key) if below is not None else None
    return below is not None


def _seeded(recipe: Swept, own_seeds: set[str]) -> tuple[Target, ...]:
    """Return the stages that take the recipe's seed: all but reports and those with a seed of their own."""
    targets = []
    for name, names in recipe.names("stages").items():
        rounds = recipe.rounds.get(name, ())
        for each in names:
            has_own = each in recipe.own_seeds or name in own_seeds
            if not has_own and not is_report(recipe.root.mapping["stages"].mapping[each]):
                targets.append(Target("stages", each, (SEED,), rounds.index(each) if each in rounds else 0))
    return tuple(targets)


def is_report(stage: Node) -> bool:
    """Return whether a stage makes a report."""
    kind = stage.mapping["kind"].value if "kind" in stage.mapping else None
    return isinstance(kind, str) and kind in KINDS and KINDS[kind].makes == "report"


def _stage_of_seed(key: str) -> str:
    """Return ``dpo`` of ``stages.dpo.seed``; empty for other settings."""
    return key[len("stages.") : -len(".seed")] if key.startswith("stages.") and key.endswith(".seed") else ""


def _below_a_stage(key: str, recipe: Swept) -> str:
    """Return the setting below the stage that is meant, if there is one."""
    stages = recipe.names("stages")
    if key.split(".")[0] in stages:
        return f"write `stages.{key}`"
    return ""


def _written_name(setting: Setting) -> str:
    """Return the name of the stage or data source as the sweep writes it."""
    path = ".".join(setting.targets[0].path)
    return setting.key.partition(".")[2].removesuffix(f".{path}")
