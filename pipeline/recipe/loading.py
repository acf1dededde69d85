"""Loads a recipe from its file and checks it.

Owns the order of steps: read, extend, merge profile and overrides, check every part, collect all problems. Knows
nothing of the store, of graphs, or of any single kind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import PipelineError, Problem, listed, nearest
from pipeline.kind.traits import ComputeSupport
from pipeline.recipe.checking import shown, validate
from pipeline.recipe.code import find_code
from pipeline.recipe.data_source import VARIABLE_KEYS, DataSource
from pipeline.recipe.document import Node
from pipeline.recipe.groups import expand_groups, once_per_group
from pipeline.recipe.merging import merge, override, without_nulls
from pipeline.recipe.partial import Partial, partial, partial_checks
from pipeline.recipe.paths import expand, lookup_folders
from pipeline.recipe.reading import RECIPE_KEYS, Reading
from pipeline.recipe.references import with_names
from pipeline.recipe.rewards import unfold_rewards
from pipeline.recipe.schema import NAME_PATTERN, BrokenStage, Compute, Recipe, StageSpec
from pipeline.recipe.variants import copies_of, expand_sweep
from pipeline.stage import KINDS, MODEL_PARALLEL, Among, Code, Data, Input, StageConfig

STAGE_KEYS = ("kind", "seed", "compute")
_ORIGIN_KEYS = tuple(key for key in VARIABLE_KEYS if key != "path")
"""Keys of a data source in which environment variables are expanded here; `path` expands its own."""


class Head(BaseModel):
    """The scalar keys at the top level of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("", description="Name of the recipe; the file's when not given.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of every stage that has none of its own.")
    trust_remote_code: bool = Field(False, description="Let model repositories run their own Python.")
    store: str | None = Field(None, description="Folder of artifacts; ${NAME:-default} is an environment variable.")


class StageHead(BaseModel):
    """The keys of every stage beside those of its kind; `compute` is checked after merging with the recipe's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int | None = Field(None, ge=0, lt=2**32, description="Seed of this stage; the recipe's when not given.")


def load(path: Path | str, *, overrides: Sequence[str] = (), profile: str | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        path: file of the recipe.
        overrides: ``key.key=value`` of `--set`.
        profile: name of the profile to merge on top.

    Raises:
        PipelineError: the recipe has problems; all of them are listed.
    """
    recipe, problems = inspect(path, overrides=overrides, profile=profile)
    if problems:
        raise PipelineError(*problems)
    return recipe


def inspect(
    path: Path | str, *, overrides: Sequence[str] = (), profile: str | None = None
) -> tuple[Recipe, list[Problem]]:
    """Read a recipe even if it has problems.

    Returns:
        The recipe without its broken stages, and all of its problems.

    Raises:
        PipelineError: the file itself cannot be read.
    """
    reading = Reading(Path(path))
    root = reading.read(reading.file, ())
    root = reading.with_profile(root, profile)
    for text in overrides:
        root, problems = override(root, text)
        reading.problems += problems
    return _Building(reading, root, profile).build()


