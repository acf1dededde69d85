"""Provenance of weights, a manifest's `lineage`: the base model, and every adapter in the weights, in order.

    base        fingerprint of the base weights; `scratch` when a stage initialized them
    base_name   the same for people: `Qwen/Qwen2.5-0.5B@main`, `base@9f31c0a1b2c3`
    parent      fingerprint of the weights the stage started from
    adapters    records of `AppliedAdapter`, oldest first
    dtype       dtype of the weights that a merge has written

Knows nothing of tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from pipeline.artifacts.manifest import SHORT
from pipeline.plain_data import JsonObject, JsonView

HUB = "hub:"
"""Prefix of the fingerprint of a hub id."""


class AdapterRecord(TypedDict):
    """An `AppliedAdapter` in a manifest."""

    name: str
    on: str
    r: int | None
    quantize: str | None
    merged: bool


@dataclass(frozen=True)
class AppliedAdapter:
    """An adapter whose update is contained in the weights.

    Attributes:
        name: name of the stage that trained it, or of its folder or hub repository.
        on: label of the weights it was trained on; empty for an adapter from outside, where it is unknown.
        r: LoRA rank; None when unknown.
        quantize: ``4bit`` or ``8bit`` when those weights were quantised during its training.
        merged: whether a merge folded it into unquantised weights; else it applies to the values it was trained on.
    """

    name: str
    on: str = ""
    r: int | None = None
    quantize: str | None = None
    merged: bool = False

    @property
    def key(self) -> str:
        """Identity of the adapter, whatever weights it is folded into."""
        return f"{self.name} on {self.on}" if self.on else self.name

    @property
    def text(self) -> str:
        """One line for people: ``sft (r 16) on base@9f31c0a1b2c3 in 4bit, folded into unquantised weights``."""
        rank = f" (r {self.r})" if self.r else ""
        on = f" on {self.on}" if self.on else ", from outside"
        precision = "" if not self.quantize else f" in {self.quantize}"
        return f"{self.name}{rank}{on}{precision}" + (
            ", folded into unquantised weights" if precision and self.merged else ""
        )

    def record(self) -> AdapterRecord:
        """Return the adapter's entry in a manifest."""
        return AdapterRecord(name=self.name, on=self.on, r=self.r, quantize=self.quantize, merged=self.merged)


def label(name: str, fingerprint: str) -> str:
    """Return a readable label of weights: a hub id with its revision, else the name and a short fingerprint."""
    if fingerprint.startswith(HUB):
        return fingerprint.removeprefix(HUB)
    return f"{name}@{fingerprint[:SHORT]}"


def adapters_of(lineage: JsonView) -> list[AppliedAdapter]:
    """Return the adapters in a lineage, oldest first; older manifests store each as one string."""
    adapters = []
    for entry in lineage.get("adapters", []):
        if isinstance(entry, str):
            name, _, on = entry.partition(" on ")
            adapters.append(AppliedAdapter(name, on))
        else:
            adapters.append(AppliedAdapter(**entry))
    return adapters


def base_of(lineage: JsonView) -> str:
    """Return the name of the base weights; empty when the lineage has none."""
    if lineage.get("base") == "scratch":
        name = lineage.get("base_name")
        return f"{name}, trained from nothing" if name else "none: trained from nothing"
    return str(lineage.get("base_name") or lineage.get("base") or "").removeprefix(HUB)


def descended(before: JsonView, name: str, fingerprint: str) -> JsonObject:
    """Return the lineage of weights that were trained from parent weights.

    Args:
        before: lineage of the parent weights.
        name: name of the parent weights.
        fingerprint: fingerprint of the parent weights.
    """
    return {
        "base": before.get("base") or fingerprint,
        "base_name": before.get("base_name") or label(name, fingerprint),
        "parent": fingerprint,
        "adapters": [adapter.record() for adapter in adapters_of(before)],
    }
