"""What weights stand on, as a manifest's `lineage` keeps it: the base, and every adapter in them, in order.

    base        fingerprint of the first weights; `scratch` when they were made here
    base_name   the same for people: `Qwen/Qwen2.5-0.5B@main`, `base@9f31c0a1b2c3`
    parent      fingerprint of the weights the stage started from
    adapters    records of `AppliedAdapter`, oldest first
    dtype       of the weights a merge has written

Knows nothing of tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.artifacts.manifest import SHORT

HUB = "hub:"
"""How the fingerprint of a hub id begins."""


@dataclass(frozen=True)
class AppliedAdapter:
    """An adapter that is in the weights.

    Attributes:
        name: of the stage that trained it, or of the folder or hub repository it is from.
        on: the weights it was trained on; empty when it is from outside, where nobody knows.
        r: its rank; None when not known.
        quantize: ``4bit`` or ``8bit`` when those weights were quantised while it was trained.
        merged: it was folded into unquantised weights by a merge; otherwise it is on the values it was trained on.
    """

    name: str
    on: str = ""
    r: int | None = None
    quantize: str | None = None
    merged: bool = False

    @property
    def key(self) -> str:
        """What makes it the same adapter wherever it is folded in."""
        return f"{self.name} on {self.on}" if self.on else self.name

    @property
    def text(self) -> str:
        """One line for people: ``sft (r 16) on base@9f31c0a1b2c3 in 4bit, folded into unquantised weights``."""
        rank = f" (r {self.r})" if self.r else ""
        on = f" on {self.on}" if self.on else ", from outside"
        how = "" if not self.quantize else f" in {self.quantize}"
        return f"{self.name}{rank}{on}{how}" + (", folded into unquantised weights" if how and self.merged else "")

    def record(self) -> dict[str, Any]:
        """Return it as a manifest keeps it."""
        return asdict(self)


def label(name: str, fingerprint: str) -> str:
    """Return what a person calls weights: a hub id with its revision, else the name and a short fingerprint."""
    if fingerprint.startswith(HUB):
        return fingerprint.removeprefix(HUB)
    return f"{name}@{fingerprint[:SHORT]}"


def adapters_of(lineage: Mapping[str, Any]) -> list[AppliedAdapter]:
    """Return the adapters that are in weights, oldest first; older manifests keep each as one string."""
    found = []
    for entry in lineage.get("adapters", []):
        if isinstance(entry, str):
            name, _, on = entry.partition(" on ")
            found.append(AppliedAdapter(name, on))
        else:
            found.append(AppliedAdapter(**entry))
    return found


def base_of(lineage: Mapping[str, Any]) -> str:
    """Return the name of the first weights; empty when a manifest does not say."""
    if lineage.get("base") == "scratch":
        made = lineage.get("base_name")
        return f"{made}, trained from nothing" if made else "none: trained from nothing"
    return str(lineage.get("base_name") or lineage.get("base") or "").removeprefix(HUB)


def descended(before: Mapping[str, Any], name: str, fingerprint: str) -> dict[str, Any]:
    """Return the lineage of weights trained from others.

    Args:
        before: lineage of those others.
        name: of those others.
        fingerprint: of those others.
    """
    return {
        "base": before.get("base") or fingerprint,
        "base_name": before.get("base_name") or label(name, fingerprint),
        "parent": fingerprint,
        "adapters": [adapter.record() for adapter in adapters_of(before)],
    }
