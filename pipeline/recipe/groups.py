"""Expands groups of stages into rounds: every stage of a group becomes one ordinary stage for each round.

    groups:
      online:
        rounds: 3
        stages: [candidates, judge, dpo]
        carry: {policy: {first: sft, then: dpo}}

makes `candidates-1`, `judge-1`, `dpo-1`, `candidates-2`, … . In a stage of the group, the name of another one means
that of the same round, and `policy` means `sft` in round 1 and the `dpo` of the round before in the others. A data
source that reads an artifact of the group becomes one for each round (`compared-1`, `compared-2`, …). Outside of the
group, the plain name means the last round's stage, and `dpo-*` in a list means those of all rounds.

Owns the expansion and the problems of groups. Everything else knows only ordinary stages. A stage of round r has the
seed of its stage plus r - 1, so no round depends on how many follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import Problem, listed, nearest
from pipeline.recipe.checking import validate
from pipeline.recipe.document import Node
from pipeline.recipe.references import ALL, marked_fields, replaced
from pipeline.stage import Among, Data, Input, PerRound

MOST_ROUNDS = 100
SEEDS = 2**32


class Carry(BaseModel):
    """What a name inside a group stands for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: str = Field(description="What the name means in round 1: a stage outside of the group, a ref, a folder.")
    then: str = Field(description="What it means later: a stage of the group, that of the round before.")


