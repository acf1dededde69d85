"""What the `Attributes:` section of a model's docstring says of its fields.

Owns the reading of that section, so that a kind describes its words once. Knows nothing of any model.
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
    """Return field names and what the docstring says of them."""
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
    """Return what a class and those it inherits from say of their fields; the nearest wins."""
    descriptions: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        descriptions.update(attributes(parent.__dict__.get("__doc__") or ""))
    return descriptions
