"""Markers of configuration fields: which of them name artifacts, data or Python functions, and which change no result.

Owns the markers. Knows nothing of kinds: plan, fingerprint, checks and JSON schema read the markers of any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Shape = Literal["text", "messages", "preference", "labelled", "prompt", "candidates"]
"""Shape of the rows of a data source, see `pipeline/records/shapes/formats.py`."""

Shapes = Shape | tuple[Shape, ...]
"""One shape, or several alternatives: all rows of a source have the same one of them."""


@dataclass(frozen=True)
class Input:
    """Marks a configuration field (a name or a list of names) that takes artifacts.

    Attributes:
        kinds: kinds of stages accepted, by name or by what they make; empty accepts all that make a model.
        external: whether a local folder or a hub id is also accepted.
    """

    kinds: tuple[str, ...]
    external: bool = False

    def __init__(self, *kinds: str, external: bool = False) -> None:
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "external", external)


@dataclass(frozen=True)
class Data:
    """Marks a configuration field that names a data source, with the shape or shapes of its rows."""

    shape: Shapes


@dataclass(frozen=True)
class Runtime:
    """Marks a field that cannot change the result; the fingerprint does not cover it."""


@dataclass(frozen=True)
class Added:
    """Marks a field that was added after artifacts were made: at its default, the fingerprint is that of before."""


@dataclass(frozen=True)
class Code:
    """Marks a field that names a Python function, ``module:name`` or ``path/to/file.py:name``.

    The fingerprint covers the source of its file.
    """


@dataclass(frozen=True)
class Among:
    """Marks a field (a name or a list of names) that repeats names of a field marked `Input`, such as a baseline.

    Attributes:
        field: the other field.
        is_sequence: whether the order of its names has a meaning, so that a name stands for one model.
    """

    field: str
    is_sequence: bool = False


@dataclass(frozen=True)
class VariantsOf:
    """Marks a field that says of which stage and settings the models of another field are; a sweep fills it in.

    Attributes:
        field: the other field, marked `Input`.
    """

    field: str


@dataclass(frozen=True)
class PerRound:
    """Marks a field whose text names something that two rounds must not share: a round's number is appended to it."""
