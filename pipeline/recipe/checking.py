"""Validates a part of a recipe with its pydantic model and translates pydantic's errors.

Owns the translation of pydantic's errors into problems with file and line. Knows nothing of the parts a recipe has.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar, Union

from pydantic import BaseModel, ValidationError

from pipeline.errors import Problem, listed, nearest
from pipeline.plain_data import JsonObject
from pipeline.recipe import docstrings
from pipeline.recipe.document import Node
from pipeline.stage import StageConfig
from pipeline.trainer_fields import TrainFields

Model = TypeVar("Model", bound=BaseModel)
Location = tuple[str | int, ...]

_TYPE_WORDS = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": ("> ", "gt"),
    "greater_than_equal": (">= ", "ge"),
    "less_than": ("< ", "lt"),
    "less_than_equal": ("<= ", "le"),
}


def validate(
    model: type[Model], node: Node, *, stage: str = "", label: str = "", extra_keys: Iterable[str] = ()
) -> tuple[Model | None, list[Problem]]:
    """Validate a mapping of a recipe.

    Args:
        model: the pydantic model.
        node: the mapping.
        stage: stage the problems belong to.
        label: prefix of field names in messages, e.g. ``data.pairs``.
        extra_keys: keys that are read elsewhere and may be suggested for an unknown key.

    Returns:
        The model, or None if there are problems.
    """
    data = node.plain()
    if not isinstance(data, dict):
        name = label or (f"stage {stage}" if stage else "this")
        return None, [Problem(f"{name} is {shown(data)}", "must be a mapping", where=node.place, stage=stage)]
    try:
        built = validate_repairing(model, data)
    except ValidationError as error:
        translator = _ErrorTranslator(model, node, data, stage, label, tuple(extra_keys))
        return None, translator.problems(error)
    return built, []


def stage_checks(config: StageConfig, node: Node, stage: str) -> list[Problem]:
    """Run `check` of a configuration and of those inside it; locate each problem at the field its text starts with."""
    problems = list(config.check())
    for name in type(config).model_fields:
        below = getattr(config, name)
        if isinstance(below, StageConfig):
            problems += below.check()
    placed: dict[str, Problem] = {}
    for problem in problems:
        first = problem.found.split(" ")[0].strip("`")
        where = problem.where if ":" in problem.where else node.where(*(problem.where or first).split("."))
        placed[str(problem)] = Problem(problem.found, problem.expected, problem.remedy, where, problem.stage or stage)
    return list(placed.values())


def validate_repairing(model: type[Model], data: JsonObject) -> Model:
    """Validate strictly, with two exceptions: a whole float may be an int, and null removes a field without null."""
    for _ in range(100):
        try:
            return model.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            details = error.errors(include_url=False)
            if not sum(_repair(data, detail["type"], detail["loc"]) for detail in details):
                raise
    raise AssertionError("a repair does not repair")


def _repair(data: Any, error_type: str, location: Location) -> bool:
    """Change the value at an error's location if it is one of the exceptions; return whether it was changed."""
    path = real_path(data, location)
    if not path:
        return False
    parent = _at(data, path[:-1])
    value = _at(data, path)
    if value is None and isinstance(parent, dict) and error_type != "extra_forbidden":
        del parent[path[-1]]
        return True
    if error_type in {"int_type", "int_from_float"} and isinstance(value, float) and value.is_integer():
        parent[path[-1]] = int(value)
        return True
    return False


def real_path(data: Any, location: Location) -> Location:
    """Return a pydantic location without the parts that name a branch of a union."""
    path: list[str | int] = []
    for part in location:
        if (isinstance(data, dict) and part in data) or (
            isinstance(data, list) and isinstance(part, int) and part < len(data)
        ):
            path.append(part)
            data = data[part]  # type: ignore[index]
    return tuple(path)


def _at(data: Any, path: Location) -> Any:
    for part in path:
        data = data[part]
    return data


