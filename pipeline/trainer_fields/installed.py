"""Builds the table of fields from the configurations of the installed trainers.

Imports transformers and trl, which reading the table does not.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import types
import typing
from typing import Any

import transformers
import trl

from pipeline.trainer_fields.table import FieldInfo, Table

TRAINERS = ("TrainingArguments", "SFTConfig", "RewardConfig", "DPOConfig", "KTOConfig", "GRPOConfig", "RLOOConfig")


def build_table() -> Table:
    """Return the table of the installed trainers' configurations; imports trl."""
    built = {}
    for name in TRAINERS:
        cls = getattr(trl, name, None) or getattr(transformers, name)
        built[name] = {
            f.name: _describe(f.type) for f in sorted(dataclasses.fields(cls), key=lambda f: f.name) if f.init
        }
    return built


def _describe(hint: object) -> FieldInfo:
    """Return a field's entry in the table from its type hint."""
    union = typing.get_origin(hint) in {typing.Union, types.UnionType}
    parts = list(typing.get_args(hint)) if union else [hint]
    optional = type(None) in parts
    kinds = {_kind(part) for part in parts if part is not type(None)}
    described = FieldInfo(type=kinds.pop() if len(kinds) == 1 else "any", optional=optional)
    listed: list[Any] = [part for part in parts if isinstance(part, enum.EnumType)]
    values = [str(item.value) for part in listed for item in part]
    if values:
        described["values"] = values
    return described


def _kind(part: Any) -> str:
    """Return the table's type of one member of a hint; an enumeration is ``str``."""
    if isinstance(part, type) and issubclass(part, enum.Enum):
        return "str"
    return {int: "int", float: "float", bool: "bool", str: "str"}.get(part, "any")


def render(built: Table) -> str:
    """Return the table as JSON with one field per line."""
    classes = []
    for name in sorted(built):
        lines = [f'  "{field}": {json.dumps(info, sort_keys=True)}' for field, info in sorted(built[name].items())]
        classes.append(f' "{name}": {{\n' + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(classes) + "\n}\n"
