"""Reads descriptions of fields from the `Attributes:` section of a model's docstring.

A kind thus describes its fields once, for readers, messages and the JSON schema. Knows nothing of any model.
"""

from __future__ import annotations

import inspect
import re

_SECTION = "Attributes:"
_ENTRY = re.compile(r"    (?P<name>\w+): (?P<text>.*)")


def summary(text: str) -> str:
    """Return a docstring without its `Attributes:` section."""
    return inspect.cleandoc(text).partition(_SECTION)[0].strip()


def attributes(text: str) -> dict[str, str]:
    """Return the description of each field in a docstring's `Attributes:` section."""
    descriptions: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(text).partition(_SECTION)[2].splitlines():
        entry = _ENTRY.fullmatch(line)
        if entry:
            name = entry["name"]
            descriptions[name] = entry["text"].strip()
        elif name and line.startswith("        "):
            descriptions[name] += f" {line.strip()}"
        elif line.strip():
            break
    return descriptions


def of_class(cls: type) -> dict[str, str]:
    """Return the descriptions of a class's fields; a subclass overrides its base classes."""
    descriptions: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        descriptions.update(attributes(parent.__dict__.get("__doc__") or ""))
    return descriptions
