"""Reads and writes `table.json`, the fields of the installed trainers' configurations with their types."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_suffix(".json")
TRAINERS = ("TrainingArguments", "SFTConfig", "RewardConfig", "DPOConfig", "KTOConfig", "GRPOConfig", "RLOOConfig")


@functools.cache
def table() -> dict[str, dict[str, dict[str, Any]]]:
    """Return ``{class: {field: {"type": …, "optional": …}}}``, with ``values`` for enumerations."""
    data: dict[str, dict[str, dict[str, Any]]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return data


def build_table() -> dict[str, dict[str, dict[str, Any]]]:
    """Return the table of the installed trainers' configurations; imports trl."""
    import dataclasses

    import transformers
    import trl

    built = {}
    for name in TRAINERS:
        cls = getattr(trl, name, None) or getattr(transformers, name)
        built[name] = {
            f.name: _describe(f.type) for f in sorted(dataclasses.fields(cls), key=lambda f: f.name) if f.init
        }
    return built


def _describe(hint: Any) -> dict[str, Any]:
    """Return a field's entry in the table from its type hint."""
    import enum
    import types
    import typing

    union = typing.get_origin(hint) in {typing.Union, types.UnionType}
    parts = list(typing.get_args(hint)) if union else [hint]
    optional = type(None) in parts
    kinds = {_kind(part) for part in parts if part is not type(None)}
    described: dict[str, Any] = {"type": kinds.pop() if len(kinds) == 1 else "any", "optional": optional}
    listed: list[Any] = [part for part in parts if isinstance(part, enum.EnumType)]
    values = [str(item.value) for part in listed for item in part]
    return {**described, "values": values} if values else described


def _kind(part: Any) -> str:
    """Return the table's type of one member of a hint; an enumeration is ``str``."""
    import enum

    if isinstance(part, type) and issubclass(part, enum.Enum):
        return "str"
    return {int: "int", float: "float", bool: "bool", str: "str"}.get(part, "any")


def render(built: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table as JSON with one field per line."""
    classes = []
    for name in sorted(built):
        lines = [f'  "{field}": {json.dumps(info, sort_keys=True)}' for field, info in sorted(built[name].items())]
        classes.append(f' "{name}": {{\n' + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(classes) + "\n}\n"
