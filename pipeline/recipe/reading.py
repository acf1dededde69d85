"""Reads a recipe, the recipes it extends, and a profile into one tree.

Owns finding and reading those files. Knows nothing of what a stage or a data source is.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.errors import PipelineError, Problem, listed, nearest
from pipeline.recipe.document import Node, parse
from pipeline.recipe.merging import merge, without_nulls
from pipeline.recipe.paths import Variable, expand, find, lookup_folders

RECIPE_KEYS = (
    "extends",
    "name",
    "seed",
    "trust_remote_code",
    "store",
    "data",
    "stages",
    "groups",
    "sweep",
    "compute",
    "profiles",
)


class Reading:
    """Merges a recipe file, the files it extends, and a profile into one tree, collecting problems."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.files: list[Path] = []
        self.problems: list[Problem] = []
        self.variables: list[Variable] = []

    def read(self, file: Path, chain: tuple[Path, ...]) -> Node:
        """Read a file and merge it over the files it extends."""
        label = _label(file)
        try:
            text = file.read_bytes().decode("utf-8-sig")
        except OSError as error:
            near = nearest(file.name, [p.name for p in file.parent.glob("*.y*ml")]) if file.parent.is_dir() else ""
            reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
            raise PipelineError(Problem(f"recipe `{label}` {reason}", remedy=near)) from None
        except UnicodeDecodeError as error:
            raise PipelineError(Problem(f"recipe `{label}` is not UTF-8 text at byte {error.start}")) from None
        self.files.append(file)
        root, problems = parse(text, label)
        self.problems += problems
        if not isinstance(root.value, dict):
            self.problems.append(
                Problem("the recipe is not a mapping", "keys such as data: and stages:", where=root.place)
            )
            return Node({}, root.place)
        own = Node({key: child for key, child in root.value.items() if key != "extends"}, root.place)
        below = Node({}, root.place)
        for node in self.extended(root):
            other = self.locate(node, file, (*chain, file.resolve()))
            if other is not None:
                below = merge(below, self.read(other, (*chain, file.resolve())))
        return merge(below, own)

    def extended(self, root: Node) -> list[Node]:
        """Return the entries of `extends`."""
        node = root.mapping.get("extends")
        if node is None or node.value is None:
            return []
        entries = node.value_list() or [node]
        good = [entry for entry in entries if isinstance(entry.value, str)]
        if len(good) < len(entries):
            self.problems.append(
                Problem("extends is not a file name", "a recipe file or a list of them", where=node.place)
            )
        return good

    def locate(self, node: Node, file: Path, chain: tuple[Path, ...]) -> Path | None:
        """Find an extended file in the lookup folders; record a problem and return None if it is missing or a cycle."""
        try:
            text = expand(node.value, variables=self.variables)
        except PipelineError as error:
            self.problems += [Problem(p.found, p.expected, p.remedy, node.place) for p in error.problems]
            return None
        target = find(text, lookup_folders(file))
        if target is None or not target.is_file():
            beside = [p.name for p in file.resolve().parent.glob("*.y*ml") if p.name != file.name]
            near = nearest(Path(text).name, beside)
            self.problems.append(Problem(f"extends `{text}`, which does not exist", remedy=near, where=node.place))
            return None
        if target.resolve() in chain:
            names = " → ".join([*(p.name for p in chain[chain.index(target.resolve()) :]), target.name])
            self.problems.append(Problem(f"recipes extend each other: {names}", where=node.place))
            return None
        return target

    def with_profile(self, root: Node, name: str | None) -> Node:
        """Merge a profile over the recipe; check the keys of all profiles."""
        section = root.mapping.get("profiles")
        profiles = without_nulls(section).mapping if section is not None else {}
        for other, node in profiles.items():
            self.check_profile(other, node, root)
        if name is None:
            return root
        if name not in profiles:
            expected = f"one of {listed(profiles)}" if profiles else "this recipe has none"
            place = section.place if section is not None else root.place
            self.problems.append(Problem(f"no profile `{name}`", expected, nearest(name, profiles), place))
            return root
        return merge(root, profiles[name]) if isinstance(profiles[name].value, dict) else root

    def check_profile(self, name: str, node: Node, root: Node) -> None:
        """Check the keys of a profile and the names of the stages it changes."""
        if not isinstance(node.value, dict):
            self.problems.append(Problem(f"profile `{name}` is not a mapping", where=node.place))
            return
        allowed = [key for key in RECIPE_KEYS if key not in {"extends", "profiles", "name"}]
        for key, child in node.value.items():
            if key not in allowed:
                expected = "" if nearest(key, allowed) else f"one of {listed(allowed)}"
                statement = f"unknown key `{key}` in profile `{name}`"
                self.problems.append(Problem(statement, expected, nearest(key, allowed), child.place))
            if key == "stages":
                known = root.mapping[key].mapping if key in root.mapping else {}
                for stage, entry in child.mapping.items():
                    if stage not in known and "kind" not in entry.mapping:
                        statement = f"profile `{name}` changes stage `{stage}`, which the recipe does not have"
                        self.problems.append(Problem(statement, "", nearest(stage, known), entry.place))


def _label(file: Path) -> str:
    """Return the name of a file in messages: relative to the current folder if it is inside it."""
    full = Path(os.path.abspath(file))  # noqa: PTH100
    return str(full.relative_to(Path.cwd())) if full.is_relative_to(Path.cwd()) else str(full)