class _Building:
    """Builds a recipe from a merged tree of nodes, collecting problems."""

    def __init__(self, reading: Reading, root: Node, profile: str | None) -> None:
        self.root = without_nulls(root)
        for section in ("data", "stages", "groups"):
            if section in self.root.mapping:
                entries = without_nulls(self.root.mapping[section])
                self.root = Node({**self.root.value, section: entries}, self.root.place)
        self.profile = profile
        self.file = reading.file
        self.search_dirs = lookup_folders(*reading.files)
        self.problems = list(reading.problems)
        self.variables = list(reading.variables)
        self.recipe_compute = Node({}, self.root.place)
        self.broken: dict[str, BrokenStage] = {}

    def build(self) -> tuple[Recipe, list[Problem]]:
        """Check every part; return the recipe and all problems."""
        head = self.head()
        compute = self.compute()
        self.root = with_names(self.root, self.variables)
        expansion = expand_groups(self.root, self.section("groups"))
        variants = expand_sweep(self.root, expansion)
        self.root = variants.root
        self.problems += [*expansion.problems, *variants.problems]
        data = self.data()
        specs = {name: self.stage(name, node, head) for name, node in self.section("stages").items()}
        for stage in expansion.broken:  # what their names mean is not known
            for name in variants.names.get(stage, (stage,)):
                specs[name] = None
                self.broken.pop(name, None)
        if not specs and not self.problems:
            self.add("the recipe has no stages", "at least one under `stages:`", where=self.root.place)
        copies = copies_of(expansion.rounds, variants.names)
        stage_of = {name: stage for stage, names in copies.items() for name in names}
        swept = {name for names in variants.names.values() for name in names}
        stages = {
            name: replace(spec, written_as=stage_of.get(name, ""), is_variant=name in swept)
            for name, spec in specs.items()
            if spec is not None
        }
        profiles = self.root.mapping.get("profiles")
        recipe = Recipe(
            name=head.name or self.file.stem,
            seed=head.seed,
            data=data,
            stages=stages,
            compute=compute,
            profiles=tuple(profiles.mapping) if profiles is not None else (),
            profile=self.profile,
            trust_remote_code=head.trust_remote_code,
            store=head.store,
            file=self.file.resolve(),
            search_dirs=self.search_dirs,
            root=Node({k: v for k, v in self.root.value.items() if k != "profiles"}, self.root.place),
            broken={
                name: self.broken.get(name, BrokenStage(None, {}, {}, frozenset()))
                for name, spec in specs.items()
                if spec is None
            },
            copies=copies,
            variants=variants.names,
            swept=variants.swept,
            variables=tuple(dict.fromkeys(self.variables)),
        )
        return recipe, by_line(once_per_group(self.problems, copies))

    def add(self, statement: str, expected: str = "", remedy: str = "", *, where: str, stage: str = "") -> None:
        """Record a problem."""
        self.problems.append(Problem(statement, expected, remedy, where, stage))

    def head(self) -> Head:
        """Check the scalar keys of the recipe, and that there are no unknown keys."""
        for key, node in self.root.mapping.items():
            if key not in RECIPE_KEYS:
                hint = nearest(key, RECIPE_KEYS)
                self.add(
                    f"unknown key `{key}`", "" if hint else f"one of {listed(RECIPE_KEYS)}", hint, where=node.place
                )
        own = {key: node for key, node in self.root.mapping.items() if key in Head.model_fields}
        if "store" in own:
            own["store"] = self.expanded(own["store"], "")
        head, problems = validate(Head, Node(own, self.root.place))
        self.problems += problems
        return head or Head()

    def section(self, key: str) -> dict[str, Node]:
        """Return the entries of `data`, `stages` or `groups` by name; check the names."""
        node = self.root.mapping.get(key)
        if node is None:
            return {}
        if not isinstance(node.value, dict):
            self.add(f"`{key}` is not a mapping", "name: {…} for each", where=node.place)
            return {}
        for name, child in node.value.items():
            if not re.fullmatch(NAME_PATTERN, name):
                expected = "letters, digits, `_`, `-` and `.`, the first a letter or digit"
                self.add(f"`{name}` is not a name", expected, where=child.place)
        return node.value

    def compute(self) -> Compute:
        """Check the recipe's `compute`, which applies to all stages."""
        node = self.root.mapping.get("compute")
        if node is None:
            return Compute()
        built, problems = validate(Compute, node, label="compute")
        self.problems += problems
        if built is not None:
            self.recipe_compute = node
            self.contradictions(built, node, "")
        return built or Compute()

    def contradictions(self, compute: Compute, node: Node, stage: str) -> None:
        """Record contradictions between compute settings, unless ``node``, this level's settings, is empty."""
        for name, expected, remedy in compute.contradictions():
            if node.mapping:
                statement = f"compute.{name} is {str(getattr(compute, name)).lower()}"
                self.add(statement, expected, remedy, where=node.where(name), stage=stage)

    def data(self) -> dict[str, DataSource]:
        """Check the data sources and find their files; leave out sources with problems."""
        sources = {}
        for name, node in self.section("data").items():
            place = node.place
            if isinstance(node.value, str):
                node = Node({"path": node}, place)
            origin = {key: self.expanded(child, "") for key, child in node.mapping.items() if key in _ORIGIN_KEYS}
            node = Node({**node.mapping, **origin}, place) if origin else node
            source, problems = validate(DataSource, node, label=f"data.{name}")
            self.problems += problems
            if source is None:
                continue
            try:
                source.place(self.search_dirs)
            except PipelineError as error:
                for p in error.problems:
                    self.add(f"data.{name}: {p.found}", p.expected, p.remedy, where=node.where("path"))
            else:
                sources[name] = source
                self.variables += source.variables
        return sources

    def stage(self, name: str, node: Node, head: Head) -> StageSpec | None:
        """Check one stage; return None and record it as broken if it has problems."""
        before = len(self.problems)
        if not isinstance(node.value, dict):
            self.add(f"stage {name} is not a mapping", "{kind: …}", where=node.place)
            return None
        kind = self.kind(name, node)
        own = Node({key: node.value[key] for key in ("seed",) if key in node.value}, node.place)
        stage_head, problems = validate(StageHead, own, stage=name)
        self.problems += problems
        takes_layout = kind is not None and KINDS[kind].takes_layout
        refused = [word for word in MODEL_PARALLEL if takes_layout and kind not in _kinds_with(word)]
        compute = self.stage_compute(name, node, refused)
        if kind is None:
            return None
        config_class = KINDS[kind].config
        body = Node({key: child for key, child in node.value.items() if key not in STAGE_KEYS}, node.place)
        for key in ("reward", "watch"):
            if f"{key}_functions" in config_class.model_fields:
                body, problems = unfold_rewards(body, name, key)
                self.problems += problems
        for field_name in (field for marker in (Input, Among, Code) for field in config_class.markers(marker)):
            if field_name in body.mapping:
                body.value[field_name] = self.expanded(body.value[field_name], name)
        config, problems = validate(config_class, body, stage=name, extra_keys=STAGE_KEYS)
        self.problems += problems
        rest = partial(config_class, body) if config is None else Partial({"": config}, frozenset())
        self.problems += partial_checks(rest, body, name)
        self.names(name, config_class, body)
        seed = stage_head.seed if stage_head is not None and stage_head.seed is not None else head.seed
        if len(self.problems) > before or config is None or stage_head is None:
            named = {field: body.value[field].value for field in config_class.markers(Data) if field in body.value}
            data = {field: source for field, source in named.items() if isinstance(source, str)}
            spec = StageSpec(name, kind, rest.complete or StageConfig(), seed, compute, node.place)
            self.broken[name] = BrokenStage(spec, data, body.plain(), rest.wrong)
            return None
        return StageSpec(name, kind, config, seed, compute, node.place)

    def kind(self, name: str, node: Node) -> str | None:
        """Return the stage's kind; record a problem and return None if it is missing or unknown."""
        kind = node.mapping.get("kind")
        if kind is None:
            self.add("`kind` is missing", f"one of {listed(sorted(KINDS), 20)}", where=node.place, stage=name)
        elif not isinstance(kind.value, str):
            statement = f"`kind` is {shown(kind.plain())}"
            self.add(statement, f"one of {listed(sorted(KINDS), 20)}", where=kind.place, stage=name)
        elif kind.value not in KINDS:
            hint = nearest(kind.value, KINDS)
            expected = f"one of {listed(sorted(KINDS), 20)}"
            self.add(f"unknown kind `{kind.value}`", expected, hint, where=kind.place, stage=name)
        else:
            return str(kind.value)
        return None

    def stage_compute(self, name: str, node: Node, refused: Sequence[str]) -> Compute:
        """Check a stage's compute, merged over the recipe's.

        Args:
            name: name of the stage.
            node: the stage.
            refused: keys for model parallelism that its kind does not support; their other conflicts are not reported.
        """
        own = node.mapping.get("compute", Node({}, node.place))
        if own.value is None:
            own = Node({}, own.place)
        merged = merge(self.recipe_compute, own)
        built, problems = validate(Compute, merged, stage=name, label="compute")
        self.problems += problems
        if built is None:
            return Compute()
        asked = [word for word in refused if getattr(built, word) > 1]
        for word in asked:
            able = _kinds_with(word)
            statement = f"compute.{word} is {getattr(built, word)} for a {node.mapping['kind'].value} stage"
            remedy = f"set compute.{word}: 1 for this stage"
            if not built.zero and not built.fsdp and "adapter" not in node.mapping:
                remedy += "; compute.zero: 3 spreads its weights instead"
            where = merged.where(word)
            self.add(statement, f"must be 1: only {listed(able, len(able))} can", remedy, where=where, stage=name)
        kind = node.mapping["kind"].value if "kind" in node.mapping else ""
        support = KINDS[kind].traits.compute if isinstance(kind, str) and kind in KINDS else ComputeSupport()
        if not support.takes_micro_batch and "micro_batch" in own.mapping and built.micro_batch != "auto":
            statement = f"compute.micro_batch is {built.micro_batch} for a {kind} stage"
            remedy = f"leave it out, {support.rows_per_pass} says how many rows are worked on at once"
            self.add(
                statement, "must be auto: it has no effect there", remedy, where=own.where("micro_batch"), stage=name
            )
        self.contradictions(built.model_copy(update=dict.fromkeys(asked, 1)), own, name)
        return built

    def expanded(self, node: Node, stage: str) -> Node:
        """Return a node with environment variables in its text expanded."""
        if isinstance(node.value, list):
            return Node([self.expanded(item, stage) for item in node.value], node.place)
        if not isinstance(node.value, str):
            return node
        try:
            return Node(expand(node.value, variables=self.variables), node.place)
        except PipelineError as error:
            for p in error.problems:
                self.add(p.found, p.expected, p.remedy, where=node.place, stage=stage)
            return node

    def names(self, stage: str, config_class: type[StageConfig], node: Node) -> None:
        """Check that the data sources and functions a stage names exist."""
        known = list(self.root.mapping["data"].mapping) if "data" in self.root.mapping else []
        for field_name in config_class.markers(Data):
            for item in _texts(node.mapping.get(field_name)):
                if item.value not in known:
                    expected = f"one of {listed(known)}" if known else "the recipe has no `data:`"
                    remedy = nearest(item.value, known)
                    self.add(f"no data source `{item.value}`", expected, remedy, where=item.place, stage=stage)
        for field_name in config_class.markers(Code):
            for item in _texts(node.mapping.get(field_name)):
                try:
                    find_code(item.value, self.search_dirs)
                except PipelineError as error:
                    for p in error.problems:
                        self.add(f"{field_name}: {p.found}", p.expected, p.remedy, where=item.place, stage=stage)


def _kinds_with(word: str) -> list[str]:
    """Return the kinds that support a key of `compute` for model parallelism, sorted."""
    return sorted(name for name, kind in KINDS.items() if word in kind.traits.compute.model_parallel)


def _texts(node: Node | None) -> list[Node]:
    """Return the text nodes of a field that is one name or a list of names."""
    items = [] if node is None else node.value_list() or [node]
    return [item for item in items if isinstance(item.value, str)]


def by_line(problems: list[Problem]) -> list[Problem]:
    """Sort problems by file and line; those without a line come last."""
    files = list(dict.fromkeys(problem.where.rpartition(":")[0] for problem in problems))

    def key(problem: Problem) -> tuple[int, int]:
        file, _, line = problem.where.rpartition(":")
        return (files.index(file), int(line)) if line.isdigit() else (len(files), 0)

    return sorted(dict.fromkeys(problems), key=key)