class _ErrorTranslator:
    """Translates one validation error into problems."""

    def __init__(
        self, model: type[BaseModel], node: Node, data: Any, stage: str, label: str, extra_keys: tuple[str, ...]
    ) -> None:
        self.model = model
        self.node = node
        self.data = data
        self.stage = stage
        self.label = label
        self.extra_keys = extra_keys

    def problems(self, error: ValidationError) -> list[Problem]:
        """Return the problems in the order of the recipe's lines."""
        by_path: dict[tuple[Location, str], list[Any]] = {}
        for detail in error.errors(include_url=False):
            path = real_path(self.data, detail["loc"])
            missing = (detail["loc"][-1],) if detail["type"] == "missing" else ()
            group = detail["type"] if detail["type"] in {"missing", "extra_forbidden", "value_error"} else "value"
            by_path.setdefault((path + missing, group), []).append(detail)
        for path, group in list(by_path):  # drop an error of a union's other branch if there is an error inside
            inside = any(other != (path, group) and other[0][: len(path)] == path for other in by_path)
            if group == "value" and inside and isinstance(_at(self.data, path), Mapping):
                del by_path[path, group]
        problems = [self.problem_at(path, group, details) for (path, group), details in by_path.items()]
        problems += self.passthrough_problems({path for path, _ in by_path})
        return problems

    def passthrough_problems(self, reported: set[Location]) -> list[Problem]:
        """Check the fields passed on to the trainer too, which pydantic checks only if all other fields are valid."""
        problems = []
        for name, info in self.model.model_fields.items():
            inner = models_of(info.annotation)
            block = self.data.get(name)
            for model in inner:
                if issubclass(model, TrainFields) and isinstance(block, dict):
                    for key, problem in model.problems_in(block).items():
                        if (name, key) not in reported and block[key] is not None:
                            problems.append(self.located(problem, (name, key)))
        return problems

    def located(self, problem: Problem, path: Location) -> Problem:
        """Return a problem with its file and line, and the full name of its field."""
        statement = problem.found
        if statement.startswith(f"{path[-1]} is "):
            statement = f"{self.name(path)}{statement.removeprefix(str(path[-1]))}"
        return Problem(statement, problem.expected, problem.remedy, self.node.where(*path), self.stage)

    def name(self, path: Location) -> str:
        """Return the dotted name of a field."""
        parts = [self.label] if self.label else []
        return ".".join([*parts, *(str(part) for part in path)])

    def problem_at(self, path: Location, group: str, details: list[Any]) -> Problem:
        """Return the problem of all errors at one path."""
        first = details[0]
        where = self.node.where(*path)
        if first["type"] == "trainer_field":
            return self.located(Problem(**first["ctx"]), path)
        if group == "missing":
            return Problem(f"`{self.name(path)}` is missing", self.wanted(path), "", where, self.stage)
        if group == "extra_forbidden":
            inside = f" in `{self.name(path[:-1])}`" if len(path) > 1 or self.label else ""
            known = self.known(path[:-1])
            expected = "" if nearest(str(path[-1]), known) else f"one of {listed(known, 20)}"
            remedy = nearest(str(path[-1]), known)
            return Problem(f"unknown key `{path[-1]}`{inside}", expected, remedy, where, self.stage)
        if group == "value_error":
            statement, _, expected = str(first["msg"]).removeprefix("Value error, ").partition("|")
            lead = f"{self.name(path)} " if path or self.label else ""
            return Problem(f"{lead}{statement}", expected, "", where, self.stage)
        value = _at(self.data, path)
        expected = " or ".join(dict.fromkeys(self.expected(detail) for detail in details))
        remedy = next((hint for hint in (self.hint(detail, value) for detail in details) if hint), "")
        return Problem(f"{self.name(path)} is {shown(value)}", f"must be {expected}", remedy, where, self.stage)

    def expected(self, detail: Any) -> str:
        """Return the text of what one branch of a field accepts."""
        kind, context = detail["type"], detail.get("ctx") or {}
        if kind in _TYPE_WORDS:
            return _TYPE_WORDS[kind]
        if kind in _BOUNDS:
            sign, key = _BOUNDS[kind]
            return f"{sign}{context[key]:g}"
        if kind in {"literal_error", "enum"}:
            return str(context["expected"])
        if kind == "string_pattern_mismatch":
            return f"like {context['pattern']}"
        if kind in {"too_short", "string_too_short"}:
            return f"at least {context['min_length']} long"
        return str(detail["msg"])[:1].lower() + str(detail["msg"])[1:]

    def hint(self, detail: Any, value: Any) -> str:
        """Return a suggestion: the nearest allowed word, or quotes; empty if there is none."""
        if detail["type"] == "literal_error" and isinstance(value, str):
            return nearest(
                value, [w.strip(" '") for w in str(detail["ctx"]["expected"]).replace(" or ", ",").split(",")]
            )
        if detail["type"] == "string_type" and isinstance(value, int | float):
            return f'write "{value}"'
        return ""

    def known(self, path: Location) -> list[str]:
        """Return the keys allowed at a path."""
        annotations: list[Any] = [self.model]
        for part in path:
            annotations = [inner for annotation in annotations for inner in _inside(annotation, part)]
        keys = [key for annotation in annotations for model in models_of(annotation) for key in model.model_fields]
        return keys if path else [*self.extra_keys, *keys]

    def wanted(self, path: Location) -> str:
        """Return the description of a missing field, from its `Field` or the docstring."""
        info = self.model.model_fields.get(str(path[0])) if len(path) == 1 else None
        if info is None:
            return ""
        text = (info.description or docstrings.of_class(self.model).get(str(path[0]), "")).rstrip(".")
        return text[:1].lower() + text[1:]


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the pydantic models in a type annotation."""
    origin = typing.get_origin(annotation)
    if origin is Annotated or origin in {Union, types.UnionType}:
        return [model for part in typing.get_args(annotation) for model in models_of(part)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return []


def _inside(annotation: Any, part: str | int) -> list[Any]:
    """Return the annotations of a field of models, or of the values of a mapping or a list."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated or origin in {Union, types.UnionType}:
        return [inner for one in parts for inner in _inside(one, part)]
    if isinstance(origin, type) and issubclass(origin, Mapping | list | tuple):
        return [parts[-1]] if issubclass(origin, Mapping) else [parts[0]]
    return [model.model_fields[str(part)].annotation for model in models_of(annotation) if part in model.model_fields]


def shown(value: Any) -> str:
    """Return a value for messages, shortened; mappings and lists by their type only."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "…")
    return json.dumps(value)
