"""What is right in a configuration that has problems: it is checked as if the wrong fields were left out.

Owns taking the wrong fields out, so that contradictions and unknown words elsewhere are told in the same round.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import ValidationError

from pipeline.errors import Problem
from pipeline.recipe.checking import models_of, real_path, stage_checks, validate_repairing
from pipeline.recipe.document import Node
from pipeline.stage import StageConfig

ROUNDS = 100
"""Wrong fields inside one another are taken out round by round; no configuration is that deep."""

UNNAMED = "?"
"""Stands for a required text that is missing; what is said of it is not told."""


class Partial(NamedTuple):
    """A configuration without its wrong fields.

    Attributes:
        config: the stage's configuration, or each of its blocks that can be built where it cannot be built as a whole.
        wrong: names of the fields left out and of those that are missing.
    """

    config: dict[str, StageConfig]
    wrong: frozenset[str]

    @property
    def whole(self) -> StageConfig | None:
        """The stage's own configuration, None if a required field is missing that nothing can stand for."""
        return self.config.get("")


def mentions(problem: Problem, words: Iterable[str]) -> bool:
    """Return whether one of the words stands in a problem's sentence."""
    text = f"{problem.found} {problem.expected} {problem.remedy}"
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) for word in words)


def partial(model: type[StageConfig], node: Node) -> Partial:
    """Build what is right of a configuration."""
    data = node.plain()
    config, wrong = _without_wrong(model, data)
    if config is not None:
        return Partial({"": config}, frozenset(wrong))
    blocks = {}
    for name, info in model.model_fields.items():
        inner = [one for one in models_of(info.annotation) if issubclass(one, StageConfig)]
        if len(inner) == 1 and isinstance(data.get(name), dict):
            block, below = _without_wrong(inner[0], data[name])
            wrong |= below
            if block is not None:
                blocks[name] = block
    return Partial(blocks, frozenset(wrong))


def partial_checks(rest: Partial, node: Node, stage: str) -> Iterator[Problem]:
    """Yield the contradictions and unknown words of what is right.

    What is said of a field that was left out is not told: its default was looked at, not the user's value.
    """
    for config in rest.config.values():
        yield from (problem for problem in stage_checks(config, node, stage) if not mentions(problem, rest.wrong))


def _without_wrong(model: type[StageConfig], data: dict[str, Any]) -> tuple[StageConfig | None, set[str]]:
    """Take wrong fields out until the rest is valid; None if a required field is missing that is not a text."""
    data = copy.deepcopy(data)
    wrong: set[str] = set()
    for _ in range(ROUNDS):
        try:
            return validate_repairing(model, data), wrong
        except ValidationError as error:
            places = [(detail["type"], detail["loc"]) for detail in error.errors(include_url=False)]
        missing = {str(place[-1]) for kind, place in places if kind == "missing" and not real_path(data, place)}
        paths = {path for _, place in places if (path := real_path(data, place))}
        wrong |= missing | {_take_out(data, path) for path in paths}
        unnamed = {name: _unnamed(model.model_fields[name].annotation) for name in missing}
        data |= {name: value for name, value in unnamed.items() if value is not None}
        if not paths and not any(unnamed.values()):
            break
    return None, wrong


def _unnamed(annotation: Any) -> str | list[str] | None:
    """Return what can stand for a required field: a text, a list of one, or nothing."""
    kinds = (annotation, *get_args(annotation))
    if str in kinds and get_origin(annotation) is not list:
        return UNNAMED
    return [UNNAMED] if get_origin(annotation) is list and str in kinds else None


def _take_out(data: Any, path: tuple[str | int, ...]) -> str:
    """Remove the last named field of a path from its mapping; an item of a list takes its list with it."""
    names = path[: next((at for at, part in enumerate(path) if isinstance(part, int)), len(path))]
    for part in names[:-1]:
        data = data.get(part, {})
    data.pop(names[-1], None)
    return str(names[-1])