class Group(BaseModel):
    """Stages that are repeated on what they made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int = Field(ge=1, le=MOST_ROUNDS, description="How many times the stages run, one round after another.")
    stages: list[str] = Field(min_length=1, description="Names of the stages of a round.")
    carry: dict[str, Carry] = Field(description="Names whose meaning changes from round to round.")


@dataclass(frozen=True)
class Expansion:
    """A recipe without groups.

    Attributes:
        root: the tree, with a stage for each round and without `groups`.
        rounds: stage of a group to the names of its rounds.
        source_rounds: data source that reads an artifact of a group to the names of its rounds.
        broken: stages of groups that have problems; they stay as they are.
        problems: the problems of the groups.
    """

    root: Node
    rounds: dict[str, tuple[str, ...]] = field(default_factory=dict)
    source_rounds: dict[str, tuple[str, ...]] = field(default_factory=dict)
    broken: frozenset[str] = frozenset()
    problems: list[Problem] = field(default_factory=list)


def expand_groups(root: Node, groups: Mapping[str, Node]) -> Expansion:
    """Replace the groups of a recipe by ordinary stages.

    Args:
        root: the recipe.
        groups: entries of its `groups`, by name.
    """
    tree = Node({key: node for key, node in root.value.items() if key != "groups"}, root.place)
    stages, data = (tree.mapping.get(key, Node({}, root.place)).mapping for key in ("stages", "data"))
    names = _Names(stages, data)
    valid: dict[str, _Group] = {}
    problems: list[Problem] = []
    broken: set[str] = set()
    for name, node in groups.items():
        model, own = validate(Group, node, label=f"groups.{name}")
        if model is not None:
            own = list(_problems(_Group(name, model, node), names, [each.model for each in valid.values()]))
            valid[name] = _Group(name, model, node)
        if own:
            listing = (node.mapping.get("stages") or node).value_list()
            broken |= {one.value for one in listing if isinstance(one.value, str)} & set(stages)
            valid.pop(name, None)
        problems += own
    rounds = {
        stage: tuple(f"{stage}-{number}" for number in range(1, group.model.rounds + 1))
        for group in valid.values()
        for stage in group.model.stages
    }
    expanding = _Expanding(tree, stages, data, rounds, broken)
    expanded, more = expanding.expand(list(valid.values()))
    source_rounds = {name: tuple(names) for name, names in expanding.source_rounds.items()}
    return Expansion(expanded, rounds, source_rounds, frozenset(broken), problems + more)


def once_per_group(problems: list[Problem], rounds: Mapping[str, tuple[str, ...]]) -> list[Problem]:
    """Return problems without repetitions from round to round; one that all rounds have names the stage plainly."""
    plain = {name: stage for stage, names in rounds.items() for name in names}
    pattern = re.compile(rf"(?<![\w.-])({'|'.join(map(re.escape, plain)) or '(?!)'})(?![\w-])")
    alike: dict[Problem, list[Problem]] = {}
    for problem in problems:
        statement = pattern.sub(lambda match: plain[match[0]], problem.found)
        key = replace(problem, found=statement, stage=plain.get(problem.stage, problem.stage))
        key = replace(key, expected="", remedy="") if key != problem else problem
        alike.setdefault(key, []).append(problem)
    merged = []
    for key, own in alike.items():
        in_all = key.stage in rounds and {each.stage for each in own} == set(rounds[key.stage])
        merged.append(replace(own[0], found=key.found, stage=key.stage) if in_all else own[0])
    return merged


class _Group(NamedTuple):
    """A group with its name and its place in the recipe."""

    name: str
    model: Group
    node: Node

    def where(self, *keys: str | int) -> str:
        return self.node.where(*keys)


class _Names(NamedTuple):
    """The names that the stages of a recipe mention."""

    stages: Mapping[str, Node]
    data: Mapping[str, Node]

    def inputs(self, stage: str) -> set[str]:
        """Return the texts of the fields that take artifacts."""
        node = self.stages[stage]
        texts = (one.value for key in marked_fields(node, Input) for one in node.mapping[key].walk())
        return {text for text in texts if isinstance(text, str)}

    def needs(self, stage: str) -> set[str]:
        """Return the names of all that a stage reads, artifacts of its data sources included."""
        node = self.stages[stage]
        sources = (self.data.get(str(node.mapping[key].value)) for key in marked_fields(node, Data))
        artifacts = (source.mapping["artifact"].value for source in sources if source and "artifact" in source.mapping)
        return self.inputs(stage) | {text for text in artifacts if isinstance(text, str)}

    def ancestors(self, stages: list[str]) -> set[str]:
        """Return the stages that ``stages`` need, directly or indirectly."""
        seen: set[str] = set()
        waiting = [name for name in stages if name in self.stages]
        while waiting:
            new = (self.needs(waiting.pop()) & set(self.stages)) - seen
            seen |= new
            waiting += new
        return seen


def _problems(group: _Group, names: _Names, others: list[Group]) -> Iterator[Problem]:
    """Yield what is wrong with a group, itself well-formed, in its recipe."""
    label, stages = f"groups.{group.name}", group.model.stages
    for index, stage in enumerate(stages):
        where = group.where("stages", index)
        if stage not in names.stages:
            yield Problem(
                f"{label}: no stage `{stage}`", f"one of {listed(names.stages)}", nearest(stage, names.stages), where
            )
        if stage in stages[:index]:
            yield Problem(f"{label} names stage `{stage}` twice", "each once", "", where)
        if any(stage in other.stages for other in others):
            yield Problem(f"{label}: stage `{stage}` is in another group too", "one group for each stage", "", where)
        for number in range(1, group.model.rounds + 1):
            taken = names.stages.get(f"{stage}-{number}")
            if taken is not None:
                text = f"stage `{stage}-{number}` has the name of round {number} of `{stage}` in {label}"
                yield Problem(text, "", "give it another name", taken.place)
    for stage in sorted(names.ancestors(stages) - set(stages)):
        if names.ancestors([stage]) & set(stages):
            text = f"{label}: stage `{stage}` stands between stages of the group, and is not one of them"
            yield Problem(text, "all stages of a round", f"add `{stage}` to its `stages`", group.where("stages"))
    if not group.model.carry:
        expected = "what a round takes from the one before, as in {policy: {first: sft, then: dpo}}"
        yield Problem(f"{label}.carry is empty", expected, "", group.where("carry"))
    mentioned = {text for stage in stages if stage in names.stages for text in names.inputs(stage)}
    for name, carry in group.model.carry.items():
        where = group.where("carry", name)
        if name in names.stages:
            text = f"{label}.carry: `{name}` is the name of a stage"
            yield Problem(text, "a name of its own", "call it `policy`, for example", where)
        elif name not in mentioned:
            remedy = f"name `{name}` where a round takes what the round before made, as in `model: {name}`"
            yield Problem(f"{label}.carry: no stage of the group reads `{name}`", "", remedy, where)
        if carry.then not in stages:
            text = f"{label}.carry.{name}.then is `{carry.then}`"
            expected = f"a stage of the group: {listed(stages)}"
            yield Problem(text, expected, nearest(carry.then, stages), group.where("carry", name, "then"))
        if carry.first in stages:
            text = f"{label}.carry.{name}.first is `{carry.first}`, a stage of the group"
            yield Problem(text, "what there is before round 1", "", group.where("carry", name, "first"))


@dataclass
class _Expanding:
    """Writes the stages and data sources of all rounds, collecting problems.

    Attributes:
        tree: the recipe without `groups`.
        stages: its stages.
        data: its data sources.
        rounds: stage of a group to the names of its rounds.
        source_rounds: data source that reads an artifact of a group to the names of its rounds.
        broken: stages of groups that have problems; their names mean themselves.
        sources: data sources of the rounds.
        source_rounds: data source to the names of its rounds.
        problems: the problems.
    """

    tree: Node
    stages: Mapping[str, Node]
    data: Mapping[str, Node]
    rounds: Mapping[str, tuple[str, ...]]
    broken: set[str]
    sources: dict[str, Node] = field(default_factory=dict)
    source_rounds: dict[str, dict[str, None]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def expand(self, groups: list[_Group]) -> tuple[Node, list[Problem]]:
        """Return the recipe with the stages of all rounds at the place of the first stage of their group."""
        owner = {stage: group for group in groups for stage in group.model.stages}
        stages: dict[str, Node] = {}
        for name, node in self.stages.items():
            group = owner.get(name)
            if group is None:
                stages[name] = self.renamed(name, node, self.outside())
            elif f"{name}-1" not in stages:
                for number in range(1, group.model.rounds + 1):
                    for stage in group.model.stages:
                        stages[f"{stage}-{number}"] = self.in_round(group, stage, number)
        data = {name: self.source(node) for name, node in self.data.items()}
        sections = {"data": {**data, **self.sources}, "stages": stages}
        entries = {
            key: Node(sections[key], node.place) if key in sections and node.mapping else node
            for key, node in self.tree.value.items()
        }
        return Node(entries, self.tree.place), self.problems

    def outside(self) -> dict[str, list[Node]]:
        """Return what names mean outside of their group: the last round's stage, and with `-*` those of all."""
        meaning = {f"{stage}{ALL}": [Node(stage, "")] for stage in self.broken}
        for stage, names in self.rounds.items():
            meaning[stage] = [Node(names[-1], "")]
            meaning[f"{stage}{ALL}"] = [Node(name, "") for name in names]
        return meaning

    def in_round(self, group: _Group, stage: str, number: int) -> Node:
        """Return a stage of a group in one round."""
        meaning = self.outside()
        for other in group.model.stages:
            meaning[other] = [Node(f"{other}-{number}", "")]
            meaning.pop(f"{other}{ALL}")
        for name, carry in group.model.carry.items():
            if number > 1:
                meaning[name] = [Node(f"{carry.then}-{number - 1}", group.where("carry", name, "then"))]
            else:
                place = group.where("carry", name, "first")
                meaning[name] = [Node(one.value, place) for one in self.outside().get(carry.first, [])] or [
                    Node(carry.first, place)
                ]
        node = self.renamed(stage, self.stages[stage], meaning)
        if not isinstance(node.value, dict):
            return node
        body = dict(node.value)
        for key in marked_fields(node, Data):
            body[key] = self.source_of_round(body[key], group, number)
        for key in marked_fields(node, PerRound):
            if isinstance(body[key].value, str) and body[key].value:
                body[key] = Node(f"{body[key].value}-{number}", body[key].place)
        seed = body.get("seed") or self.tree.mapping.get("seed") or Node(0, node.place)
        if number > 1 and isinstance(seed.value, int):
            body["seed"] = Node((seed.value + number - 1) % SEEDS, seed.place)
        return Node(body, node.place)

    def renamed(self, stage: str, node: Node, meaning: Mapping[str, list[Node]]) -> Node:
        """Return a stage with the names in it replaced by what they mean."""
        body = dict(node.mapping)
        for key in marked_fields(node, Input, Among):
            given = node.mapping[key]
            meant = meaning.get(given.value, []) if isinstance(given.value, str) else []
            if len(meant) > 1 or (isinstance(given.value, str) and given.value.endswith(ALL) and meant):
                text, last = f"{key}: `{given.value}` names every round", meant[-1].value
                self.problems.append(Problem(text, "one of them", f"write `{last}`", given.place, stage))
                meant = meant[-1:]
            body[key] = Node(meant[0].value, meant[0].place or given.place) if meant else replaced(given, meaning)
        return Node(body, node.place) if node.mapping else node

    def source(self, node: Node, to: int = -1) -> Node:
        """Return a data source that reads the artifact of one round, by default of the last."""
        artifact = node.mapping.get("artifact")
        names = self.rounds.get(artifact.value) if artifact is not None and isinstance(artifact.value, str) else None
        if artifact is None or names is None:
            return node
        return Node({**node.value, "artifact": Node(names[to], artifact.place)}, node.place)

    def source_of_round(self, given: Node, group: _Group, number: int) -> Node:
        """Return the name of the data source that a stage of a group reads in one round; make the source."""
        source = self.data.get(given.value) if isinstance(given.value, str) else None
        artifact = source.mapping.get("artifact") if source is not None else None
        if source is None or artifact is None or artifact.value not in group.model.stages:
            return given
        name = f"{given.value}-{number}"
        if name in self.data:
            text = f"data source `{name}` has the name of `{given.value}` in round {number} of groups.{group.name}"
            self.problems.append(Problem(text, "", "give it another name", self.data[name].place))
        self.sources[name] = self.source(source, number - 1)
        self.source_rounds.setdefault(given.value, {})[name] = None
        return Node(name, given.place)
