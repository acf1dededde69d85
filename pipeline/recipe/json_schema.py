"""The JSON schema of recipes, with which editors offer completion, hover texts and validation.

Knows nothing of any single kind; kinds come from the registry.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from pipeline.plain_data import JsonObject
from pipeline.recipe import docstrings
from pipeline.recipe.checking import models_of
from pipeline.recipe.data_source import DataSource
from pipeline.recipe.groups import Group
from pipeline.recipe.loading import Head, StageHead
from pipeline.recipe.schema import NAME_PATTERN, Compute
from pipeline.stage import KINDS, Among, Code, Input, Kind

Schema = JsonObject

_VARIABLE = "${NAME:-default} is an environment variable."


def json_schema() -> Schema:
    """Return the JSON schema of recipes for all registered kinds."""
    definitions: Schema = {}
    compute = _model(Compute, "compute", definitions)
    source = _model(DataSource, "data", definitions)
    full = [_stage(kind, definitions, compute, partial=False) for _, kind in sorted(KINDS.items())]
    partials = [_stage(kind, definitions, compute, partial=True) for _, kind in sorted(KINDS.items())]
    definitions["stage"] = {"oneOf": full, "discriminator": {"propertyName": "kind"}, "required": ["kind"]}
    definitions["stage_part"] = {"anyOf": [*partials, {"type": "null"}]}
    definitions["source"] = {"anyOf": [source, {"type": "string", "description": "Path of the rows."}]}
    definitions["source_part"] = {"anyOf": [source, {"type": "string"}, {"type": "null"}]}
    group = _model(Group, "groups", definitions)
    definitions["group"] = group
    definitions["group_part"] = {"anyOf": [_loose(definitions["groups.Group"]), {"type": "null"}]}
    head = _model(Head, "head", definitions)
    head_properties: Schema = definitions.pop("head.Head", head)["properties"]
    common = {**head_properties, "compute": compute}
    parts = {"data": _many("source_part"), "stages": _many("stage_part"), "groups": _many("group_part")}
    definitions |= {"grid": _grid(), "grid_values": _grid_values()}
    grid: Schema = {"$ref": "#/$defs/grid"}
    several = {"type": "array", "items": grid, "minItems": 1}
    sweep = {"anyOf": [grid, several, {"type": "null"}], "description": "Settings, each with the values to run."}
    profile = _named({**common, **parts, "sweep": sweep}, drop="name")
    text = {"type": "string"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "trueup recipe",
        "type": "object",
        "properties": {
            "extends": {
                "anyOf": [text, {"type": "array", "items": text}],
                "description": "Recipes this one is laid on; a key set to null is taken out.",
            },
            **common,
            "data": {"type": "object", "description": "Named sources of rows."},
            "stages": {"type": "object", "description": "Named steps; the order is free."},
            "groups": {"type": "object", "description": "Stages that are repeated in rounds."},
            "sweep": sweep,
            "profiles": {
                "type": "object",
                "description": "Changes that `--profile NAME` lays on top.",
                "additionalProperties": profile,
            },
        },
        "additionalProperties": False,
        "if": {"required": ["extends"]},
        "then": {"properties": parts},
        "else": {
            "properties": {"data": _many("source"), "stages": _many("stage"), "groups": _many("group")},
            "required": ["stages"],
        },
        "$defs": definitions,
    }


def _grid() -> Schema:
    """Return the schema of settings with their values."""
    below = {"$ref": "#/$defs/grid_values"}
    names = {"pattern": r"^(seed$|(stages|data)($|\.))"}
    return {"type": "object", "minProperties": 1, "propertyNames": names, "additionalProperties": below}


def _grid_values() -> Schema:
    """Return the schema of a setting's values, or of a mapping, which is the longer way to write dots."""
    values = {"type": "array", "minItems": 1, "uniqueItems": True}
    nested = {"type": "object", "additionalProperties": {"$ref": "#/$defs/grid_values"}}
    return {"anyOf": [values, nested, {"type": "null"}]}


def _named(properties: Schema, *, drop: str) -> Schema:
    remaining = {key: value for key, value in properties.items() if key != drop}
    return {"type": "object", "properties": remaining, "additionalProperties": False}


def _loose(schema: Schema) -> Schema:
    """Return the schema of a part of what a schema describes: no key is required."""
    return {key: value for key, value in schema.items() if key != "required"}


def _many(definition: str) -> Schema:
    """Return the schema of a mapping from names to one definition."""
    return {
        "type": "object",
        "propertyNames": {"pattern": f"^{NAME_PATTERN}$"},
        "additionalProperties": {"$ref": f"#/$defs/{definition}"},
    }


def _model(model: type[BaseModel], prefix: str, definitions: Schema) -> Schema:
    """Add a model's schema and its definitions under ``prefix`` to ``definitions``; return a reference to it."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
    classes = {inner.__name__: inner for inner in _within(model)}
    for name, definition in {**schema.pop("$defs", {}), model.__name__: schema}.items():
        _describe(definition, classes.get(name))
        definitions.setdefault(f"{prefix}.{name}", definition)
    return {"$ref": f"#/$defs/{prefix}.{model.__name__}"}


def _within(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a model and the models of its fields, recursively."""
    yield model
    for info in model.model_fields.values():
        for inner in models_of(info.annotation):
            yield from _within(inner)


def _describe(definition: Schema, model: type[BaseModel] | None) -> None:
    """Add descriptions from the model's docstring to fields without a description."""
    if model is None:
        return
    if "description" in definition:
        definition["description"] = docstrings.summary(definition["description"])
    for name, text in docstrings.of_class(model).items():
        if name in definition.get("properties", {}):
            definition["properties"][name].setdefault("description", text)


def _stage(kind: Kind, definitions: Schema, compute: Schema, *, partial: bool) -> Schema:
    """Return the schema of stages of one kind; with ``partial`` (in a profile) no key is required."""
    own = _model(kind.config, kind.name, definitions)
    name = own["$ref"].removeprefix("#/$defs/")
    body = definitions[name]
    stage = StageHead.model_json_schema()["properties"]
    fields = dict(body.get("properties", {}))
    for field in (name for marker in (Input, Among, Code) for name in kind.config.markers(marker)):
        fields[field] = {**fields[field], "description": f"{fields[field].get('description', '')} {_VARIABLE}".strip()}
    properties = {"kind": {"const": kind.name, "description": kind.doc}, **stage, "compute": compute}
    schema = {
        "title": kind.name,
        "type": "object",
        "properties": {**properties, **fields},
        "additionalProperties": False,
    }
    if not partial:
        schema["required"] = ["kind", *body.get("required", [])]
    key = f"{kind.name}.{'part' if partial else 'stage'}"
    definitions[key] = schema
    if partial:
        definitions.pop(name, None)
    return {"$ref": f"#/$defs/{key}"}
