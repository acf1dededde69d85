"""Checks the valid fields of an invalid configuration, as if the invalid fields were left out.

Contradictions and unknown values in other fields are thus reported in the same run.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import ValidationError

from pipeline.errors import Problem
from pipeline.plain_data import JsonObject
from pipeline.recipe.checking import models_of, real_path, stage_checks, validate_repairing
from pipeline.recipe.document import Node
from pipeline.stage import StageConfig

ROUNDS = 100
"""Largest number of rounds that remove invalid fields; nested fields take one round per level."""

UNNAMED = "?"
"""Placeholder of a missing required text; problems that mention the field are not reported."""


class Partial(NamedTuple):
    """A configuration without its invalid fields.

    Attributes:
        config: the stage's configuration under the key ``""``; if it cannot be built, its valid blocks by name.
        wrong: dotted names of the fields that were removed or are missing; unknown keys are none.
    """

    config: dict[str, StageConfig]
    wrong: frozenset[str]

    @property
    def complete(self) -> StageConfig | None:
        """The stage's configuration; None if a missing required field has no placeholder."""
        return self.config.get("")


def mentions(problem: Problem, fields: Iterable[str]) -> bool:
    """Return whether a problem's text names a field: `train.beta`, or `model: …`, `model.…`, `model is`.

    The placeholder of a missing field names one, too.
    """
    text = f"{problem.found} {problem.expected} {problem.remedy}"
    after = {True: r"(?!\w)", False: r"(?=[:.`]| is )"}
    return problem.found.endswith(f" `{UNNAMED}`") or any(
        re.search(rf"(?<![\w.]){re.escape(field)}{after['.' in field]}", text) for field in fields
    )


def partial(model: type[StageConfig], node: Node) -> Partial:
    """Build a configuration from its valid fields."""
    data = node.plain()
    config, wrong = _without_wrong(model, data)
    if config is not None:
        return Partial({"": config}, frozenset(wrong))
    blocks = {}
    for name, info in model.model_fields.items():
        inner = [one for one in models_of(info.annotation) if issubclass(one, StageConfig)]
        if len(inner) == 1 and isinstance(data.get(name), dict):
            block, below = _without_wrong(inner[0], data[name])
            wrong |= {f"{name}.{field}" for field in below}
            if block is not None:
                blocks[name] = block
    return Partial(blocks, frozenset(wrong))


def partial_checks(rest: Partial, node: Node, stage: str) -> Iterator[Problem]:
    """Yield the problems that `check` reports for the valid fields.

    Problems that mention a removed field are dropped, because they are about its default, not the user's value.
    """
    for config in rest.config.values():
        yield from (problem for problem in stage_checks(config, node, stage) if not mentions(problem, rest.wrong))


def _without_wrong(model: type[StageConfig], data: JsonObject) -> tuple[StageConfig | None, set[str]]:
    """Remove invalid fields until the rest is valid; return the configuration (None on failure) and their names."""
    data = copy.deepcopy(data)
    wrong: set[str] = set()
    for _ in range(ROUNDS):
        try:
            return validate_repairing(model, data), wrong
        except ValidationError as error:
            places = [(detail["type"], detail["loc"]) for detail in error.errors(include_url=False)]
        missing = {str(place[-1]) for kind, place in places if kind == "missing" and not real_path(data, place)}
        paths = {path: kind for kind, place in places if (path := real_path(data, place))}
        taken = {_take_out(data, path): kind for path, kind in paths.items()}
        wrong |= missing | {field for field, kind in taken.items() if kind != "extra_forbidden"}
        emptied = {name for name in _mappings(model) if data.get(name) == {}}
        wrong |= {name for name in emptied if any(field.startswith(f"{name}.") for field in wrong)}
        unnamed = {name: _unnamed(model.model_fields[name].annotation) for name in missing}
        data |= {name: value for name, value in unnamed.items() if value is not None}
        if not paths and not any(unnamed.values()):
            break
    return None, wrong


def _mappings(model: type[StageConfig]) -> Iterator[str]:
    """Yield the fields that are mappings with names of the user's: one without its invalid entries may be empty."""
    return (name for name, info in model.model_fields.items() if get_origin(info.annotation) is dict)


def _unnamed(annotation: object) -> str | list[str] | None:
    """Return the placeholder of a required field: a text or a list of one text; None for other types."""
    kinds = (annotation, *get_args(annotation))
    if str in kinds and get_origin(annotation) is not list:
        return UNNAMED
    return [UNNAMED] if get_origin(annotation) is list and str in kinds else None


def _take_out(data: Any, path: tuple[str | int, ...]) -> str:
    """Remove the field at a path from its mapping and return its dotted name; for an item of a list, the list."""
    names = path[: next((at for at, part in enumerate(path) if isinstance(part, int)), len(path))]
    for part in names[:-1]:
        data = data.get(part, {})
    data.pop(names[-1], None)
    return ".".join(str(name) for name in names)
